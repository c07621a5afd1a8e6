"""Pass images of any size through a network by tiles."""

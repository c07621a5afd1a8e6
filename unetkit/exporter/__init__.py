"""Export of networks to files that other programs run, each checked by its own engine before it is kept."""

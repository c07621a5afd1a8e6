"""Checks of everything that needs a GPU, for a machine that has one for a few minutes."""

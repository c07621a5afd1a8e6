"""Writes a network as one file of plain PyTorch, which needs unetkit no more."""

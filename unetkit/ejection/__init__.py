"""Write a network as one file of plain PyTorch, which does not need unetkit."""

"""A sweep over all model names of timm: whether unetkit, or smp, builds and runs a network with each as the encoder."""

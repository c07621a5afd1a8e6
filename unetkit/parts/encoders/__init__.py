"""Encoders, the contracting paths of a network, which declare the channels and strides of their feature maps."""

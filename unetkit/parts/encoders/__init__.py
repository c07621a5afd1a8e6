"""Encoders: contracting paths that describe themselves by channels and strides."""

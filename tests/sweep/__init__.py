"""`python -m tests.sweep`: what becomes of every name of timm's, asked of unetkit, or of smp as it is."""

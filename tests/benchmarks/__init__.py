"""Benchmarks of unetkit against smp and plain loops; `uv run python -m tests.benchmarks` prints a table of ratios."""

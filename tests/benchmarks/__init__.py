"""Benchmarks, run by hand: `uv run python -m tests.benchmarks` prints ratios of paired runs as a table."""

"""Work in child processes, and its results on disk, line by line: what sweeps and benchmarks stand on."""

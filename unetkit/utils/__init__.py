"""General tools: files, processes, system, formatting and tables; for torch, model copies, FLOP counts and sizes."""

"""The checks, each a function of a subject that raises Nonconformity or SkipCheck."""

"""`python -m tests.sweep` is a developer's tool: it proves what docs/sweep.md says."""

from tests.sweep.command import main

if __name__ == "__main__":  # the children of a sweep import it by another name
    main()

"""Run the sweep with `python -m tests.sweep`. It is a tool for developers and produces the tables of docs/sweep.md."""

from tests.sweep.command import main

if __name__ == "__main__":  # the child processes of a sweep import this module under another name
    main()

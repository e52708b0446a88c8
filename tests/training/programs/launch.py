"""The command line: ``python -m programs.launch PACKAGE WORKERS [PROGRAM ...]`` in ``tests/training``."""

from conformance.launch import main

if __name__ == "__main__":
    main("programs")

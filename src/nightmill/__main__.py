"""`python -m nightmill` is the `nightmill` command."""

from nightmill.cli import main

if __name__ == "__main__":
    main()

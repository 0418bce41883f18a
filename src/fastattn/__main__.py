"""`python -m fastattn` is the `fastattn` command."""

from fastattn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

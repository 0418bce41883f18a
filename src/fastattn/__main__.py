"""Run the `fastattn` command as `python -m fastattn`."""

from fastattn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

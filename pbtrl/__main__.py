"""`python -m pbtrl` is the command `pbtrl`."""

from pbtrl.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

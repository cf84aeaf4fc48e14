"""Runs the command as ``python -m leyden.cli``."""

import sys

from leyden.cli import main

if __name__ == "__main__":
    sys.exit(main())

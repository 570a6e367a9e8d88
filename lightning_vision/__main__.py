"""`python -m lightning_vision`, the same as the console script."""

import sys

from lightning_vision.console import console

if __name__ == "__main__":
    sys.exit(console())

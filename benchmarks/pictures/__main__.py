"""Draw the cards' pictures into docs/pictures: `python -m benchmarks.pictures [NAME ...]`."""

import argparse
import os
from pathlib import Path

from . import NAMES, save

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no picture called {', '.join(sorted(unknown))}")
    for name in options.names or NAMES:
        print(save(name, FOLDER), flush=True)


# With one thread sums are the same on every machine; read by torch when it is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
main()

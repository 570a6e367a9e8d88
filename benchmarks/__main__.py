"""Run the benchmarks: `python -m benchmarks [NAME ...]` prints their tables and writes them into docs/speed.md."""

import argparse
import importlib
import logging
import os
import warnings
from pathlib import Path

from .page import circumstances, rewrite
from .side_by_side import table

NAMES = ["startup", "digits_loop", "cifar_epoch", "logging_tax"]
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="only see that they run: one small repetition, no page")
    parser.add_argument("--page", type=Path, help="the page to write into, docs/speed.md by default")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark called {', '.join(sorted(unknown))}")
    page = options.page or (None if options.quick else PAGE)
    for name in options.names or NAMES:
        rows = importlib.import_module(f"benchmarks.{name}").rows(options.quick)
        figures = f"{table(rows)}\n\n{circumstances(name, options.quick)}"
        print(f"\n{name}\n\n{figures}", flush=True)
        if page:
            page.write_text(rewrite(page.read_text(encoding="utf-8"), name, figures), encoding="utf-8")


# Read by torch when it is imported, by the benchmarks and by the processes that they start.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# The Trainer's tips and notices, once a repetition.
logging.disable(logging.INFO)
warnings.filterwarnings("ignore", module="lightning")
main()

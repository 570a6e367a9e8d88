"""Run the benchmarks: `python -m benchmarks [NAME ...]` prints their tables and writes them into the pages of docs/.

A page asks for the figures of a block with the markers `<!-- figures:NAME -->` and `<!-- /figures:NAME -->`.
"""

import argparse
import importlib
import logging
import os
import re
import warnings
from pathlib import Path

from .page import circumstances, pages_with, rewrite
from .side_by_side import table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


def main() -> None:
    timings, studies = _names("rows"), _names("blocks")
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    known = f"which of {', '.join(timings)}; all of them by default. Studies run only when named: {', '.join(studies)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    parser.add_argument("--quick", action="store_true", help="only see that they run: one small repetition, no page")
    parser.add_argument("--page", type=Path, help="the only page to write into, every page of docs/ by default")
    options = parser.parse_args()
    if unknown := set(options.names) - {*timings, *studies}:
        parser.error(f"no benchmark called {', '.join(sorted(unknown))}")
    pages = [options.page] if options.page else sorted(DOCS.rglob("*.md"))
    for name in options.names or timings:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        blocks = benchmark.blocks(options.quick) if name in studies else {name: table(benchmark.rows(options.quick))}
        figures = {block: f"{content}\n\n{circumstances(name, options.quick)}" for block, content in blocks.items()}
        for block, content in figures.items():
            print(f"\n{block}\n\n{content}", flush=True)
        if options.page or not options.quick:
            for block, content in figures.items():
                for page in pages_with(block, pages):
                    page.write_text(rewrite(page.read_text(encoding="utf-8"), block, content), encoding="utf-8")


def _names(function: str) -> list[str]:
    """The files beside this one that define `function`, which is what makes them benchmarks."""
    defines = re.compile(rf"^def {function}\(", re.MULTILINE)
    return [file.stem for file in sorted(HERE.glob("*.py")) if defines.search(file.read_text(encoding="utf-8"))]


# Read by torch when it is imported, by the benchmarks and by the processes that they start.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# The Trainer's tips and notices, once a repetition.
logging.disable(logging.INFO)
warnings.filterwarnings("ignore", module="lightning")
main()

"""Figures in a Markdown page: written between markers, never by hand."""

import datetime
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

__all__ = ["circumstances", "pages_with", "rewrite"]

PACKAGES = ("torch", "lightning", "torchmetrics", "torchvision", "timm")


def pages_with(name: str, pages: Iterable[Path]) -> list[Path]:
    """Those of `pages` that ask for the block `name`.

    Raises:
        ValueError: none does.
    """
    begin = f"<!-- figures:{name} -->"
    asking = [page for page in pages if begin in page.read_text(encoding="utf-8")]
    if not asking:
        raise ValueError(f"no page has the marker {begin}; put the pair of markers where the figures belong")
    return asking


def rewrite(page: str, name: str, figures: str) -> str:
    """Put `figures` between the markers of `name`.

    Args:
        page: The page's text.
        name: The block between `<!-- figures:NAME -->` and `<!-- /figures:NAME -->`.
        figures: What to put there, Markdown.

    Raises:
        ValueError: the page does not have the block exactly once.
    """
    begin, end = f"<!-- figures:{name} -->", f"<!-- /figures:{name} -->"
    blocks = re.findall(f"{begin}.*?{end}", page, re.DOTALL)
    if len(blocks) != 1:
        raise ValueError(f"the page has {len(blocks)} blocks from {begin} to {end}, it needs one")
    return page.replace(blocks[0], f"{begin}\n\n{figures}\n\n{end}")


def circumstances(name: str, quick: bool) -> str:
    """Machine, versions, date and command behind the figures of benchmark `name`, one Markdown line."""
    command = f"python -m benchmarks {name}{' --quick' if quick else ''}"
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    load = os.getloadavg()[0]
    return (
        f"_{_processor()}, {os.cpu_count()} cores, load {load:.1f}; Python {platform.python_version()}, {packages}; "
        f"{datetime.date.today()}; `{command}`_"
    )


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()

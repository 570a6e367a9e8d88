"""Fill the citations of the pages from the docstrings: `python -m benchmarks.cite`.

A page of docs/ asks for them with the markers `<!-- cite:CLASS -->` and `<!-- /cite:CLASS -->`.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from lightning_vision.catalogue import find

__all__ = ["citation", "cited"]

DOCS = Path(__file__).parents[1] / "docs"


def cited(card: str) -> str:
    """The text of `card` with all its citations as the docstrings have them.

    Raises:
        ValueError: a marker names no public class, or one whose docstring lacks `Reference:` or `BibTeX:`.
    """
    return re.sub(r"<!-- cite:(\w+) -->.*?<!-- /cite:\1 -->", _block, card, flags=re.DOTALL)


def citation(thing: Any) -> str:
    """Reference and BibTeX entry from the docstring of a class or function, Markdown.

    Raises:
        ValueError: the docstring has no section `Reference:` or no section `BibTeX:`.
    """
    doc = inspect.getdoc(thing) or ""
    parts = []
    for section in ("Reference", "BibTeX"):
        # A section goes on over indented and empty lines; its content may begin beside its name.
        found = re.search(rf"^{section}:[ \t]*(.*(?:\n(?:[ \t]+.*|[ \t]*$))*)", doc, re.MULTILINE)
        if found is None or not found[1].strip():
            raise ValueError(f"the docstring of {thing.__name__} has no section {section}:")
        parts.append(inspect.cleandoc(found[1]))
    return f"{' '.join(parts[0].split())}\n\n```bibtex\n{parts[1]}\n```"


def _block(found: re.Match[str]) -> str:
    entry = find(found[1])
    if entry is None:
        raise ValueError(f"<!-- cite:{found[1]} -->: the catalogue has no {found[1]}")
    return f"<!-- cite:{entry.name} -->\n\n{citation(entry.load())}\n\n<!-- /cite:{entry.name} -->"


if __name__ == "__main__":
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        if (after := cited(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(path)

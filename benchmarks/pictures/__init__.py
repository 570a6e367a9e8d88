"""Pictures of the cards, one file each with the function `draw`; `python -m benchmarks.pictures` saves them."""

import importlib
from pathlib import Path

__all__ = ["NAMES", "save"]

NAMES = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))
LIMIT = 150_000


def save(name: str, folder: Path) -> Path:
    """Draw the picture `name` and save it as `folder/NAME.png`.

    Raises:
        ValueError: the file is larger than 150 kB.
    """
    figure = importlib.import_module(f"benchmarks.pictures.{name}").draw()
    path = folder / f"{name}.png"
    # It names the library's version, whose letters a test must know to compare pictures closely.
    figure.savefig(path, dpi=100, bbox_inches="tight")
    if (size := path.stat().st_size) > LIMIT:
        raise ValueError(f"{path.name} has {size} bytes, more than {LIMIT}; draw it smaller or with fewer colours")
    return path

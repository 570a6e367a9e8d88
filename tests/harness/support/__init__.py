"""What several test folders share: the two-rank harness, the leak check, tiny modules and data."""

from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(__file__).resolve().parents[3]

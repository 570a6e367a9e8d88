"""Parts for training vision models with PyTorch Lightning, each of them proved."""

from typing import Any

from lightning_vision.catalogue import lazy_exports
from lightning_vision.console import main
from lightning_vision.result import Result

_lazy, _names, _tasks = lazy_exports(__name__)
__all__ = ["Result", "main", *_tasks]


def __getattr__(name: str) -> Any:
    return _lazy(name)


def __dir__() -> list[str]:
    return __all__

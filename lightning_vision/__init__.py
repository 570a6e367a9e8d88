"""Parts for training vision models with PyTorch Lightning, each of them proved."""

from lightning_vision.catalogue import lazy_exports
from lightning_vision.console import main
from lightning_vision.result import Result

__getattr__, __dir__, _tasks = lazy_exports(__name__)
__all__ = ["Result", "main", *_tasks]

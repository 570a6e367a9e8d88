"""Continuing a run that was killed or interrupted as if it had not been."""

from lightning_vision.catalogue import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)

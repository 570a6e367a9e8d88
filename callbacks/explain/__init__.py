"""Callbacks that show what a network looks at, and the functions that compute it."""

from lightning_vision.catalogue import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)

"""Checks of the user's module and data, made before training time is lost."""

from lightning_vision.catalogue import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)

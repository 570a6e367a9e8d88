"""Augmentation on the device: every image of a batch is changed by draws of its own."""

from lightning_vision.catalogue import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)

"""What sources of images with boxes share, and augmentation that moves boxes along."""

from lightning_vision.catalogue import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)

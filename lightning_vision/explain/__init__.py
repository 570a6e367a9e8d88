"""Looking into a trained network: images made for it, its filters, and measures of maps that explain it."""

from lightning_vision.catalogue import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)

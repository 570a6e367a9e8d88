"""Networks for images of 8 to 32 pixels, registered with timm, and `create`, which builds any timm network by name.

Importing this package registers the networks, so `timm.create_model("resnet8_cifar")` works afterwards.
"""

from lightning_vision.catalogue import lazy_exports

from . import allcnn, cct, pyramidnet, resnet_cifar  # noqa: F401  # imported to be registered
from .create import create  # noqa: F401  # a function that is called like its file
from .maxout import maxout  # noqa: F401  # likewise

__getattr__, __dir__, __all__ = lazy_exports(__name__)

"""Networks for small images, registered with timm, and `create`, which builds any timm network by name.

Importing this package registers the networks, so `timm.create_model("resnet8_cifar")` works afterwards.
"""

from lightning_vision.catalogue import lazy_exports

from . import allcnn, cct, plain, pyramidnet, resnet_cifar  # noqa: F401  # imported to be registered
from .create import create  # noqa: F401  # a function that is called like its file
from .maxout import maxout  # noqa: F401  # likewise

__getattr__, __dir__, __all__ = lazy_exports(__name__)

"""Networks for images of 8 to 32 pixels, registered with timm, and `create`, which builds any timm network by name.

Importing this package registers the networks, so `timm.create_model("resnet8_cifar")` works afterwards.
"""

from . import allcnn, cct, maxout, pyramidnet, resnet_cifar
from .create import create, names

__all__ = ["allcnn", "cct", "create", "maxout", "names", "pyramidnet", "resnet_cifar"]

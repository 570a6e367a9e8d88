"""What Grad-CAM++ costs beside the grad-cam package's."""

from pytorch_grad_cam import GradCAMPlusPlus

from lightning_vision.callbacks import grad_cam_plus_plus

from .maps import beside_a_forward, beside_the_package
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Maps of 64 images; the package loses small gradients, so the network is made certain.

    Args:
        quick: One repetition of two images.
    """
    name = "`grad_cam_plus_plus`"
    return [
        beside_the_package(name, grad_cam_plus_plus, GradCAMPlusPlus, quick, certainty=30.0),
        beside_the_package(name, grad_cam_plus_plus, GradCAMPlusPlus, quick, size=64, certainty=30.0),
        beside_a_forward(name, lambda model, images: grad_cam_plus_plus(model, images, "layer4"), quick),
    ]

"""What Layer-CAM costs at the last stage and at an early one, beside the grad-cam package's."""

from pytorch_grad_cam import LayerCAM

from lightning_vision.callbacks import layer_cam

from .maps import beside_a_forward, beside_the_package
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Maps of 64 images, coarse and fine.

    Args:
        quick: One repetition of two images.
    """
    return [
        *(
            beside_the_package("`layer_cam`", layer_cam, LayerCAM, quick, layer=layer, bar=bar)
            for layer, bar in (("layer4", "<= 0.60"), ("layer2", ""))
        ),
        beside_a_forward("`layer_cam` of layer2", lambda model, images: layer_cam(model, images, "layer2"), quick),
    ]

"""What Score-CAM costs beside the grad-cam package's, which asks the network as often."""

from pytorch_grad_cam import ScoreCAM

from lightning_vision.callbacks import score_cam

from .maps import beside_a_forward, beside_the_package
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Maps of four images, 128 forwards each, and of two, 256 forwards each; 64 forwards beside one.

    Args:
        quick: One repetition of two images.
    """
    few = {"count": 4, "size": 64, "layer": "layer1" if quick else "layer2", "repetitions": 5}
    wide = few | {"layer": "layer1" if quick else "layer3", "count": 2}
    return [
        beside_the_package("`score_cam`", score_cam, ScoreCAM, quick, **few, bar="<= 1.05"),
        beside_the_package("`score_cam`", score_cam, ScoreCAM, quick, **wide, bar="<= 1.05"),
        beside_a_forward(
            "`score_cam` of layer1", lambda model, images: score_cam(model, images, "layer1"), quick, 4, 64
        ),
    ]

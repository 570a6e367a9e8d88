"""A training step of ColourisationGAN beside bare loops over the same networks; conversion beside scikit-image's."""

import torch
from skimage.color import rgb2lab
from torch.nn.functional import l1_loss

from lightning_vision.generation import ColourisationGAN
from lightning_vision.generation.adversarial import AdversarialModule
from lightning_vision.generation.lab import to_lab

from .adversarial_steps import Made, step_rows
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on 8 photographs of 64 pixels; convert 8 of 256 pixels.

    Args:
        quick: One repetition with two.
    """
    count = 2 if quick else 8
    torch.manual_seed(0)
    image = torch.rand(count, 3, 64, 64) * 2 - 1

    def make() -> ColourisationGAN:
        return ColourisationGAN(channels=16, image_size=64)

    def forge(model: AdversarialModule) -> Made:
        lab = to_lab((image + 1) / 2)
        light, true = lab[:, :1] / 50 - 1, lab[:, 1:] / 110
        made = model.network.generator(light)
        return true, made, light, 100 * l1_loss(made, true)

    pixels = torch.rand(count, 3, 256, 256)
    array = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    sides = {"ours": unprepared(lambda: to_lab(pixels)), "peer": unprepared(lambda: rgb2lab(array))}
    times = take_turns(sides, 1 if quick else 15)
    what = f"`to_lab`, {count} images of 256 pixels"
    return [
        *step_rows(f"training step, {count} photographs of 64 pixels", make, (image,), forge, quick),
        Row.slowdown(what, "scikit-image's `rgb2lab`", times["ours"]["cpu"], times["peer"]["cpu"], "cpu"),
    ]

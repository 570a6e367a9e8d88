"""A training step of DCGAN and sampling beside bare loops over the same networks."""

import torch
from torch import Tensor

from lightning_vision.generation import DCGAN
from lightning_vision.generation.adversarial import AdversarialModule

from .adversarial_steps import Made, step_rows
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on 64 images of 32 pixels, with labels; sample 256.

    Args:
        quick: One repetition with four images.
    """
    count = 4 if quick else 64
    torch.manual_seed(0)
    image, label = torch.rand(count, 3, 32, 32) * 2 - 1, torch.randint(10, (count,))

    def make() -> DCGAN:
        return DCGAN(channels=32, num_classes=10, image_size=32)

    def forge(model: AdversarialModule) -> Made:
        return image, model.network.generator(torch.randn(count, 100), label), label, 0.0

    model, labels = make().eval(), torch.arange(4 * count) % 10

    @torch.no_grad()
    def bare() -> Tensor:
        found: Tensor = model.network.generator(torch.randn(4 * count, 100), labels)
        return found

    sides = {"ours": unprepared(lambda: model.sample(4 * count, label=labels)), "peer": unprepared(bare)}
    times = take_turns(sides, 1 if quick else 15)
    what = f"sampling {4 * count} images, each of its own draws"
    return [
        *step_rows(f"training step, {count} images of 32 pixels", make, (image, label), forge, quick),
        Row.slowdown(what, "a bare pass", times["ours"]["cpu"], times["peer"]["cpu"], "cpu"),
    ]

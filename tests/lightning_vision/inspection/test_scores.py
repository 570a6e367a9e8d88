"""Where probabilities are made of logits, one logit alone is refused: its softmax is 1 whatever the image."""

import re

import pytest
import torch
from torch import nn

from lightning_vision.explain import deletion, insertion, make_fooling_images, perturbation_curve
from lightning_vision.inspection.scores import rival_logits

SENTENCE = "the model answers one logit, whose softmax is 1 whatever the image; wrap it in a module that returns"
IMAGES = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class TwoOfOne(nn.Module):
    """The way out that the sentence names."""

    def __init__(self, single: nn.Module) -> None:
        super().__init__()
        self.single = single

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logit = self.single(images)
        return torch.cat([-logit, logit], 1) / 2


def network(classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def test_one_logit_is_refused_by_all_that_make_probabilities() -> None:
    single, maps = network(1), IMAGES[:, 0]

    for ask in (
        lambda: rival_logits(torch.zeros(2, 1)),
        lambda: make_fooling_images(single, (1, 4, 4), steps=1),
        lambda: make_fooling_images(single, (1, 4, 4), steps=1, method="cppn"),
        lambda: insertion(single, IMAGES, maps, steps=2),
        lambda: deletion(single, IMAGES, maps, 0, steps=2),
    ):
        with pytest.raises(ValueError, match=re.escape(SENTENCE)):
            ask()


def test_the_way_out_gives_the_logits_own_probability() -> None:
    single = network(1)
    curve = perturbation_curve(TwoOfOne(single), torch.zeros_like(IMAGES), IMAGES, IMAGES[:, 0], 1, steps=2)

    torch.testing.assert_close(curve[:, -1], single(IMAGES).sigmoid()[:, 0].detach())


def test_answers_that_are_no_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="no logits"):
        rival_logits(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="answers detections"):
        rival_logits([{"scores": torch.zeros(1), "labels": torch.zeros(1)}])
    logits = torch.zeros(2, 3)
    assert rival_logits(logits) is logits

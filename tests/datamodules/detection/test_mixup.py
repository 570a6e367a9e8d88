"""Blended images with the boxes of both: by hand; shares are the beta distribution's."""

import re

import pytest
import torch
from scipy.stats import beta, kstest

from lightning_vision.datamodules.detection import BoxMixUp, pack_boxes
from lightning_vision.datamodules.detection._partners import partners
from support.boxes import rectangles


def test_by_hand() -> None:
    """u = 0 and v = 1/2 or 1/4 are shares of 0 and of 1/2; with u = 7/16 and v = 1/2 it is (1 - 3/4) / 2."""
    images = torch.tensor([100, 200, 11], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 1, 4, 4)
    boxes = [torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 4]]), torch.tensor([[0, 0, 4, 4]])]
    annotations = pack_boxes(boxes, list(torch.tensor([[1], [2], [3]])), (4, 4))
    uniform = torch.tensor([[0.0, 0.25, 0.0, 0.1], [0.4375, 0.5, 0.0, 0.2], [0.0, 0.5, 0.0, 0.3]])
    pixels, moved = BoxMixUp(min_visible=0.13).apply(images, annotations, uniform)
    once, twice, thrice = moved.targets()

    assert BoxMixUp().shares(uniform).tolist() == pytest.approx([0.5, 0.125, 0.0])
    assert pixels[:, 0, 0, 0].tolist() == [150, 35, 100]
    assert once["labels"].tolist() == [1, 2] and once["boxes"].tolist() == [[0, 0, 2, 2], [1, 1, 3, 4]]
    assert twice["labels"].tolist() == [3]
    assert thrice["labels"].tolist() == [1]
    assert torch.equal(annotations.placement, moved.placement)


@pytest.mark.parametrize("alpha", [0.7, 1.5, 8.0])
def test_shares_are_those_of_the_beta_distribution(alpha: float) -> None:
    """Kolmogorov and Smirnov's distance in 20,000 draws is above 0.0138 once in a thousand."""
    mixup = BoxMixUp(alpha=alpha)
    shares = mixup.shares(torch.rand(20_000, mixup.draws, generator=torch.Generator().manual_seed(0)))

    assert kstest(shares.numpy(), beta(alpha, alpha).cdf).statistic < 0.0138
    assert kstest(shares.numpy(), beta(1.2 * alpha, 1.2 * alpha).cdf).statistic > 0.0138


def test_blends_equal_a_loop_and_leave_the_others_as_they_are() -> None:
    _, annotations = rectangles(20, (12, 16))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 12, 16), dtype=torch.uint8, generator=generator)
    uniform = torch.rand(20, 4, generator=generator)
    mixup = BoxMixUp(prob=0.7, min_visible=0.0)
    pixels, moved = mixup.apply(images, annotations, uniform)
    _, partner = partners(uniform[:, 3], 2)
    for k, (share, target) in enumerate(zip(mixup.shares(uniform).tolist(), moved.targets(), strict=True)):
        other = int(partner[k])
        exact = share * images[k].double() + (1 - share) * images[other]
        labels = [k + 1, other + 1] if uniform[k, 2] < 0.7 else [k + 1]

        assert (exact - pixels[k]).abs().max() <= 0.5 + 1e-4
        assert target["labels"].tolist() == labels
        assert torch.equal(annotations.masks[[label - 1 for label in labels]], target["masks"])


def test_an_image_alone_in_its_batch_is_not_blended_with_itself() -> None:
    images, annotations = rectangles(1, (12, 16))
    pixels, moved = BoxMixUp(min_visible=0.0)(images, annotations)

    assert torch.equal(images, pixels)
    assert torch.equal(annotations.boxes, moved.boxes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.5}, "BoxMixUp: alpha is 0.5; give more than 0.5, where two numbers make one share."),
        ({"prob": 1.1}, "BoxMixUp: prob is 1.1; give a fraction from 0 to 1."),
        ({"min_visible": -1}, "BoxMixUp: min_visible is -1; give a fraction from 0 to 1."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        BoxMixUp(**settings)

"""SSD: default boxes, their coding, what is mined, images without objects."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16

from lightning_vision.detection.network import TorchvisionDetector
from lightning_vision.detection.pyramid import ModuleLevels
from lightning_vision.detection.settings import DetectorSettings
from lightning_vision.detection.ssd import default_boxes, ssd
from support.shapes import shapes

# Pixels between the places of SSD300's six maps, of 38, 19, 10, 5, 3 and 1 cells a side.
SSD300 = [8, 16, 32, 64, 100, 300]
RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]


class Thin(nn.Module):
    """Maps of strides 8, 16 and 32 with few channels, rounded up as SSD's are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, 8, 3, stride, 1), nn.ReLU()) for before, stride in ((3, 8), (8, 2), (8, 2))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[1:]


def small(side: int = 300, strides: list[int] | None = None, **options: float) -> TorchvisionDetector:
    """An SSD for two kinds of shapes on the thin network."""
    settings = DetectorSettings(2, (side, side), pyramid_channels=16)
    found = ssd(ModuleLevels(Thin(), strides or SSD300, 3, (side, side)), settings, **options)
    assert isinstance(found, TorchvisionDetector)
    return found


def boxes_of(network: TorchvisionDetector, side: int) -> Tensor:
    """The default boxes of an image."""
    images, _ = network.model.transform(torch.zeros(1, 3, side, side, device=next(network.parameters()).device))
    maps = list(network.model.backbone(images.tensors).values())
    boxes: Tensor = network.model.anchor_generator(images, maps)[0]
    return boxes


def test_row_128_torchvisions_ssd300_behind_our_adapter_has_8732_default_boxes() -> None:
    with torch.device("meta"):
        model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21)

    assert boxes_of(TorchvisionDetector(model, 1), 300).shape == (8732, 4)


def test_row_128_our_spread_at_ssd300s_strides_has_8732_default_boxes() -> None:
    assert boxes_of(small(), 300).shape == (8732, 4)


def test_another_number_of_shapes_is_another_number_of_boxes() -> None:
    ratios = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2]]
    counts = default_boxes(DetectorSettings(2, (300, 300)), SSD300, ratios).num_anchors_per_location()

    assert counts == [4, 6, 6, 6, 6, 4]
    with pytest.raises(ValueError, match="aspect_ratios has 2 lists, there are 6 maps"):
        default_boxes(DetectorSettings(2, (300, 300)), SSD300, [[2], [2]])


def test_between_the_authors_smallest_and_largest_sizes_are_nearly_the_authors() -> None:
    settings = DetectorSettings(2, (300, 300), object_sizes=(0.07, 1.05))
    scales = default_boxes(settings, SSD300, RATIOS).scales
    published = ssd300_scales()

    assert (scales[0], scales[-1]) == (published[0], published[-1])
    assert scales == pytest.approx(published, abs=0.0101)
    few = default_boxes(DetectorSettings(2, (300, 300), object_sizes=(0.5, 0.8)), [8, 16, 32], RATIOS[:3]).scales
    assert few == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert default_boxes(settings, [8], [[2]]).scales == [0.07, 1.05]


def test_squares_are_squares_in_images_that_are_none() -> None:
    settings = DetectorSettings(2, (64, 128), object_sizes=(0.25, 0.5), pyramid_channels=16)
    network = ssd(ModuleLevels(Thin(), [8, 16], 3, (64, 128)), settings, aspect_ratios=[[2], [2]])
    images, _ = network.model.transform(torch.zeros(1, 3, 64, 128))
    found = network.model.anchor_generator(images, list(network.model.backbone(images.tensors).values()))[0]
    sides = found[:, 2:] - found[:, :2]

    torch.testing.assert_close(sides[0], torch.tensor([16.0, 16.0]))
    torch.testing.assert_close(sides[2], torch.tensor([16.0 * 2**0.5, 16.0 / 2**0.5]))


def ssd300_scales() -> list[float]:
    """torchvision's."""
    with torch.device("meta"):
        found: list[float] = ssd300_vgg16(weights=None, weights_backbone=None).anchor_generator.scales
    return found


def test_row_128_encoding_and_decoding_are_inverse() -> None:
    network, draw = small(), torch.Generator().manual_seed(0)
    anchors = boxes_of(network, 300)
    corners = 250 * torch.rand(len(anchors), 2, generator=draw)
    objects = torch.cat([corners, corners + 5 + 45 * torch.rand(len(anchors), 2, generator=draw)], 1)
    coder = network.model.box_coder
    back = coder.decode_single(coder.encode_single(objects, anchors), anchors)

    assert coder.weights == (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(back, objects, atol=1e-3, rtol=0)


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_row_128_as_many_negatives_are_mined_for_each_positive_as_asked_and_the_hardest(ratio: float) -> None:
    network = small(64, [8, 16, 32], neg_to_pos_ratio=ratio).train()
    images, targets = shapes(2)
    model = network.model
    seen: dict[str, Tensor] = {}
    hook = model.head.register_forward_hook(lambda _module, _args, output: seen.update(output))
    losses = network.losses(images, targets)
    hook.remove()
    # Boxes that learn an object, by the definition: overlap of a half, or the best of an object.
    anchors = boxes_of(network, 64)
    loss = torch.zeros(())
    positives = negatives = 0
    for logits, target in zip(seen["cls_logits"], targets, strict=True):
        matched = model.proposal_matcher(overlaps(target["boxes"], anchors))
        learns = matched >= 0
        wanted = torch.where(learns, target["labels"][matched.clamp(min=0)], 0)
        each = nn.functional.cross_entropy(logits, wanted, reduction="none")
        mined = each[~learns].sort(descending=True).values[: int(ratio * learns.sum())]
        loss = loss + each[learns].sum() + mined.sum()
        positives, negatives = positives + int(learns.sum()), negatives + len(mined)

    assert positives >= 4 and negatives == ratio * positives
    torch.testing.assert_close(losses["classification"], loss / positives)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union `(N, M)`."""
    corners = torch.maximum(first[:, None, :2], second[:, :2]), torch.minimum(first[:, None, 2:], second[:, 2:])
    shared = (corners[1] - corners[0]).clamp(min=0).prod(2)
    areas = [(it[:, 2:] - it[:, :2]).prod(1) for it in (first, second)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def test_a_stride_that_no_layer_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a map of \[10, 10\] cells is followed by one of \[5, 5\] or \[4, 4\], not"):
        small(300, [8, 16, 32, 100])

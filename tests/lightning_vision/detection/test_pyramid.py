"""Maps of any network at chosen strides, and what is added to them."""

from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn

from lightning_vision.detection.pyramid import ModuleLevels, Pyramid, TimmLevels


class Halves(nn.Module):
    """Maps of strides 4, 8 and 8 again, under names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 3, 4, 4), nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 7, 1)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(images)
        second = self.second(first)
        return OrderedDict(fine=first, coarse=second, deep=self.third(second))


@pytest.mark.parametrize(
    ("backbone", "side"), [("test_resnet", 64), ("test_mambaout", 64), ("test_vit", 160), ("test_efficientnet", 72)]
)
def test_maps_of_timms_networks_have_their_strides_and_channels(backbone: str, side: int) -> None:
    strides = [16, 32]
    levels = TimmLevels(backbone, strides, in_channels=2).eval()
    maps = levels(torch.zeros(1, 2, side, side))
    wanted = [
        (1, channels, -(-side // it), -(-side // it)) for it, channels in zip(strides, levels.channels, strict=False)
    ]

    assert [tuple(it.shape) for it in maps.values()] == wanted
    assert (levels.strides, levels.coarser) == (([16], [32]) if backbone == "test_vit" else ([16, 32], []))


def test_a_module_is_measured_and_of_equal_strides_the_deepest_is_taken() -> None:
    backbone = Halves().train()
    levels = ModuleLevels(backbone, [4, 8, 16], 1, (32, 48))
    maps = levels(torch.zeros(2, 1, 32, 48))

    assert (levels.strides, levels.channels, levels.coarser) == ([4, 8], [3, 7], [16])
    assert {name: tuple(it.shape) for name, it in maps.items()} == {"0": (2, 3, 8, 12), "1": (2, 7, 4, 6)}
    assert backbone.training


def test_a_pyramid_adds_what_the_network_lacks() -> None:
    pyramid = Pyramid(ModuleLevels(Halves(), [4, 8, 16, 32], 1, (32, 32)), 6)
    maps = pyramid(torch.zeros(1, 1, 32, 32))

    assert [tuple(it.shape) for it in maps.values()] == [(1, 6, side, side) for side in (8, 4, 2, 1)]


@pytest.mark.parametrize(
    ("strides", "said"),
    [
        ([2, 4], r"Halves has maps of strides \[4, 8\] and none of \[2\]; choose strides among them, coarser ones are"),
        ([16], r"Halves has maps of strides \[4, 8\] and none of 16"),
        ([8, 4], r"strides \[8, 4\] do not ascend; give each once, the finest first"),
        ([], r"strides \[\] do not ascend"),
    ],
)
def test_strides_that_a_network_does_not_have_are_refused(strides: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModuleLevels(Halves(), strides, 1, (32, 32))


def test_what_gives_no_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="Flatten gives a Tensor, not a list or dictionary of maps"):
        ModuleLevels(nn.Flatten(), [4], 1, (32, 32))
    with pytest.raises(ValueError, match="unknown backbone 'resnet51'; did you mean resnet51q"):
        TimmLevels("resnet51", [8])
    with pytest.raises(ValueError, match=r"test_vit has maps of strides \[16\] and none of \[8\]"):
        TimmLevels("test_vit", [8, 16])


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said = (
        r"^backbone 'resnet10t' could not be fetched \(\w+\); when offline, bring it in Hugging Face's cache folder fr"
    )
    with pytest.raises(ConnectionError, match=said):
        TimmLevels("resnet10t", [8], pretrained=True)
    with pytest.raises(ValueError, match="no pretrained weights exist for backbone 'plain8'; pass pretrained=False"):
        TimmLevels("plain8", [8], pretrained=True)


def test_a_pyramid_that_skips_a_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="a pyramid goes on from stride 8 to 16, not to 32; mend strides"):
        Pyramid(ModuleLevels(Halves(), [4, 8, 32], 1, (32, 32)), 6)

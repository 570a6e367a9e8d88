"""The study of maps scores every method, and tells maps that know the network from those that do not."""

import re

import pytest
import torch

from lightning_vision.backbones import create
from lightning_vision.explain import randomised_layers
from support import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_study_writes_a_row_a_method_and_each_card_its_own() -> None:
    from benchmarks import study_maps

    made = study_maps.blocks(quick=True)
    rows = {name: re.findall(r"^\| (.*?) \| [\d.]+ \|", block, re.MULTILINE) for name, block in made.items()}

    assert rows["study_maps"] == list(study_maps.METHODS)
    assert rows["maps_grad_cam"] == ["`grad_cam`", "`guided_grad_cam`", "edges of the image", "noise"]
    assert {name for name in made if name != "study_maps"} == {f"maps_{card}" for card in study_maps.CARDS}
    assert re.search(r"^\| edges of the image \| .* \| 1.00 \|$", made["study_maps"], re.MULTILINE)


def test_maps_are_compared_once_all_layers_are_random() -> None:
    from benchmarks.study_maps import DEEPEST

    images = torch.zeros(1, 3, 32, 32)
    every = randomised_layers(
        create("resnet8_cifar", num_classes=10, in_channels=3), lambda _, given: given[:, 0], images
    )

    assert every[-1].layer == DEEPEST


def test_only_what_the_network_gets_right_is_explained_and_boxes_hold_the_digits() -> None:
    from benchmarks.study_maps import explained_digits, trained_network

    network, data = trained_network(seed=0, epochs=1)
    images, classes, boxes, accuracy = explained_digits(network, data)

    assert torch.equal(network(images).argmax(1), classes)
    assert len(images) == round(accuracy * len(data.test_set)) > 0
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    assert boxes.min() >= 0
    assert boxes.max() <= 32

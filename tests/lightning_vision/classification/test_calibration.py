"""A calibration by itself: what it does to images and logits, how it travels, what it refuses."""

import re
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import nn

from lightning_vision.classification.calibration import Calibration


def images() -> torch.Tensor:
    return torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_logits_are_divided_and_images_shifted() -> None:
    calibration = Calibration(4.0, torch.full((1, 4, 4), 0.5))

    assert torch.equal(calibration(torch.tensor([[8.0, -2.0]])), torch.tensor([[2.0, -0.5]]))
    assert torch.equal(calibration.perturb(images()), images() + 0.5)


def test_without_delta_the_very_images_come_back() -> None:
    image = images()

    assert Calibration(4.0).perturb(image) is image


def test_row_245_no_shift_and_temperature_one_leave_predictions_bit_equal() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 3))
    neutral = Calibration(1.0, torch.zeros(1, 4, 4))

    assert torch.equal(neutral(network(neutral.perturb(images()))), network(images()))


def test_it_travels_as_plain_data() -> None:
    file = BytesIO()
    torch.save(Calibration(1.7, torch.ones(1, 4, 4)).state(), file)
    file.seek(0)
    restored = Calibration.from_state(torch.load(file, weights_only=True))

    assert restored.temperature == 1.7
    assert restored.delta is not None
    assert torch.equal(restored.delta, torch.ones(1, 4, 4))
    assert Calibration.from_state(Calibration(3.0).state()).delta is None


def test_it_adds_nothing_to_a_state_dict_and_half_precision_does_not_round_the_temperature() -> None:
    holder = nn.Module()
    holder.calibration = Calibration(1.2345, torch.ones(1, 4, 4))

    assert list(holder.state_dict()) == []
    assert holder.half().calibration.temperature == 1.2345
    assert holder.calibration.perturb(images()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0.0,), "the temperature of a calibration is 0.0; give a finite number above 0"),
        ((-1.0,), "the temperature of a calibration is -1.0; give a finite number above 0"),
        ((float("inf"),), "the temperature of a calibration is inf; give a finite number above 0"),
        (
            (1.0, torch.zeros(4, 4)),
            "the delta of a calibration is (4, 4) torch.float32; give finite floats of an image's",
        ),
        ((1.0, torch.full((1, 2, 2), torch.nan)), "the delta of a calibration is (1, 2, 2) torch.float32; give finite"),
        ((1.0, torch.zeros(1, 2, 2).long()), "the delta of a calibration is (1, 2, 2) torch.int64; give finite floats"),
    ],
)
def test_what_is_no_calibration_is_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        Calibration(*arguments)


def test_images_of_another_shape_than_the_shift_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^the model was calibrated with images of shape \(1, 8, 8\) and got a batch"):
        Calibration(1.0, torch.zeros(1, 8, 8)).perturb(images())

"""Losses of complementary labels: by hand, at the edges of probability, and as the loss of a classifier.

That mixtures of labels are followed exactly is proved in `tests/callbacks/hooks/test_losses_seen.py`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_vision.callbacks import IntraClusterMixup
from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.complementary import (
    ComplementaryForward,
    complementary_forward,
    complementary_negative_log,
)
from support.data import plain_loader
from support.trainers import quiet_trainer

Loss = Callable[[Tensor, Tensor], Tensor]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 5, generator=generator, dtype=torch.float64), torch.randint(5, (9,), generator=generator)


def test_the_negative_log_is_that_of_the_other_classes_probability() -> None:
    logits, complementary = batch()
    expected = -(1 - logits.softmax(1)[torch.arange(9), complementary]).log().mean()

    torch.testing.assert_close(complementary_negative_log(logits, complementary), expected)


def test_forward_correction_is_cross_entropy_of_the_labels_as_they_are_drawn() -> None:
    logits, complementary = batch()
    transition = torch.tensor([[0.0, 0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    transition = torch.stack([transition[0].roll(shift) for shift in range(5)])
    drawn = logits.softmax(1) @ transition

    torch.testing.assert_close(
        complementary_forward(logits, complementary, transition), -drawn[torch.arange(9), complementary].log().mean()
    )


def test_a_label_that_is_never_drawn_leaves_the_others_gradients_as_they_are() -> None:
    logits, complementary = batch()
    complementary, logits = complementary.clamp(max=3), logits.requires_grad_()
    transition = (1 - torch.eye(5, dtype=torch.float64)) / 3
    transition[:, 4], transition[4] = 0, torch.tensor([0.25, 0.25, 0.25, 0.25, 0])
    drawn = (logits.softmax(1) @ transition)[torch.arange(9), complementary]
    found, expected = (
        torch.autograd.grad(it, logits)[0]
        for it in (complementary_forward(logits, complementary, transition), -drawn.log().mean())
    )

    torch.testing.assert_close(found, expected)


def test_without_a_transition_every_other_class_is_as_probable() -> None:
    logits, complementary = batch()
    evenly = (1 - torch.eye(5, dtype=torch.float64)) / 4

    torch.testing.assert_close(
        complementary_forward(logits, complementary), complementary_forward(logits, complementary, evenly)
    )


@pytest.mark.parametrize("loss", [complementary_negative_log, complementary_forward])
@pytest.mark.parametrize("others", [1, 2])
def test_a_network_that_is_sure_of_the_wrong_class_gets_a_gradient(loss: object, others: int) -> None:
    logits = torch.tensor([[1000.0, *[0.0] * others]], requires_grad=True)
    value = loss(logits, torch.tensor([0]))  # type: ignore[operator]  # either function
    value.backward()

    assert value.item() == pytest.approx(1000, abs=1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, *[-1 / others] * others]]), atol=1e-4, rtol=0)


LOSSES = pytest.mark.parametrize("loss", [complementary_negative_log, complementary_forward])


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_get_the_gradient_of_double_precision(loss: Loss, dtype: torch.dtype) -> None:
    """A network that is right and sure, whose small gradient is a difference of numbers that half precision rounds."""
    rows = torch.tensor([[8.0, 0.0, 1.0, 2.0], [0.0, 3.0, 1.0, 2.0]], dtype=dtype)
    narrow, wide = rows.clone().requires_grad_(), rows.double().requires_grad_()
    for logits in (narrow, wide):
        loss(logits, torch.tensor([1, 2])).backward()
    assert narrow.grad is not None and wide.grad is not None

    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=2**-7, atol=1e-7)


@LOSSES
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, 2], "complementary labels run from -1 to 2, and the logits are of the classes 0 to 4; leave images"),
        ([0, 5], "complementary labels run from 0 to 5, and the logits are of the classes 0 to 4; leave images"),
        (
            [[0.5] * 5] * 2,
            r"complementary labels are float32 \(2, 5\) and must be whole numbers \(B,\), the class that",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(loss: Loss, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(2, 5), torch.tensor(labels))


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        ([[1.0]], "transition is of 1 classes, and the logits are of 3; give one of the classes that the network"),
        (
            [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]],
            r"the batch has a label of \[2\], which the transition n",
        ),
    ],
)
def test_a_transition_of_other_labels_is_refused(transition: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComplementaryForward(transition)(torch.zeros(2, 3), torch.tensor([0, 2]))


def test_a_classifier_trains_with_one_and_its_checkpoint_holds_it(tmp_path: Path) -> None:
    loss = ComplementaryForward(((1 - torch.eye(10)) / 9).tolist())
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, loss=loss)
    trainer = quiet_trainer(callbacks=[IntraClusterMixup(n_clusters=2)], max_steps=2, max_epochs=-1)
    trainer.fit(module, plain_loader(12))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    found = ImageClassifier.load_from_checkpoint(tmp_path / "module.ckpt", loss=loss)

    assert isinstance(found.criterion, ComplementaryForward)
    assert trainer.global_step == 2


@pytest.mark.parametrize("transition", [[[0.5, 0.5]], [[0.0, 1.0], [0.5, 0.6]], [[0.0, 1.0], [2.0, -1.0]]])
def test_a_transition_that_draws_nothing_is_refused(transition: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="give K rows of K probabilities"):
        ComplementaryForward(transition)


def test_the_transition_is_no_part_of_the_state_dict() -> None:
    assert list(ComplementaryForward([[0.0, 1.0], [1.0, 0.0]]).state_dict()) == []

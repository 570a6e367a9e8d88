"""RegMixup: the row's clauses, training equal to a loop with the paper's loss, and what metrics of the step see.

Which losses are computed of either half is proved in `tests/callbacks/hooks/test_halves.py`, resume, processes and the
neutral run in `tests/conformance`, the mixture of images with `MixUp`.
"""

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score

from lightning_vision import ImageClassifier
from lightning_vision.callbacks.hooks.targets import Mix
from lightning_vision.callbacks.mixing.mixup import MixUpDraw
from lightning_vision.callbacks.mixing.reg_mixup import RegMixup, regmixup_loss
from lightning_vision.callbacks.sharpness.sam import SAM
from support.compare import distance
from support.data import labelled_images, plain_loader
from support.modules import Plain, small_network


def drawn(per_sample: bool = False, count: int = 8, seed: int = 0) -> MixUpDraw:
    return RegMixup(per_sample=per_sample).draw(torch.Size((count, 1, 8, 8)), np.random.default_rng(seed))


def some(count: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """A network whose batch norm has statistics of its own and is in evaluation mode, images and labels."""
    torch.manual_seed(0)
    network = small_network(dropout=0.0)
    network(torch.randn(64, 1, 8, 8))
    image, target = labelled_images(count).tensors
    return network.eval(), image, target


@pytest.mark.parametrize("per_sample", [False, True])
def test_row_214_eta_0_is_plain_cross_entropy(per_sample: bool, fit: Callable[..., Any]) -> None:
    network, image, target = some()
    draw = drawn(per_sample)
    logits = network(torch.cat([image, image.flip(0)]))
    off, none = Plain(), Plain()
    none.load_state_dict(off.state_dict())
    for module, callbacks in ((off, [RegMixup(eta=0.0, per_sample=per_sample)]), (none, [])):
        torch.manual_seed(0)
        fit(module, callbacks, plain_loader(12), max_epochs=1)

    assert regmixup_loss(logits, target, draw.partner, 0.3, 0.0) == F.cross_entropy(network(image), target)
    assert distance(off.state_dict(), none.state_dict()) == 0.0


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_row_214_lambda_1_is_1_plus_eta_cross_entropies(eta: float) -> None:
    network, image, target = some()
    mix = RegMixup(eta=eta).mix(image, MixUpDraw(torch.arange(8).flip(0), torch.ones(1)))
    loss = regmixup_loss(network(torch.cat([image, mix.images])), target, mix.partner, mix.lam, eta)

    assert torch.equal(mix.images, image)
    torch.testing.assert_close(loss, (1 + eta) * F.cross_entropy(network(image), target), rtol=1e-6, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_row_214_the_value_is_that_of_terms_computed_separately(per_sample: bool) -> None:
    """Three losses, each of a forward pass of its own, with batch norm in evaluation mode; in double precision."""
    network, image, target = some()
    network, image, eta, draw = network.double(), image.double(), 0.7, drawn(per_sample)
    mix = RegMixup(eta=eta, per_sample=per_sample).mix(image, draw)
    other = target[draw.partner]
    lam = draw.lam.expand(8).view(-1, 1, 1, 1)
    mixed = lam * image + (1 - lam) * image[draw.partner]
    share = lam.flatten()
    own, others = (F.cross_entropy(network(mixed), it, reduction="none") for it in (target, other))
    expected = F.cross_entropy(network(image), target) + eta * (share * own + (1 - share) * others).mean()
    value = regmixup_loss(network(torch.cat([image, mix.images])), target, draw.partner, share, eta)

    assert mix.beside == eta
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_row_214_soft_targets_and_two_terms_agree(per_sample: bool) -> None:
    network, image, target = some()
    eta, draw = 0.7, drawn(per_sample)
    share = draw.lam.float().expand(8)
    own, other = (F.one_hot(it, 10).float() for it in (target, target[draw.partner]))
    soft = share[:, None] * own + (1 - share[:, None]) * other
    logits = network(torch.cat([image, image.flip(0)]))
    plain, mixed = logits.chunk(2)
    value = regmixup_loss(logits, target, draw.partner, share, eta)

    torch.testing.assert_close(value, F.cross_entropy(plain, own) + eta * F.cross_entropy(mixed, soft))


@pytest.mark.parametrize("alpha", [1.0, 10.0, 20.0])
@pytest.mark.parametrize("per_sample", [False, True])
def test_row_214_lambda_has_the_moments_of_its_beta_distribution(alpha: float, per_sample: bool) -> None:
    """Beta(a, a): mean 1/2, variance v = 1 / (4 (2a + 1)), fourth central moment 3 v^2 (2a + 1) / (2a + 3); the bounds
    are four standard errors.
    """
    regmixup = RegMixup(alpha=alpha, per_sample=per_sample)
    if per_sample:
        lam = regmixup.draw(torch.Size((4000, 1, 1, 1)), np.random.default_rng(0)).lam
    else:
        lam = torch.cat([regmixup.draw(torch.Size((2, 1)), np.random.default_rng((0, 0, n))).lam for n in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 * variance**2 * (2 * alpha + 1) / (2 * alpha + 3)

    assert abs(float(lam.mean()) - 0.5) < 4 * math.sqrt(variance / 4000)
    assert abs(float((lam - 0.5).square().mean()) - variance) < 4 * math.sqrt((fourth - variance**2) / 4000)


def by_hand(per_sample: bool, eta: float = 0.7) -> Callable[..., Tensor]:
    def loss(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
        partner = torch.from_numpy(random.permutation(len(image)))
        lam = torch.from_numpy(random.beta(10.0, 10.0, len(image) if per_sample else 1)).float()
        mixed = torch.lerp(image[partner], image, lam.view(-1, 1, 1, 1))
        plain, below = network(torch.cat([image, mixed])).chunk(2)
        own, other = (F.cross_entropy(below, it, reduction="none") for it in (target, target[partner]))
        clean = F.cross_entropy(plain, target, reduction="none").sum() / len(image)
        return clean + eta * ((lam * own + (1 - lam) * other).sum() / len(image))

    return loss


@pytest.mark.parametrize("per_sample", [False, True])
def test_training_equals_a_loop_with_the_papers_loss(per_sample: bool, apart: Callable[..., float]) -> None:
    assert apart(RegMixup(eta=0.7, per_sample=per_sample), by_hand(per_sample)) == 0.0


class HalvesAveraged(RegMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), beside=1.0)


class MixturesAlone(RegMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), beside=None)


class LabelsUnmixed(RegMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), lam=1.0)


class PartnerOffByOne(RegMixup):
    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        return replace(super().mix(images, draw), partner=draw.partner.roll(1))


@pytest.mark.parametrize("mutant", [HalvesAveraged, MixturesAlone, LabelsUnmixed, PartnerOffByOne])
def test_a_wrong_regmixup_is_noticed(mutant: type[RegMixup], apart: Callable[..., float]) -> None:
    assert apart(mutant(eta=0.7), by_hand(per_sample=False)) > 1e-3


class Measured(Plain):
    """With torchmetrics, by themselves and in a collection, and numbers by hand."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__(dropout=0.0)
        self.counts = counts
        self.accuracy, self.auroc = MulticlassAccuracy(10, average="micro"), MulticlassAUROC(10)
        self.both = MetricCollection([MulticlassAccuracy(10), MulticlassF1Score(10)])
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = batch
        logits = self(image)
        self.accuracy(logits, target)
        self.auroc.update(logits, target=target)
        self.both.update(logits, target)
        right = logits.argmax(1) == target
        self.log("by_hand", right.float().mean())
        self.log("by_len", right.sum() / len(target))
        if self.counts:
            self.log("counted", right.sum().float())
        self.seen.append((logits.detach(), target))
        return F.cross_entropy(logits, target)


def test_metrics_of_the_step_are_those_of_plain_images(fit: Callable[..., Any]) -> None:
    module, alike = Measured(), Measured()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="RegMixup")
        trainer = fit(module, [RegMixup()], plain_loader(12), max_epochs=1)
    for (logits, _), (_, target) in zip(module.seen, plain_loader(12), strict=True):
        plain = logits[: len(target)]
        for metric in (alike.accuracy, alike.auroc, alike.both):
            metric.update(plain, target)

    assert [len(target) for _, target in module.seen] == [2 * len(target) for _, target in plain_loader(12)]
    assert module.accuracy.compute() == alike.accuracy.compute()
    assert torch.equal(module.auroc.compute(), alike.auroc.compute())
    assert module.both.compute() == alike.both.compute()
    right = (plain.argmax(1) == target).float().mean()
    assert trainer.logged_metrics["by_hand"] == trainer.logged_metrics["by_len"] == right
    assert "update" not in [key for key in vars(module.accuracy) if type(vars(module.accuracy)[key]).__name__[0] == "_"]


def test_a_count_that_is_logged_is_warned_about_once(fit: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="RegMixup: 'counted' is computed from the labels of plain and mixed") as told:
        fit(Measured(counts=True), [RegMixup()], plain_loader(12), max_epochs=2)

    assert len([it for it in told if "RegMixup" in str(it.message)]) == 1


def test_the_classifiers_accuracy_is_that_of_plain_images(fit: Callable[..., Any]) -> None:
    seen, told = [], []
    image, target = labelled_images(12).tensors
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    module.network.register_forward_hook(lambda *given: seen.append(given[-1].detach()))
    log = module.scalars.log
    module.scalars.log = lambda stage, values, size: told.append(values["acc"]) or log(stage, values, size)
    fit(module, [RegMixup()], DataLoader([[image, target]], batch_size=None), max_epochs=1)

    assert seen[0].shape == (24, 10)
    assert told == [(seen[0][:12].argmax(1) == target).float().mean()]


def test_sam_sees_the_same_mixture_in_both_passes(fit: Callable[..., Any]) -> None:
    class Keeping(Plain):
        def loss(self, image: Tensor, target: Any) -> Tensor:
            images.append(image)
            return super().loss(image, target)

    images: list[Tensor] = []
    fit(Keeping(dropout=0.0), [SAM(), RegMixup()], plain_loader(12), max_epochs=1)

    assert len(images) == 2 * len(plain_loader(12))
    assert all(torch.equal(*pair) for pair in zip(images[::2], images[1::2], strict=True))


def test_a_batch_with_more_for_each_sample_is_refused(fit: Callable[..., Any]) -> None:
    image, target = labelled_images(6).tensors
    extra = {"image": image, "target": target, "index": torch.arange(6), "epoch": torch.tensor(3)}

    class Mapped(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch["image"], batch["target"]), batch_idx)

    with pytest.raises(ValueError) as refusal:
        fit(Mapped(), [RegMixup()], DataLoader([extra], batch_size=None), max_epochs=1)

    assert str(refusal.value) == (
        "RegMixup: the batch has 'index' for 6 samples beside images and labels, and training on plain and mixed "
        "images makes twice as many; let the loader leave it out."
    )


def test_a_batch_of_one_is_left_alone() -> None:
    batch = [torch.rand(1, 1, 8, 8), torch.tensor([3])]

    assert RegMixup().change(batch, np.random.default_rng(0)) is batch


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "RegMixup: alpha is 0.0; give a number above 0."),
        ({"eta": -1.0}, "RegMixup: eta is -1.0; give a finite number of at least 0."),
        ({"eta": math.inf}, "RegMixup: eta is inf; give a finite number of at least 0."),
        ({"per_sample": 1}, "RegMixup: per_sample is 1; give True or False."),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        RegMixup(**settings)

    assert str(refusal.value) == message


def test_it_cannot_be_one_of_several() -> None:
    from lightning_vision.callbacks.mixing.random_mix import RandomMix

    with pytest.raises(ValueError, match="RegMixup cannot be one of several, for it trains on plain images beside"):
        RandomMix([deepcopy(RegMixup())])

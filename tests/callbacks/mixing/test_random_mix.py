"""RandomMix: which mixer is drawn and how often, that it alone decides the batch, and what it refuses of mixers.

The mathematics of the mixers is proved with them, resume, processes and the neutral run in `tests/conformance`.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch import Tensor, nn

from lightning_vision.callbacks.mixing.cutmix import CutMix, CutMixDraw
from lightning_vision.callbacks.mixing.mixup import MixUp, MixUpDraw
from lightning_vision.callbacks.mixing.random_mix import RandomMix, RandomMixDraw, drawn_mixer
from support.compare import distance
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

WEIGHTS = [1.0, 0.0, 2.0, 5.0]


def three_and_none() -> list[Any]:
    return [MixUp(alpha=1.0), MixUp(alpha=9.0), CutMix(), CutMix(per_sample=True)]


def frequencies(weights: list[float], count: int) -> Tensor:
    """How often each mixer was drawn in so many batches, by the streams that a Trainer gives them."""
    mix = RandomMix(three_and_none(), weights)
    shape = torch.Size((4, 1, 8, 8))
    drawn = [mix.draw(shape, np.random.default_rng((0, 0, n))).mixer for n in range(count)]
    return torch.bincount(torch.tensor(drawn), minlength=len(weights))


def test_mixers_are_drawn_as_often_as_their_weights_say() -> None:
    found = frequencies(WEIGHTS, 2000)
    drawn, expected = found[[0, 2, 3]].numpy(), 2000 * np.array([1, 2, 5]) / 8

    assert chisquare(drawn, expected).pvalue > 0.01
    # A mixer that is forgotten, or one weight in the place of another, is noticed.
    assert chisquare(drawn, expected[[1, 0, 2]]).pvalue < 1e-9
    assert found[1] == 0


def test_a_weight_of_zero_is_never_drawn_wherever_it_stands() -> None:
    for weights in ([0, 1, 0], [0, 0, 0.1], [3, 0, 0]):
        drawn = {drawn_mixer(weights, np.random.default_rng(n)) for n in range(200)}

        assert drawn == {weights.index(max(weights))}


def test_without_weights_all_are_drawn_alike() -> None:
    assert RandomMix(three_and_none()).weights == [1.0] * 4


@pytest.mark.parametrize("targets", ["loss", "soft", "sampled"])
def test_a_batch_is_what_the_drawn_mixer_makes_of_it_alone(targets: Any) -> None:
    """Bit for bit, at equal seed: the choice is drawn on a stream beside that of the mixer."""
    given: dict[str, Any] = {"prob": 0.8, "targets": targets, "num_classes": 10}
    alone = [MixUp(alpha=1.0, **given), MixUp(alpha=9.0, **given), CutMix(**given), CutMix(per_sample=True, **given)]
    mix, batch = RandomMix(three_and_none(), WEIGHTS, **given), [torch.rand(7, 1, 8, 8), torch.arange(7)]
    for n in range(40):
        drawn = mix.draw(batch[0].shape, np.random.default_rng((0, 0, n))).mixer
        ours, theirs = (it.change(batch, np.random.default_rng((0, 0, n))) for it in (mix, alone[drawn]))

        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))
        assert torch.equal(*(getattr(it[1], "twin", it[1]) for it in (ours, theirs)))


@pytest.mark.parametrize("one", [lambda: [MixUp(alpha=1.0)], lambda: [CutMix(alpha=0.3), MixUp(alpha=1.0)]])
def test_one_mixer_is_that_mixer(one: Callable[[], list[Any]], fit: Callable[..., Any]) -> None:
    mixers, modules = one(), [Plain(dropout=0.0)]
    modules.append(deepcopy(modules[0]))
    callbacks = [RandomMix(mixers, [0.0] * (len(mixers) - 1) + [1.0], seed=4), MixUp(alpha=1.0, seed=4)]
    for module, callback in zip(modules, callbacks, strict=True):
        fit(module, [callback], plain_loader(29), max_epochs=2)

    assert distance(modules[0].state_dict(), modules[1].state_dict()) == 0.0


def by_hand(weights: list[float]) -> Callable[..., Tensor]:
    def loss(network: nn.Module, image: Tensor, target: Tensor, random: np.random.Generator) -> Tensor:
        chosen = random.spawn(1)[0].choice(2, p=np.array(weights) / sum(weights))
        partner, share = torch.from_numpy(random.permutation(len(image))), float(random.beta(1.0, 1.0))
        mixed = torch.lerp(image[partner], image, share)
        if chosen == 1:
            half = int(0.5 * math.sqrt(1 - share) * 8)
            row, column = (int(it) for it in random.integers((8, 8), size=2))
            rows, columns = (slice(max(it - half, 0), it + half) for it in (row, column))
            mixed = image.clone()
            mixed[:, :, rows, columns] = image[partner][:, :, rows, columns]
            share = float((64 - mixed[0, 0, rows, columns].numel()) / 64)
        logits = network(mixed)
        return share * F.cross_entropy(logits, target) + (1 - share) * F.cross_entropy(logits, target[partner])

    return loss


def test_training_equals_a_loop_that_draws_the_mixer(apart: Callable[..., float]) -> None:
    assert apart(RandomMix([MixUp(alpha=1.0), CutMix()], [1, 3]), by_hand([1, 3])) == 0.0


@pytest.mark.parametrize("weights", [[3, 1], [1, 0]], ids=["weights swapped", "one forgotten"])
def test_a_wrong_choice_is_noticed(weights: list[float], apart: Callable[..., float]) -> None:
    assert apart(RandomMix([MixUp(alpha=1.0), CutMix()], [1, 3]), by_hand(weights)) > 1e-3


@pytest.mark.parametrize("switch_prob", [0.0, 0.3, 1.0])
def test_with_its_draws_the_batches_are_those_of_timms_switch(switch_prob: float) -> None:
    """timm turns the batch round and its boxes may have odd sides, so both are handed over."""
    image, label = torch.rand(6, 1, 12, 12), torch.arange(6)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=switch_prob, label_smoothing=0.0, num_classes=6)
    mix, seen = RandomMix([MixUp(alpha=0.8), CutMix()], [1 - switch_prob, switch_prob]), set()
    for seed in range(12):
        np.random.seed(seed)
        expected, soft = theirs(image.clone(), label)
        np.random.seed(seed)
        lam, cut = theirs._params_per_batch()
        corners, kept = cutmix_bbox_and_lam(image.shape, lam) if cut else ((0, 0, 0, 0), lam)
        given = torch.tensor([kept]).double()
        drawn = CutMixDraw(label.flip(0), torch.tensor([corners]), given) if cut else MixUpDraw(label.flip(0), given)
        found = mix.mix(image, RandomMixDraw(int(cut), drawn))
        seen.add(cut)

        torch.testing.assert_close(found.images, expected, rtol=0, atol=2e-7)
        assert torch.allclose(soft[label, label], torch.tensor(found.lam).float())
    assert seen == ({False, True} if 0 < switch_prob < 1 else {switch_prob == 1.0})


class Keeping(Plain):
    """Keeps what its training step was given, by epoch."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, *batch))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("off_epoch", [1, 2, None])
@pytest.mark.parametrize("targets", ["loss", "soft"])
def test_from_the_off_epoch_on_images_are_plain(off_epoch: int | None, targets: Any, fit: Callable[..., Any]) -> None:
    module = Keeping()
    given: dict[str, Any] = {"targets": targets, "num_classes": 10}
    fit(module, [RandomMix([MixUp(alpha=1.0), CutMix()], off_epoch=off_epoch, **given)], plain_loader(12), max_epochs=3)
    plain = list(plain_loader(12)) * 3
    mixed = {epoch: not torch.equal(image, own) for (epoch, image, _), (own, _) in zip(module.seen, plain, strict=True)}

    assert mixed == {epoch: off_epoch is None or epoch < off_epoch for epoch in range(3)}
    # One kind of labels for the whole run.
    assert {target.ndim for _, _, target in module.seen} == {1 if targets == "loss" else 2}


def test_resumed_after_the_off_epoch_it_stays_off(tmp_path: Path, fit: Callable[..., Any]) -> None:
    loader, resumed = plain_loader(12), Keeping()
    trainer = fit(Keeping(), [RandomMix([MixUp(alpha=1.0)], off_epoch=1)], loader, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    trainer = quiet_trainer(callbacks=[RandomMix([MixUp(alpha=1.0)], off_epoch=1)], max_epochs=3)
    trainer.fit(resumed, loader, ckpt_path=tmp_path / "two.ckpt", weights_only=True)

    assert [epoch for epoch, _, _ in resumed.seen] == [2] * len(loader)
    assert torch.equal(resumed.seen[0][1], next(iter(loader))[0])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no mixers": (lambda: RandomMix([]), "mixers is []; give a list of at least one, as [MixUp(), CutMix()]."),
    "other weights": (
        lambda: RandomMix([MixUp()], [1, 2]),
        "there are 2 weights of 1 mixers; give each mixer one, or none.",
    ),
    "a negative weight": (
        lambda: RandomMix([MixUp(), CutMix()], [1, -1]),
        "one of weights is -1; give a finite number of at least 0.",
    ),
    "weights of a dict": (
        lambda: RandomMix([MixUp(), CutMix()], {0: 1, 1: 2}),  # type: ignore[arg-type]  # refused
        "weights is {0: 1, 1: 2}; give a list of a number for each mixer, or None.",
    ),
    "one number for weights": (
        lambda: RandomMix([MixUp(), CutMix()], 0.5),  # type: ignore[arg-type]  # refused
        "weights is 0.5; give a list of a number for each mixer, or None.",
    ),
    "all weights zero": (
        lambda: RandomMix([MixUp()], [0]),
        "all weights are 0, so no mixer is ever drawn; to switch it off, set prob=0.",
    ),
    "an epoch below zero": (
        lambda: RandomMix([MixUp()], off_epoch=-1),
        "off_epoch is -1; give a whole number of at least 0.",
    ),
    "no mixer": (
        lambda: RandomMix([nn.ReLU()]),
        "ReLU() mixes no images and labels; give callbacks such as MixUp and CutMix.",
    ),
    "a mixer's prob": (
        lambda: RandomMix([MixUp(prob=0.5)]),
        "prob=0.5 of MixUp would be ignored; say with weights= how often it is drawn, or with prob= of RandomMix how "
        "many batches are mixed.",
    ),
    "a mixer's targets": (
        lambda: RandomMix([CutMix(targets="soft")]),
        "targets='soft' of CutMix would be ignored; give it to RandomMix.",
    ),
    "a mixer's seed": (
        lambda: RandomMix([MixUp(), CutMix(seed=3)]),
        "seed=3 of CutMix would be ignored; give it to RandomMix.",
    ),
    "a mixer that is off": (
        lambda: RandomMix([MixUp(alpha=0.0)]),
        "MixUp is switched off by its own setting, so it mixes nothing; leave it out, or set prob= of RandomMix for "
        "batches that are not to be mixed.",
    ),
    "a RandomMix": (
        lambda: RandomMix([RandomMix([MixUp()])]),
        "RandomMix cannot be one of several, for it draws among mixers itself; use it by itself.",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_ignored_or_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        make()

    assert str(refusal.value) == f"RandomMix: {message}"


def test_a_mixer_that_changes_more_than_images_is_refused() -> None:
    class Relabelling(MixUp):
        def change(self, batch: Any, random: np.random.Generator) -> Any:
            return batch

    with pytest.raises(ValueError, match="RandomMix: Relabelling changes more of a batch than its images, so it"):
        RandomMix([Relabelling()])


def test_copies_share_one_store_of_memory_among_their_mixers() -> None:
    copied = deepcopy(RandomMix([MixUp(), CutMix()]))

    assert all(mixer.blocks is copied.blocks for mixer in copied.mixers)

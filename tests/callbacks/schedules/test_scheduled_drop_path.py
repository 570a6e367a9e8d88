"""ScheduledDropPath against its formula, a loop written by hand, and what drop paths of timm and torchvision then do.

When numbers are set and put back is proved in `hooks/test_values.py`, precisions and processes in `conformance/`.
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from lightning_vision.backbones import create
from lightning_vision.callbacks import Ramp, ScheduledDropPath
from lightning_vision.callbacks.schedules.scheduled_drop_path import depth_shares, drop_probabilities
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Residual(nn.Module):
    """A linear branch that may be dropped."""

    def __init__(self, drop_path: nn.Module, width: int = 10) -> None:
        super().__init__()
        self.body, self.drop_path = nn.Linear(width, width), drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.body(x))


class Branches(Plain):
    """Four of them, and what their probabilities were in each step and in validation."""

    def __init__(self, *drop_paths: nn.Module) -> None:
        super().__init__(dropout=0.0)
        drop_paths = drop_paths or tuple(DropPath(0.1) for _ in range(4))
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *map(Residual, drop_paths))
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(list(drop_probabilities(self).values()))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.005, momentum=0.9)


def trained(*callbacks: Callback, module: Any = None, **options: Any) -> Any:
    """In epochs of ten batches."""
    module = module or seeded(Branches)
    trainer = quiet_trainer(limit_val_batches=0, callbacks=list(callbacks), **{"max_epochs": 1} | options)
    trainer.fit(module, plain_loader(60))
    return module


@pytest.mark.parametrize(
    ("settings", "shares", "times"),
    [
        ({}, [0.25, 0.5, 0.75, 1.0], [step / 10 for step in range(10)]),
        ({"depth": "none"}, [1.0] * 4, [step / 10 for step in range(10)]),
        ({"shape": "cosine"}, [0.25, 0.5, 0.75, 1.0], [(1 - math.cos(math.pi * it / 10)) / 2 for it in range(10)]),
        ({"begin": 2, "length": 4, "interval": "step"}, [0.25, 0.5, 0.75, 1.0], [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
    ],
    ids=["linear", "all alike", "cosine", "a stretch"],
)
def test_row_18_probabilities_are_the_final_one_times_depth_times_time(
    settings: dict[str, Any], shares: list[float], times: list[float]
) -> None:
    module = trained(ScheduledDropPath(final=0.4, **settings))

    assert len(module.seen) == 10
    for seen, time in zip(module.seen, times, strict=True):
        assert seen == pytest.approx([0.4 * share * time for share in shares], abs=1e-12)
    assert list(drop_probabilities(module).values()) == [0.1] * 4


def test_row_18_a_final_probability_of_zero_is_the_identity() -> None:
    ours = trained(ScheduledDropPath(final=0.0))
    without = trained(module=seeded(Branches, *[nn.Identity() for _ in range(4)]))

    assert distance(ours.state_dict(), without.state_dict()) == 0.0
    assert distance(ours.state_dict(), trained().state_dict()) > 1e-3


@pytest.mark.parametrize("make", [DropPath, lambda rate: StochasticDepth(rate, "row")], ids=["timm", "torchvision"])
def test_row_18_the_expected_output_over_masks_is_the_deterministic_one(make: Any) -> None:
    """Linear branches with independent masks of mean 1: the expectation of their product is the product without masks.

    Four standard errors over 40,000 masks, for each of ten outputs.
    """
    module = seeded(Branches, *[make(0.1) for _ in range(4)])
    trained(ScheduledDropPath(final=0.5), module=module, max_steps=1, max_epochs=-1)
    for layer, share in zip(module.network[2:], (0.25, 0.5, 0.75, 1.0), strict=True):
        setattr(layer.drop_path, "drop_prob" if make is DropPath else "p", 0.5 * share)
    image = torch.randn(1, 64).expand(40_000, 64)
    with torch.no_grad():
        outputs, expected = module.train()(image).double(), module.eval()(image[:1]).double()
    error = outputs.std(0) / len(image) ** 0.5

    assert ((outputs.mean(0) - expected).abs() < 4 * error).all()
    assert float(error.max()) < 0.02
    unscaled = [DropPath(0.5 * share, scale_by_keep=False) for share in (0.25, 0.5, 0.75, 1.0)]
    for layer, drop_path in zip(module.network[2:], unscaled, strict=True):
        layer.drop_path = drop_path
    with torch.no_grad():
        assert not ((module.train()(image).double().mean(0) - expected).abs() < 4 * error).all()


def test_row_18_evaluation_is_unaffected() -> None:
    class Answers(Callback):
        """What the network answers at the end of training, in evaluation mode."""

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            assert drop_probabilities(pl_module)["network.5.drop_path.drop_prob"] > 0.3
            images = labelled_images(4).tensors[0]
            pl_module.eval()
            self.equal = torch.equal(pl_module(images), bare(pl_module)(images))

    def bare(module: Branches) -> Branches:
        plain = Branches(*[nn.Identity() for _ in range(4)])
        plain.load_state_dict(module.state_dict())
        return plain.eval()

    answers = Answers()
    trained(ScheduledDropPath(final=0.4), answers)

    assert answers.equal


def test_row_18_a_resumed_run_continues_the_schedule(tmp_path: Path) -> None:
    def run(path: str | None = None) -> Branches:
        module = seeded(Branches)
        callbacks = [ScheduledDropPath(final=0.4), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7)]
        trainer = quiet_trainer(max_epochs=2, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, ResumableLoader(labelled_images(30), 6), ckpt_path=path)
        return module

    straight = run()
    resumed = run(str(tmp_path / "step=7.ckpt"))

    assert len(straight.seen) == 10
    assert resumed.seen == straight.seen[7:]
    assert resumed.seen[0] == pytest.approx([0.4 * share * 0.7 for share in (0.25, 0.5, 0.75, 1.0)])


def by_hand(shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0), shift: int = 0, steps: int = 10) -> Branches:
    """Trains with probabilities that grow to 0.4."""
    module = seeded(Branches).train()
    optimizer = module.configure_optimizers()
    for step, (image, target) in enumerate(plain_loader(60)):
        for layer, share in zip(module.network[2:], shares, strict=True):
            layer.drop_path.drop_prob = 0.4 * share * min(1.0, (step + shift) / steps)
        module.loss(image, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


def test_training_equals_a_loop_written_by_hand_and_three_wrong_ones_do_not() -> None:
    ours = trained(ScheduledDropPath(final=0.4)).state_dict()

    assert distance(ours, by_hand().state_dict()) == 0.0
    assert distance(ours, by_hand(shares=(1.0, 0.75, 0.5, 0.25)).state_dict()) > 1e-3
    assert distance(ours, by_hand(shift=1).state_dict()) > 1e-3
    assert distance(ours, by_hand(steps=20).state_dict()) > 1e-3


@pytest.mark.parametrize(
    ("make", "layers", "paths"),
    [
        (lambda: create("resnet20_cifar", num_classes=10, in_channels=3, drop_path_rate=0.1), 8, 8),
        (lambda: timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.1), 11, 22),
        (lambda: timm.create_model("convnext_atto", drop_path_rate=0.1), 11, 11),
        (lambda: torchvision.models.convnext_tiny(stochastic_depth_prob=0.1), 18, 18),
    ],
    ids=["ours", "two a block", "the first left out", "torchvision"],
)
def test_layers_count_as_timm_counts_blocks(make: Any, layers: int, paths: int) -> None:
    """The k-th of n gets k / n, which is timm's own rule where only its first block, whose rate is 0, has none."""
    with torch.device("meta"):
        built = drop_probabilities(make())
    index, own = (depth_shares(built, it) for it in ("index", "own"))

    assert len(built) == paths
    assert sorted(set(index.values())) == pytest.approx([it / layers for it in range(1, layers + 1)])
    assert list(index.values()) == sorted(index.values())
    if built[next(iter(built))] > 0:
        assert list(own.values()) == pytest.approx(list(index.values()))


def test_own_keeps_the_proportions_with_which_the_network_was_built() -> None:
    built = [DropPath(it) for it in (0.0, 0.3, 0.1, 0.2)]
    module = trained(ScheduledDropPath(final=0.6, depth="own"), module=seeded(Branches, *built))

    assert module.seen[5] == pytest.approx([0.0, 0.3, 0.1, 0.2])


def test_of_several_networks_one_can_be_named() -> None:
    class Pupil(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = Branches().network

    module = trained(ScheduledDropPath(final=0.4, network="network"), module=Pupil())

    assert module.seen[5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("callbacks", "module", "message"),
    [
        (
            [ScheduledDropPath()],
            Plain(),
            "ScheduledDropPath: Plain has no drop paths (timm's DropPath or torchvision's StochasticDepth), so there "
            "is nothing to schedule; build the network with a small rate, as with drop_path_rate=0.1, for at 0 timm "
            "leaves them out.",
        ),
        (
            [ScheduledDropPath(depth="own")],
            Branches(DropPath(0.0)),
            "ScheduledDropPath: depth='own' asks for what the drop paths were built with, which is 0 for all; pass "
            "depth='index', or build the network with a drop_path_rate above 0.",
        ),
        (
            [ScheduledDropPath(network="student")],
            Branches(),
            "ScheduledDropPath: network is 'student', and Branches has no attribute `student`; name a submodule.",
        ),
        (
            [ScheduledDropPath(), Ramp("network.*.drop_prob", end=0.5)],
            Branches(),
            "ScheduledDropPath: ScheduledDropPath and Ramp would both set network.2.drop_path.drop_prob; keep one of "
            "them.",
        ),
    ],
    ids=["none", "all zero", "no such network", "two"],
)
def test_what_cannot_be_is_refused_before_the_first_step(callbacks: Any, module: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trained(*callbacks, module=module)

    assert module.global_step == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final": 1.0}, "final is 1, which never keeps a path; give a number below 1."),
        ({"final": -0.1}, "final is -0.1; give a number from 0 to 1."),
        ({"depth": "block"}, "depth is 'block'; give index, own or none."),
        ({"shape": "exponential"}, "shape is 'exponential'; give linear or cosine."),
        (
            {"begin": 0.5, "length": 0.7},
            "begin=0.5 and length=0.7 are shares of the training and go past its end; give",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'ScheduledDropPath: {message}')}"):
        ScheduledDropPath(**settings)

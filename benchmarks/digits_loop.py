"""The shipped training on digits against a loop written by hand."""

import copy
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.cli import VisionCLI
from lightning_vision.commands import fit

from .handwritten import Recipe, Samples, train
from .side_by_side import Row, take_turns

__all__ = ["rows"]

CONFIG = ["--config", "classification/digits", "--trainer.accelerator", "cpu"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
NO_CHECKPOINTS = ["--trainer.enable_checkpointing", "false", "--callbacks.best", "null", "--callbacks.last", "null"]
NO_FILES = ["--trainer.logger", "false", *NO_CHECKPOINTS]


def rows(quick: bool) -> list[Row]:
    """Train with everything that the shipped config does but its progress bar, then without its files, too.

    Args:
        quick: One repetition of one epoch.
    """
    return [
        *_rows("`classification/digits`", "by hand, with logs and checkpoints", quick, [], "<= 1.20"),
        *_rows("the same, no logs, no checkpoints", "by hand, no files", quick, NO_FILES),
    ]


def _rows(what: str, against: str, quick: bool, flags: list[str], bar: str = "") -> list[Row]:
    last: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}
    given = [*CONFIG, *QUIET, *flags, *(["--trainer.max_epochs", "1"] if quick else [])]
    with TemporaryDirectory() as folder:

        def prepare_ours() -> Callable[[], None]:
            cli = VisionCLI(fit.run, [*given, "--trainer.default_root_dir", folder])

            def run() -> None:
                cli.trainer.fit(cli.model, datamodule=cli.datamodule)
                last["ours"] = cli.model.network, cli.trainer.callback_metrics

            return run

        def prepare_peer() -> Callable[[], None]:
            cli = VisionCLI(fit.run, [*given, "--trainer.default_root_dir", folder])
            network, samples, recipe = copy.deepcopy(cli.model.network), _samples(cli), _recipe(cli)

            def run() -> None:
                last["peer"] = network, train(network, samples, recipe, None if flags else cli.run_dir)

            return run

        times = take_turns({"peer": prepare_peer, "ours": prepare_ours}, *(1, 0) if quick else (7, 1))
    _assert_equal(*last["ours"], *last["peer"])
    ours, peer = times["ours"], times["peer"]
    return [
        Row.slowdown(what, against, ours["wall"], peer["wall"], "wall", bar),
        Row.slowdown(what, against, ours["cpu"], peer["cpu"], "cpu"),
    ]


def _samples(cli: VisionCLI) -> Samples:
    """The digits, in the orders and windows that `cli` will train with."""
    data: Any = cli.datamodule
    sampler, epochs, shift = data.train_dataloader().sampler, range(cli.trainer.max_epochs), data.augmentation.padding
    train, val = data.train_set, data.val_set
    padded = nn.functional.pad(train.images, (shift,) * 4)
    orders, windows = [], []
    # Augmenting an image of its own pixels' numbers tells where the window was.
    width = padded.shape[-1]
    numbers = torch.arange(padded[0].numel(), dtype=torch.uint8).view(padded[0].shape).expand(padded.shape)
    for epoch in epochs:
        sampler.set_epoch(epoch)
        orders.append(sampler.positions())
        first = data.augment(numbers, torch.arange(len(padded)), epoch)[:, 0, shift, shift].long()
        windows.append(torch.stack([first // width, first % width], 1))
    return Samples(data.normalise(padded), train.targets, orders, windows, data.normalise(val.images), val.targets)


def _recipe(cli: VisionCLI) -> Recipe:
    model = cli.config.model.init_args
    optimizer, schedule = model.optimizer.init_args, model.lr_scheduler.init_args
    return Recipe(
        cli.datamodule.batch_size,
        cli.trainer.log_every_n_steps,
        optimizer.lr,
        schedule.T_max,
        optimizer.weight_decay,
        model.label_smoothing,
    )


def _assert_equal(
    ours: nn.Module, our_metrics: dict[str, Tensor], peer: nn.Module, peer_metrics: dict[str, Tensor]
) -> None:
    for (name, value), other in zip(ours.state_dict().items(), peer.state_dict().values(), strict=True):
        assert torch.equal(value, other), f"{name} differs: the two sides trained differently"
    torch.testing.assert_close({name: our_metrics[name] for name in peer_metrics}, peer_metrics)

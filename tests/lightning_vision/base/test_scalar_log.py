"""What reaches loggers and callbacks is what `self.log(on_step=True, on_epoch=True)` would have sent."""

import csv
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import distributed as dist

from lightning_vision.base.scalar_log import ScalarLog


class Batches:
    """Batches of 5, 5, 5, 5 and 3 numbers, different on each rank; resumes where it was."""

    def __init__(self):
        self.position = 0
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.batches = torch.rand(23, generator=torch.Generator().manual_seed(rank)).split(5)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for position in range(self.position % len(self), len(self)):
            self.position = position + 1
            yield self.batches[position]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Twice(LightningModule):
    """Logs each scalar through `ScalarLog` and, under `stock/`, through `self.log`."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.scalars = ScalarLog(self)
        self.means = []

    def _both(self, stage, batch):
        values = {"loss": (self.w - batch).square().mean(), "other": batch.max()}
        self.scalars.log(stage, values, len(batch))
        for name, value in values.items():
            options = {"on_step": stage == "train", "on_epoch": True, "batch_size": len(batch), "sync_dist": True}
            self.log(f"stock/{stage}/{name}", value, **options)
        return values["loss"]

    def training_step(self, batch, batch_idx):
        return self._both("train", batch)

    def validation_step(self, batch, batch_idx):
        self._both("val", batch)

    def on_train_epoch_start(self):
        self.scalars.start("train")

    def on_train_epoch_end(self):
        self.scalars.finish("train")
        self.means.append(float(self.trainer.callback_metrics["train/loss_epoch"]))

    def on_validation_epoch_end(self):
        self.scalars.finish("val")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["sums"] = self.scalars.state()

    def on_load_checkpoint(self, checkpoint):
        self.scalars.load(checkpoint["sums"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return Trainer(**quiet | {"enable_checkpointing": "callbacks" in options, "max_epochs": 2} | options)


def pairs(metrics):
    """`(ours, stock)` for each value that both ways have logged."""
    return {name: (metrics[name], metrics[f"stock/{name}"]) for name in metrics if f"stock/{name}" in metrics}


def fit(**options):
    run = trainer(**options)
    run.fit(Twice(), Batches(), Batches())
    return {name: (float(a), float(b)) for name, (a, b) in pairs(run.callback_metrics).items()}


EPOCH_NAMES = {"train/loss_epoch", "train/other_epoch", "val/loss", "val/other"}


def test_epoch_means_equal_those_of_lightning():
    metrics = fit()

    assert metrics.keys() == EPOCH_NAMES
    assert all(ours == pytest.approx(stock, rel=1e-6) for ours, stock in metrics.values())


def test_epoch_means_equal_those_of_lightning_on_two_ranks(two_ranks):
    first, second = two_ranks(lambda: fit(strategy="ddp", devices=2))

    assert first == second
    assert all(ours == pytest.approx(stock, rel=1e-6) for ours, stock in first.values())
    assert first["train/loss_epoch"] != fit()["train/loss_epoch"]


def advice(module):
    """What Lightning says to `module` about logging without `sync_dist`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(strategy="ddp", devices=2, max_epochs=1).fit(module, Batches(), Batches())
    return [str(warning.message) for warning in caught if "recommended to use `self.log" in str(warning.message)]


class Advised(Twice):
    """Logs a mean that nobody sums over the ranks, under a name like ours."""

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("train/own", 1.0)


def test_what_is_summed_already_brings_no_advice_and_users_get_theirs_as_ever(two_ranks):
    ours, own = zip(*two_ranks(lambda: (advice(Twice()), advice(Advised()))), strict=True)

    assert ours == ([], [])
    assert len(own[0]) == 1  # rank 0 speaks for all


def test_importing_the_log_silences_no_warning():
    with warnings.catch_warnings():
        warnings.resetwarnings()
        runpy.run_module("lightning_vision.base.scalar_log")

        assert warnings.filters == []


@pytest.mark.parametrize(
    ("accumulate", "rows_logged"), [(1, 5), (2, 3)], ids=["every batch steps", "windows of 2, 2, 1"]
)
def test_loggers_receive_the_same_steps(accumulate, rows_logged, tmp_path):
    logger = CSVLogger(tmp_path)
    run = trainer(logger=logger, log_every_n_steps=2, accumulate_grad_batches=accumulate)
    run.fit(Twice(), Batches(), Batches())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))

    logged = [(row["step"], row["train/loss_step"]) for row in rows if row["train/loss_step"]]
    assert len(logged) == rows_logged
    assert logged == [(row["step"], row["stock/train/loss_step"]) for row in rows if row["stock/train/loss_step"]]


class Interrupt(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            raise RuntimeError("killed")


def straight_and_resumed(folder, kept=7, **options):
    """Epoch means of two epochs of five steps, run through and killed after step 8 with a checkpoint of step `kept`."""
    straight = Twice()
    trainer(**options).fit(straight, Batches(), Batches())
    keep = ModelCheckpoint(folder, "kept", every_n_train_steps=kept)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(callbacks=[keep, Interrupt()], **options).fit(Twice(), Batches(), Batches())
    resumed = Twice()
    trainer(**options).fit(resumed, Batches(), Batches(), ckpt_path=f"{folder}/kept.ckpt", weights_only=True)
    return straight.means, resumed.means


@pytest.mark.parametrize("kept", [7, 5], ids=["in mid-epoch", "after the last step of an epoch"])
def test_a_resumed_run_has_the_epoch_mean_of_the_straight_run(kept, tmp_path):
    straight, resumed = straight_and_resumed(tmp_path, kept)

    assert (len(straight), len(resumed)) == (2, 1)
    assert straight[1:] == resumed


def test_each_rank_restores_its_own_sums(two_ranks, tmp_path):
    first, second = two_ranks(lambda: straight_and_resumed(tmp_path, strategy="ddp", devices=2))

    assert first == second
    assert first[0][1:] == first[1]


def test_without_the_saved_sums_the_epoch_mean_would_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(Twice, "on_load_checkpoint", lambda module, checkpoint: None)
    straight, resumed = straight_and_resumed(tmp_path)

    assert straight[1:] != resumed


def test_sums_of_two_ranks_are_all_kept_by_one():
    log = ScalarLog(Twice())
    vectors = torch.tensor([[2.0, 1.0], [7.0, 2.0]], dtype=torch.float64)
    log.load({"epoch": 0, "stages": {"train": {"names": [["loss"]], "ranks": vectors}}})

    assert log.state()["stages"]["train"]["ranks"].tolist() == [[9.0, 3.0]]


def test_a_step_without_trainer_counts_and_logs_nothing():
    module = Twice()
    module.scalars.log("train", {"loss": torch.tensor(3.0)}, 2)

    assert module.scalars.state()["stages"]["train"]["names"] == [["loss"]]

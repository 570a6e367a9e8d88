"""Killed and resumed equals straight, for every moment at which Lightning writes a checkpoint.

The module has batch norm, dropout, momentum and a learning rate that moves each step; epochs have ten batches. Killed
means: as the batch after a step begins, or as soon as the checkpoint is written. Two ranks, digits, interruption by
Ctrl-C and Lightning's own behaviour have files of their own.
"""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision

from lightning_vision.callbacks import ExactResume
from lightning_vision.callbacks.resume import exact_resume
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import DictBatches, Plain, TwoOptimizers
from support.resuming import KilledError, Recorder, differences, newest, record

# Lightning remarks that the resumed run writes where the killed one did; so it shall.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


def resumable_loaders():
    return ResumableLoader(labelled_images(60), 6), plain_loader(24, 6)


def three_runs(
    folder,
    saving,
    kill_at,
    *,
    module=Plain,
    loaders=resumable_loaders,
    callbacks=lambda: [ExactResume()],
    in_the_act=False,
    **options,
):
    """The straight run, the killed one, and the one resumed from the newest checkpoint with other random draws."""

    def run(name, seed, **how):
        torch.manual_seed(1)
        model = module()
        for stream in (torch.manual_seed, np.random.seed, random.seed):
            stream(seed)
        writer = ModelCheckpoint(folder / name, filename="{epoch}-{step}", save_top_k=-1, **saving)
        return record(model, loaders, [*callbacks(), writer], **{"max_epochs": 3} | options, **how)

    straight = run("straight", 3)
    killed = run("killed", 3, kill_at=kill_at, in_the_act=in_the_act)
    return straight, killed, run("killed", 4, ckpt_path=newest(folder / "killed"))


MOMENTS = {
    "every step that four divides": ({"every_n_train_steps": 4}, {}),
    "every fifth step, also the epoch's last": ({"every_n_train_steps": 5}, {}),
    "every fourth step, validation every fifth": ({"every_n_train_steps": 4}, {"val_check_interval": 5}),
    "every fifth step, before validation": ({"every_n_train_steps": 5}, {"val_check_interval": 5}),
    "every fifth step, no validation": ({"every_n_train_steps": 5}, {"limit_val_batches": 0}),
    "end of validation inside an epoch": ({"save_on_train_epoch_end": False}, {"val_check_interval": 5}),
    "end of validation at the epoch's last batch": ({"save_on_train_epoch_end": False}, {}),
    "end of an epoch": ({"save_on_train_epoch_end": True}, {}),
    "end of an epoch of a run counted in steps": (
        {"save_on_train_epoch_end": True},
        {"max_epochs": -1, "max_steps": 30},
    ),
    "inside an epoch of a run counted in steps": ({"every_n_train_steps": 4}, {"max_epochs": -1, "max_steps": 30}),
    "window of three, on its step": ({"every_n_train_steps": 3}, {"accumulate_grad_batches": 3}),
    "window of three, validation inside it": (
        {"save_on_train_epoch_end": False},
        {"accumulate_grad_batches": 3, "val_check_interval": 5},
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_straight(moment, tmp_path):
    saving, options = MOMENTS[moment]
    kill_at = 7 if "accumulate_grad_batches" in options else 16

    assert differences(*three_runs(tmp_path, saving, kill_at, **options)) == []


@pytest.mark.parametrize("kill_at", [pytest.param(12, marks=pytest.mark.slow), 17])
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_followed_the_checkpoint_is_made_up_for_but_for_one_row(moment, kill_at, tmp_path):
    """A process killed after writing the file and before handing the moment's own row to the loggers loses that row."""
    saving, options = MOMENTS[moment]
    kill_at = kill_at // 2 if "accumulate_grad_batches" in options else kill_at
    straight, killed, resumed = three_runs(tmp_path, saving, kill_at, in_the_act=True, **options)

    assert differences(straight, killed, resumed, lost_rows=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("in_the_act", [False, True])
@pytest.mark.parametrize("moment", [name for name in MOMENTS if "window" not in name])
def test_killed_at_any_step_and_resumed_equals_straight(moment, in_the_act, tmp_path):
    saving, options = MOMENTS[moment]
    for kill_at in range(11, 21):
        runs = three_runs(tmp_path / str(kill_at), saving, kill_at, in_the_act=in_the_act, **options)

        assert differences(*runs, lost_rows=int(in_the_act)) == [], f"killed at step {kill_at}"


@pytest.mark.parametrize("module", [DictBatches, TwoOptimizers])
def test_dict_batches_and_manual_optimisation_resume_exactly(module, tmp_path):
    def as_dicts(samples):
        return {"image": torch.stack([image for image, _ in samples]), "target": torch.stack([y for _, y in samples])}

    def loaders():
        collate = {"collate_fn": as_dicts} if module is DictBatches else {}
        return ResumableLoader(labelled_images(60), 6, **collate)

    # two optimizers count two steps a batch
    assert differences(*three_runs(tmp_path, {"every_n_train_steps": 4}, 13, module=module, loaders=loaders)) == []


class NoisyImages(Dataset):
    """Augments with all three global streams, in the loader's process."""

    def __init__(self):
        self.images = labelled_images(60)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, target = self.images[index]
        return image * random.uniform(0.8, 1.2) + torch.randn(1) / 10 + float(np.random.normal(0, 0.1)), target


def test_augmentation_with_the_global_streams_continues(tmp_path):
    def loaders():
        return ResumableLoader(NoisyImages(), 6)

    assert differences(*three_runs(tmp_path, {"every_n_train_steps": 4}, 16, loaders=loaders)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_ordinary_shuffling_loader_resumes_exactly_at_the_end_of_an_epoch(workers, tmp_path):
    def loaders():
        return DataLoader(labelled_images(60), 6, shuffle=True, num_workers=workers)

    straight, killed, resumed = three_runs(tmp_path, {"every_n_epochs": 1}, 22, loaders=loaders)

    assert differences(straight, killed, resumed) == []
    assert not torch.equal(straight.batches[0][2][0], straight.batches[10][2][0])


class DrawsInHooks(Callback):
    """Another callback that uses the global stream when a fit, and when an epoch, begins."""

    def on_train_start(self, trainer, pl_module):
        torch.rand(7)

    def on_train_epoch_start(self, trainer, pl_module):
        torch.rand(3)


@pytest.mark.parametrize("saving", [{"every_n_train_steps": 4}, {"every_n_epochs": 1}])
def test_draws_of_other_callbacks_at_the_start_do_not_move_the_streams(saving, tmp_path):
    def loaders():
        return ResumableLoader(labelled_images(60), 6)

    def callbacks():
        return [ExactResume(), DrawsInHooks()]

    assert differences(*three_runs(tmp_path, saving, 26, loaders=loaders, callbacks=callbacks)) == []


class WithMetrics(Plain):
    """Logs a metric object, a collection with a compute group, and a mean it computes itself when the epoch ends."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10)
        self.group = MetricCollection([MulticlassAccuracy(10), MulticlassPrecision(10)], prefix="group/")
        self.own = MeanMetric()
        self.seen = MulticlassAccuracy(10)

    def training_step(self, batch, batch_idx):
        image, target = batch
        logits = self(image)
        loss = torch.nn.functional.cross_entropy(logits, target)
        self.accuracy(logits, target)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.group.update(logits, target)
        self.log_dict(dict(self.group), on_step=False, on_epoch=True)
        self.log("largest", logits.detach().max(), reduce_fx="max", on_step=False, on_epoch=True)
        self.own.update(loss)
        return loss

    def on_train_epoch_end(self):
        self.log("own", self.own.compute())
        self.own.reset()

    def validation_step(self, batch, batch_idx):
        self.seen(self(batch[0]), batch[1])
        self.log("seen", self.seen)


@pytest.mark.parametrize("moment", list(MOMENTS)[1:8])
def test_metric_objects_and_other_reductions_continue(moment, tmp_path):
    saving, options = MOMENTS[moment]

    assert differences(*three_runs(tmp_path, saving, 16, module=WithMetrics, **options)) == []


class Plateau(Plain):
    """The learning rate falls whenever the training loss is not far below its best."""

    interval = "epoch"

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.5)
        watch = {"monitor": "train/loss", "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **watch}}


class PlateauOfSteps(Plateau):
    interval = "step"


@pytest.mark.parametrize("module", [Plateau, PlateauOfSteps])
@pytest.mark.parametrize("moment", list(MOMENTS)[:8])
def test_a_scheduler_that_watches_a_metric_misses_no_update(moment, module, tmp_path):
    saving, options = MOMENTS[moment]

    assert differences(*three_runs(tmp_path, saving, 16, module=module, **options)) == []


def test_a_changing_accumulation_factor_continues(tmp_path):
    def callbacks():
        return [ExactResume(), GradientAccumulationScheduler({0: 1, 1: 2})]

    runs = three_runs(tmp_path, {"every_n_train_steps": 3}, 14, callbacks=callbacks)

    assert differences(*runs) == []


def test_a_finished_run_is_prolonged_from_a_checkpoint_written_after_its_fit(tmp_path):
    def run(seed, max_epochs, **how):
        torch.manual_seed(1)
        module = Plain()
        torch.manual_seed(seed)
        trainer_of = LastTrainer()
        outcome = record(module, resumable_loaders, [ExactResume(), trainer_of], max_epochs=max_epochs, **how)
        return outcome, trainer_of.trainer

    straight, _ = run(3, 3)
    short, trainer = run(3, 2)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    prolonged, _ = run(4, 3, ckpt_path=tmp_path / "after.ckpt")

    assert differences(straight, short, prolonged) == []


class LastTrainer(Callback):
    def setup(self, trainer, pl_module, stage):
        self.trainer = trainer


class FailsInValidation(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == 20 and batch_idx == 2:
            raise KilledError


def test_a_checkpoint_of_a_failed_validation_repeats_the_whole_validation(tmp_path):
    saving = {"every_n_train_steps": 100, "save_on_exception": True}
    failing = iter([False, True, False])

    def callbacks():
        return [ExactResume(), *([FailsInValidation()] if next(failing) else [])]

    # validation with a resumable loader, which draws nothing
    def loaders():
        return ResumableLoader(labelled_images(60), 6), ResumableLoader(labelled_images(24), 6)

    straight, killed, resumed = three_runs(tmp_path, saving, None, callbacks=callbacks, loaders=loaders)

    assert newest(tmp_path / "killed").name == "epoch=1-step=20.ckpt"
    assert differences(straight, killed, resumed) == []


# ---------------------------------------------------------------------------------------------------------------------
# Mutants: what the proof above must be able to see
# ---------------------------------------------------------------------------------------------------------------------


def test_without_the_callback_the_runs_differ(tmp_path):
    found = differences(*three_runs(tmp_path, {"every_n_train_steps": 4}, 16, callbacks=lambda: []))

    assert any("weights" in line for line in found)
    assert any("train/loss_epoch" in line for line in found)


def test_with_a_loader_that_does_not_resume_the_runs_differ_and_a_sentence_says_so(tmp_path):
    with pytest.warns(UserWarning, match="ExactResume: DataLoader cannot continue inside an epoch"):
        found = differences(*three_runs(tmp_path, {"every_n_train_steps": 4}, 16, loaders=plain_loader))

    assert any("weights" in line for line in found)


NEEDED = {
    "write_streams": "every fifth step, before validation",
    "write_means": "every fifth step, before validation",
    "write_metrics": "every fifth step, before validation",
    "rewrite": "every fifth step, before validation",
    "take_over": "every fifth step, no validation",
}


@pytest.mark.parametrize("forgotten", NEEDED)
def test_each_part_of_the_restoration_is_needed(forgotten, tmp_path, monkeypatch):
    monkeypatch.setattr(exact_resume, forgotten, lambda *args: None)
    saving, options = MOMENTS[NEEDED[forgotten]]
    runs = three_runs(tmp_path, saving, 20, module=WithMetrics, in_the_act=True, **options)

    assert differences(*runs, lost_rows=1) != []


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoint and its neighbours
# ---------------------------------------------------------------------------------------------------------------------


def fit(tmp_path, callbacks, loaders=plain_loader, **options):
    writer = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    return record(Plain(), loaders, [*callbacks, writer], max_epochs=1, **options)


def written(tmp_path, callbacks):
    """A checkpoint from inside an epoch."""
    fit(tmp_path, callbacks)
    return tmp_path / "step=4.ckpt"


def test_a_run_with_it_equals_one_without_it(tmp_path):
    def run(callbacks):
        torch.manual_seed(5)
        outcome = fit(tmp_path, callbacks)
        return outcome.state, outcome.rows, torch.get_rng_state(), random.getstate(), np.random.get_state()[1]

    with_it, without_it = run([ExactResume()]), run([])

    assert torch.equal(with_it[2], without_it[2])
    assert with_it[1] == without_it[1]
    assert with_it[3] == without_it[3]
    assert np.array_equal(with_it[4], without_it[4])
    assert all(torch.equal(value, without_it[0]["weights"][key]) for key, value in with_it[0]["weights"].items())


def test_the_checkpoint_holds_plain_data_and_loads_without_the_callback(tmp_path):
    path = written(tmp_path, [ExactResume()])
    state = torch.load(path, weights_only=True)["callbacks"]["ExactResume"]

    with pytest.warns(UserWarning, match="Please add the following callbacks"):
        resumed = fit(tmp_path, [], ckpt_path=path)

    assert set(state) == {"position", "accumulate_grad_batches", "ranks"}
    assert resumed.state["steps"] == (10, 1)


def test_a_checkpoint_written_without_it_is_continued_with_a_warning(tmp_path):
    path = written(tmp_path, [])

    with pytest.warns(UserWarning, match="ExactResume: the checkpoint was written without it"):
        fit(tmp_path, [ExactResume()], ckpt_path=path)


def test_weights_only_files_hold_nothing_of_it(tmp_path):
    writer = ModelCheckpoint(tmp_path, save_weights_only=True)
    record(Plain(), plain_loader, [ExactResume(), writer], max_epochs=1)

    assert "callbacks" not in torch.load(newest(tmp_path), weights_only=True)


def test_evaluating_a_checkpoint_leaves_the_streams_alone_and_the_next_fit_fresh(tmp_path):
    path = written(tmp_path, [ExactResume()])
    trainer = Trainer(
        accelerator="cpu",
        logger=Recorder(),
        callbacks=[ExactResume()],
        max_epochs=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = Plain()
    trainer.validate(module, plain_loader(), ckpt_path=path, weights_only=True, verbose=False)
    trainer.fit(module, plain_loader())

    assert trainer.global_step == 10


def test_a_checkpoint_from_inside_a_step_is_named_as_such(tmp_path):
    class FailsInStep(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.global_step == 6:
                raise RuntimeError("no")

    writer = ModelCheckpoint(tmp_path, save_on_exception=True, filename="failed")
    with pytest.raises(RuntimeError):
        record(Plain(), resumable_loaders, [ExactResume(), writer, FailsInStep()], max_epochs=1)

    with pytest.warns(UserWarning, match="ExactResume: the checkpoint was written in the middle of batch 6 "):
        record(Plain(), resumable_loaders, [ExactResume()], max_epochs=1, ckpt_path=tmp_path / "failed.ckpt")


def test_a_resumable_loader_without_length_is_warned_about(tmp_path):
    class Endless:
        def __iter__(self):
            yield from plain_loader()

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    with pytest.warns(UserWarning, match="ExactResume: Endless has no length, so Lightning reads one batch ahead"):
        fit(tmp_path, [ExactResume()], loaders=Endless)


def test_another_number_of_processes_is_refused(tmp_path):
    path = written(tmp_path, [ExactResume()])
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["ExactResume"]["ranks"] *= 2
    torch.save(checkpoint, path)

    with pytest.raises(ValueError) as refusal:
        fit(tmp_path, [ExactResume()], ckpt_path=path)

    assert str(refusal.value) == (
        "ExactResume: the checkpoint was written by 2 processes and this run has 1, so it cannot continue exactly; "
        "use as many as before, or leave ExactResume out."
    )


def test_two_of_it_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ExactResume: the Trainer has two of them"):
        fit(tmp_path, [ExactResume(), ExactResume()])


def test_a_sharding_strategy_is_refused(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})

    with pytest.raises(ValueError, match="ExactResume: Sharded keeps parameters and gradients to itself"):
        ExactResume().setup(trainer, Plain(), "fit")

"""What Lightning does by itself, on which `callbacks/hooks` leans or which it mends.

When one of these turns red, Lightning has changed there: look at the named seam, which may have become needless.
"""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _BatchProgress, _Progress
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric

from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import newest, record

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


def loaders():
    return ResumableLoader(labelled_images(60), 6), ResumableLoader(labelled_images(24), 6)


def killed_and_resumed(folder, saving, kill_at, in_the_act=True, module=Plain, **options):
    """Rows that the resumed run logged, and the batches it trained on, with nothing of this project in the Trainer."""

    def run(**how):
        torch.manual_seed(1)
        writer = ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **saving)
        return record(module(dropout=0.0), loaders, [writer], **{"max_epochs": 3} | options, **how)

    run(kill_at=kill_at, in_the_act=in_the_act)
    resumed = run(ckpt_path=newest(folder))
    return resumed, [(step, name) for step, row in resumed.rows for name in row if name != "epoch"]


def test_a_resumed_epoch_logs_the_mean_of_its_rest(tmp_path):
    """hooks/_running_means: the mean of batches 15 to 19 is called the epoch's."""
    resumed, _ = killed_and_resumed(tmp_path, {"every_n_train_steps": 5}, 15)
    whole = record_alone(tmp_path / "whole")

    def epoch_mean(run):
        return next(row["train/loss_epoch"] for step, row in run.rows if step == 19 and "train/loss_epoch" in row)

    assert abs(epoch_mean(resumed) - epoch_mean(whole)) > 1e-4


def record_alone(folder):
    torch.manual_seed(1)
    return record(Plain(dropout=0.0), loaders, [], max_epochs=3, default_root_dir=folder)


def test_a_checkpoint_of_the_last_batch_skips_the_epochs_end(tmp_path):
    """hooks/_progress.rewrite: neither the validation nor the mean of steps 10 to 19 is ever logged."""
    _, logged = killed_and_resumed(tmp_path, {"every_n_train_steps": 10}, 20)

    assert (19, "val/loss") not in logged
    assert (19, "train/loss_epoch") not in logged
    assert (29, "val/loss") in logged


def test_a_checkpoint_before_a_validation_skips_it(tmp_path):
    """hooks/_progress.rewrite"""
    _, logged = killed_and_resumed(tmp_path, {"every_n_train_steps": 5}, 15, val_check_interval=5)

    assert (14, "val/loss") not in logged
    assert (19, "val/loss") in logged


def test_a_run_counted_in_steps_loses_an_epochs_data_after_a_checkpoint_of_an_epochs_end(tmp_path):
    """hooks/_progress.take_over: an epoch of no batches passes, then the second epoch gets the order of the third."""
    resumed, _ = killed_and_resumed(tmp_path, {"every_n_epochs": 1}, 10, max_epochs=-1, max_steps=30)
    third = ResumableLoader(labelled_images(60), 6)
    third.sampler.set_epoch(2)

    assert resumed.batches[0][:2] == (1, 0)
    assert torch.equal(resumed.batches[0][2][0], next(iter(third))[0])


def test_gradients_of_an_unfinished_window_are_lost(tmp_path):
    """ExactResume keeps them: three micro-batches a step, validation after the second of a window."""
    saving, options = {"save_on_train_epoch_end": False}, {"accumulate_grad_batches": 3, "val_check_interval": 5}
    resumed, _ = killed_and_resumed(tmp_path, saving, 1, **options)
    torch.manual_seed(1)
    whole = record(Plain(dropout=0.0), loaders, [], max_epochs=3, **options)

    assert not torch.equal(resumed.state["weights"]["network.0.weight"], whole.state["weights"]["network.0.weight"])


class Plateau(Plain):
    """Every update after the first lowers the rate: nothing improves by half."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train/loss"}}


@pytest.mark.parametrize("saving", [{"every_n_train_steps": 4}, {"every_n_epochs": 1}])
def test_a_scheduler_that_watches_a_metric_misses_an_update(saving, tmp_path):
    """hooks/_progress.take_over and end_resume: of three updates two lower the rate, a resumed run makes only two."""
    resumed, _ = killed_and_resumed(tmp_path, saving, 12, in_the_act="every_n_epochs" in saving, module=Plateau)

    assert resumed.state["optimizers"][0]["param_groups"][0]["lr"] == 0.5e-3


def test_the_iterator_of_a_resumed_epoch_is_made_before_any_hook_of_the_fit(tmp_path):
    """hooks/_progress.take_over: so a shuffling DataLoader would draw its seed before the stream is restored."""
    order = []

    class Noted(ResumableLoader):
        def __iter__(self):
            order.append("iter")
            return super().__iter__()

    class Starts(Callback):
        def on_train_start(self, trainer, pl_module):
            order.append("start")

    def noted():
        return Noted(labelled_images(60), 6)

    writer = ModelCheckpoint(tmp_path, filename="end")
    record(Plain(), noted, [writer], max_epochs=1)
    order.clear()
    record(Plain(), noted, [Starts()], max_epochs=3, ckpt_path=tmp_path / "end.ckpt")

    # three epochs, one of them over: the iterator after the start is the last epoch's
    assert order[order.index("start") :] == ["start", "iter"]


def test_ctrl_c_lands_inside_a_step(tmp_path):
    """GracefulInterrupt: the loader is one batch ahead of the counters in what `save_on_exception` writes."""

    class CtrlC(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGINT)

    writer = ModelCheckpoint(tmp_path, filename="exception", save_on_exception=True)
    interrupted = record(Plain(), loaders, [writer, CtrlC()], max_epochs=1)
    loops = torch.load(tmp_path / "exception.ckpt", weights_only=True)["loops"]["fit_loop"]

    assert isinstance(interrupted.end, SystemExit)
    assert interrupted.end.code == 1
    assert loops["epoch_loop.batch_progress"]["current"] == {"ready": 7, "started": 7, "processed": 6, "completed": 6}
    assert loops["state_dict"]["combined_loader"] == [{"handed_out": 7}]


def test_what_the_seams_touch_is_still_there():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    fit = trainer.fit_loop
    counts = {"ready": 0, "completed": 0, "started": 0, "processed": 0}
    saved = fit.state_dict()

    assert isinstance(fit.epoch_progress, _Progress)
    assert isinstance(fit.epoch_loop.batch_progress, _BatchProgress)
    assert saved["epoch_progress"] == {"total": counts, "current": counts}
    assert saved["epoch_loop.batch_progress"] == {"total": counts, "current": counts, "is_last_batch": False}
    assert saved["epoch_loop.val_loop.batch_progress"] == {"total": counts, "current": counts, "is_last_batch": False}
    assert saved["epoch_loop.state_dict"] == {"_batches_that_stepped": 0}
    assert fit.epoch_loop.val_loop._has_run is False
    assert trainer._logger_connector._first_loop_iter is None


def test_a_running_mean_consists_of_what_is_saved():
    """hooks/_running_means: a new field of the metadata or a new state would have to be saved too."""
    metadata = _Metadata("training_step", "loss")

    assert list(vars(metadata)) == [
        *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph"),
        *("add_dataloader_idx", "dataloader_idx", "metric_attribute", "_sync"),
    ]
    assert list(_ResultMetric(metadata, is_tensor=True)._defaults) == ["value", "cumulated_batch_size"]

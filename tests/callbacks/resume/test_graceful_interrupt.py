"""The first Ctrl-C stops between two steps with a checkpoint that resumes exactly, the second at once; on two ranks."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import ExactResume, GracefulInterrupt
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import differences, record

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Signal(Callback):
    """Sends this process signals in the middle of the step after `step`: between backward and the optimizer."""

    def __init__(self, step, number=signal.SIGINT, count=1, rank=0, hook="on_before_optimizer_step"):
        self.step, self.number, self.count, self.rank = step, number, count, rank
        setattr(self, hook, self.send)

    def send(self, trainer, *args):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            for _ in range(self.count):
                os.kill(os.getpid(), self.number)


def loaders():
    rank, world_size = (dist.get_rank(), 2) if dist.is_initialized() else (0, 1)
    return (
        ResumableLoader(labelled_images(60 * world_size), 6, rank, world_size),
        ResumableLoader(labelled_images(24), 6, rank, world_size),
    )


def run(folder, callbacks, seed=3, **options):
    torch.manual_seed(1)
    module = Plain()
    torch.manual_seed(seed)
    settings = {"max_epochs": 3, "default_root_dir": folder} | options
    return record(module, loaders, [ExactResume(), *callbacks], **settings)


# An interrupted step 9 ends an epoch, 4 is before a validation: both must be made up for.
@pytest.mark.parametrize("step", [4, 6, 9, 12])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 5}, {"limit_val_batches": 0}])
def test_an_interrupted_run_continues_as_if_it_had_not_been(step, options, tmp_path):
    straight = run(tmp_path, [], **options)
    interrupted = run(tmp_path, [GracefulInterrupt(), Signal(step)], **options)
    resumed = run(tmp_path, [GracefulInterrupt()], 4, ckpt_path=tmp_path / "last-interrupted.ckpt", **options)

    assert isinstance(interrupted.end.__context__, KeyboardInterrupt)
    assert str(interrupted.end.__context__) == f"interrupted after step {step + 1}"
    assert len(interrupted.batches) == step + 1
    assert differences(straight, interrupted, resumed) == []


def test_a_window_of_gradients_is_finished_first(tmp_path):
    options = {"accumulate_grad_batches": 4}
    straight = run(tmp_path, [], **options)
    interrupted = run(tmp_path, [GracefulInterrupt(), Signal(0, hook="on_before_zero_grad")], **options)
    resumed = run(tmp_path, [], 4, ckpt_path=tmp_path / "last-interrupted.ckpt", **options)

    assert len(interrupted.batches) == 4
    assert differences(straight, interrupted, resumed) == []


def test_sigterm_does_the_same(tmp_path):
    interrupted = run(tmp_path, [GracefulInterrupt("last-term"), Signal(6, signal.SIGTERM)])

    assert str(interrupted.end.__context__) == "interrupted after step 7"
    assert (tmp_path / "last-term.ckpt").exists()


def test_the_second_stops_at_once(tmp_path):
    interrupted = run(tmp_path, [GracefulInterrupt(), Signal(6, count=2)])

    assert str(interrupted.end.__context__) == "interrupted at once"
    assert len(interrupted.batches) == 7
    assert not (tmp_path / "last-interrupted.ckpt").exists()


def test_the_checkpoint_lies_beside_the_runs_own_and_is_found_as_the_last(tmp_path):
    def writer():
        return ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=4, save_last=True)

    straight = run(tmp_path, [writer()])
    run(tmp_path, [writer(), GracefulInterrupt(), Signal(6)])
    resumed = run(tmp_path, [writer()], 4, ckpt_path="last")

    assert (tmp_path / "checkpoints" / "last-interrupted.ckpt").exists()
    assert len(resumed.batches) == 30 - 7
    assert all(torch.equal(value, straight.state["weights"][key]) for key, value in resumed.state["weights"].items())


class CountsBatches(Callback):
    """Comes after GracefulInterrupt in the list and has state of its own."""

    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1

    def state_dict(self):
        return {"batches": self.batches}


def test_callbacks_after_it_have_finished_the_batch_that_is_saved(tmp_path):
    run(tmp_path, [GracefulInterrupt(), CountsBatches(), Signal(6)])
    saved = torch.load(tmp_path / "last-interrupted.ckpt", weights_only=True)

    assert saved["callbacks"]["CountsBatches"] == {"batches": 7}
    assert saved["global_step"] == 7


def test_after_the_last_step_the_run_ends_and_the_caller_is_told(tmp_path):
    writer = ModelCheckpoint(tmp_path, filename="end")
    interrupted = run(tmp_path, [writer, GracefulInterrupt(), Signal(30, hook="on_validation_start")])

    assert str(interrupted.end.__context__) == "interrupted after the last step"
    assert torch.load(tmp_path / "end.ckpt", weights_only=True)["global_step"] == 30


@pytest.mark.parametrize("callbacks", [[], [Signal(6)]])
def test_handlers_and_module_are_given_back(callbacks, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    module = Plain()
    record(module, loaders, [GracefulInterrupt(), *callbacks], max_epochs=1, default_root_dir=tmp_path)

    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "on_train_batch_end" not in vars(module)


def test_it_serves_a_second_fit(tmp_path):
    graceful = GracefulInterrupt()
    run(tmp_path, [graceful, Signal(3)])
    second = run(tmp_path, [graceful, Signal(5)])

    assert str(second.end.__context__) == "interrupted after step 6"


def test_two_of_it_are_refused(tmp_path):
    with pytest.raises(ValueError, match="GracefulInterrupt: the Trainer has two of them"):
        run(tmp_path, [GracefulInterrupt(), GracefulInterrupt()])


# ---------------------------------------------------------------------------------------------------------------------
# Two ranks: the signal reaches one of them, or both at different steps
# ---------------------------------------------------------------------------------------------------------------------

DDP = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}


def interrupt_and_resume(folder, signals):
    straight = run(folder, [], 3 + dist.get_rank(), **DDP)
    interrupted = run(folder, [GracefulInterrupt(), *signals], 3 + dist.get_rank(), **DDP)
    dist.barrier()
    resumed = run(folder, [GracefulInterrupt()], 8, ckpt_path=folder / "last-interrupted.ckpt", **DDP)
    return str(interrupted.end.__context__), differences(straight, interrupted, resumed)


# The flag of the step that begins after step 6 is known to all at the end of the next one, step 8.
@pytest.mark.parametrize("signals", [[Signal(6)], [Signal(6, rank=1)], [Signal(7), Signal(6, rank=1)]])
def test_all_ranks_stop_after_the_same_step(signals, two_ranks, tmp_path):
    assert two_ranks(interrupt_and_resume, tmp_path, signals) == [("interrupted after step 8", [])] * 2


def test_a_signal_for_one_rank_after_the_last_step_reaches_both(two_ranks, tmp_path):
    def late():
        end = run(tmp_path, [GracefulInterrupt(), Signal(30, rank=1, hook="on_validation_start")], **DDP).end
        return str(end.__context__)

    assert two_ranks(late) == ["interrupted after the last step"] * 2

"""Killed and resumed equals straight on two ranks, each with random streams, a shard and sums of its own."""

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import ExactResume
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.resuming import differences, newest, record

DDP = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 3}


def loaders():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return (
        ResumableLoader(labelled_images(120), 6, rank, world_size),
        ResumableLoader(labelled_images(24), 6, rank, world_size),
    )


def kill_and_resume(folder, saving, kill_at, options, callbacks, module=Plain):
    """What differs on this rank, and its last random draw; the ranks' streams are different ones."""

    def run(name, seed, **how):
        torch.manual_seed(1)
        model = module()
        torch.manual_seed(seed + 10 * dist.get_rank())
        np.random.seed(seed + 10 * dist.get_rank())
        writer = ModelCheckpoint(folder / name, filename="{epoch}-{step}", save_top_k=-1, **saving)
        return record(model, loaders, [*callbacks(), writer], **DDP | options, **how)

    straight = run("straight", 3)
    draw = float(torch.rand(()))
    killed = run("killed", 3, kill_at=kill_at)
    dist.barrier()
    resumed = run("killed", 4, kill_at=None, ckpt_path=newest(folder / "killed"))
    same_draw = float(torch.rand(())) == draw
    weights = torch.cat([value.flatten() for value in straight.state["weights"].values()])
    return differences(straight, killed, resumed), same_draw, draw, weights


def expect_exact(outcome):
    (found0, same0, draw0, weights0), (found1, same1, draw1, weights1) = outcome

    assert found0 + found1 == []
    assert same0
    assert same1
    assert draw0 != draw1
    assert torch.equal(weights0, weights1)


def test_inside_an_epoch(two_ranks, tmp_path):
    expect_exact(two_ranks(kill_and_resume, tmp_path, {"every_n_train_steps": 4}, 16, {}, lambda: [ExactResume()]))


def test_before_the_validation_that_ends_an_epoch(two_ranks, tmp_path):
    expect_exact(two_ranks(kill_and_resume, tmp_path, {"every_n_train_steps": 10}, 22, {}, lambda: [ExactResume()]))


def test_at_the_end_of_an_epoch(two_ranks, tmp_path):
    expect_exact(two_ranks(kill_and_resume, tmp_path, {"every_n_epochs": 1}, 22, {}, lambda: [ExactResume()]))


def test_under_manual_optimisation_where_each_rank_keeps_its_own_buffers(two_ranks, tmp_path):
    outcome = two_ranks(
        kill_and_resume, tmp_path, {"every_n_epochs": 1}, 44, {}, lambda: [ExactResume()], TwoOptimizers
    )

    assert [found for found, *_ in outcome] == [[], []]


def test_inside_an_accumulation_window_whose_gradients_are_not_yet_summed(two_ranks, tmp_path):
    options = {"accumulate_grad_batches": 3, "val_check_interval": 5}

    expect_exact(
        two_ranks(kill_and_resume, tmp_path, {"save_on_train_epoch_end": False}, 7, options, lambda: [ExactResume()])
    )


def test_without_the_callback_both_ranks_differ(two_ranks, tmp_path):
    outcome = two_ranks(kill_and_resume, tmp_path, {"every_n_train_steps": 4}, 16, {}, list)

    assert [any("weights" in line for line in found) for found, *_ in outcome] == [True, True]


def test_a_checkpoint_of_one_process_is_refused_on_two(two_ranks, tmp_path):
    writer = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="one")

    def resume():
        try:
            record(Plain(), loaders, [ExactResume()], ckpt_path=tmp_path / "one.ckpt", **DDP)
        except ValueError as refusal:
            return str(refusal)

    record(Plain(), lambda: ResumableLoader(labelled_images(60), 6), [ExactResume(), writer], max_epochs=1)

    refusal = (
        "ExactResume: the checkpoint was written by 1 process and this run has 2, so it cannot continue exactly; "
        "use as many as before, or leave ExactResume out."
    )
    assert two_ranks(resume) == [refusal, refusal]

"""Targets and queues in fits: of no known length, after an aborted one, in half precision, and on two processes."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_vision.self_supervised import BYOL, DINO, JigsawClustering, MoCo, SimCLR, key_queue
from support.data import ResumableLoader, labelled_images
from support.learners import tiny, unlabelled
from support.trainers import quiet_trainer


class Stream(IterableDataset):
    """Images of which nobody knows how many there are."""

    def __iter__(self):
        for number in range(18):
            yield torch.full((1, 8, 8), number / 18), number


def test_in_a_fit_of_no_known_length_the_momentum_stays():
    learner = tiny(BYOL, momentum=0.9, momentum_end=1.0)
    before = next(learner.target.copy.parameters()).clone()
    quiet_trainer(max_epochs=1).fit(learner, DataLoader(Stream(), 6))

    assert learner.tau(0) == learner.tau(2) == 0.9
    assert not torch.equal(next(learner.target.copy.parameters()), before)


def test_keys_of_an_aborted_fit_do_not_come_in():
    class Fails(MoCo):
        backwards = 0

        def on_after_backward(self):
            self.backwards += 1
            if self.backwards == 2:
                raise RuntimeError("as a user's callback may")

    learner = tiny(Fails, queue_size=32)
    with pytest.raises(RuntimeError, match="as a user"):
        quiet_trainer(max_steps=1, accumulate_grad_batches=2).fit(learner, unlabelled())
    quiet_trainer(max_steps=1).fit(learner, unlabelled())

    assert learner.queue.count == 6


@pytest.mark.parametrize(("kind", "settings"), [(MoCo, {"queue_size": 8}), (SimCLR, {"memory": 8}), (DINO, {})])
def test_a_module_in_half_precision_keeps_what_it_remembers(kind, settings):
    learner = tiny(kind, **settings)
    quiet_trainer(max_steps=3, precision="bf16-true").fit(learner, unlabelled())

    assert all(value.isfinite().all() for value in learner.state_dict().values())


def fitted(kind, settings, gather=None):
    """The tensors of a learner after three steps on one of two processes."""
    if gather is not None:
        key_queue.gather, kept = gather, key_queue.gather
    learner = tiny(kind, **settings)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=3, strategy="ddp", devices=2)
    trainer.fit(learner, ResumableLoader(labelled_images(48), 6))
    if gather is not None:
        key_queue.gather = kept
    return dict(learner.state_dict())


def differing(two_ranks, *task):
    own, other = two_ranks(fitted, *task)
    # Running statistics of batch norms are each process's own; those of rank 0 are taken at the next batch.
    return [name for name in own if "running" not in name and not torch.equal(own[name], other[name])]


def test_two_processes_end_with_equal_networks_targets_queues_and_centres(two_ranks):
    assert differing(two_ranks, MoCo, {"queue_size": 40}) == []
    assert differing(two_ranks, DINO, {}) == []
    assert differing(two_ranks, JigsawClustering, {"grid": 2, "patch_size": 8}) == []
    # The mutant's queue takes its own process's keys alone.
    assert "queue.keys" in differing(two_ranks, MoCo, {"queue_size": 40}, lambda rows: rows)

"""HardBatches: the choice by hand, a loop written out, twice the training and none of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor

from lightning_vision.callbacks import HardBatches
from lightning_vision.callbacks.curation.hard_batches import hardest_batches
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

from .conftest import SAMPLES, whole


def test_hardest_batches_by_hand() -> None:
    """Means of the four batches: 0.5, 3, 1 and, of one sample, 2; that one comes last."""
    losses = torch.tensor([0.5, 0.5, 2.0, 4.0, 1.0, 1.0, 2.0])
    batches = torch.tensor([0, 0, 1, 1, 2, 2, 3]).float()

    found = [hardest_batches(losses, batches, delta).tolist() for delta in (0.0, 0.25, 0.5, 0.6, 1.0)]
    assert found == [[], [2, 3], [2, 3, 6], [2, 3, 4, 5, 6], list(range(7))]


def test_a_small_batch_in_the_middle_comes_last() -> None:
    losses, batches = torch.ones(5), torch.tensor([0, 0, 1, 2, 2]).float()

    assert hardest_batches(losses, batches, 1.0).tolist() == [0, 1, 3, 4, 2]


def test_samples_without_batch_or_loss_do_not_come_and_what_overflowed_is_hard() -> None:
    losses = torch.tensor([1.0, 5.0, 0.0, float("inf"), float("nan")])
    batches = torch.tensor([0.0, float("nan"), 1.0, 2.0, 1.0])

    assert hardest_batches(losses, batches, 0.5).tolist() == [0, 3]
    assert hardest_batches(losses, batches, 1.0).tolist() == [0, 2, 3]


class Batches(Callback):
    """The samples of each batch, and the mean loss that it had, by epoch."""

    def __init__(self, hard: HardBatches) -> None:
        self.hard = hard
        self.seen: list[list[tuple[list[int], float]]] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.seen.append([])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.seen[-1].append((self.hard.here.tolist(), float(outputs["loss"])))


@pytest.mark.parametrize("delta", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    ("options", "n"), [({}, 11), ({"drop_last": True}, 10), ({"limit": 7}, 7)], ids=["all", "the last dropped", "seven"]
)
def test_row_184_the_batches_that_come_again_are_the_top_k_of_the_recorded_losses(
    delta: float, options: dict[str, Any], n: int
) -> None:
    """And ceil(delta n) of them go backward."""
    hard = HardBatches(delta)
    batches = Batches(hard)
    limit = {"limit_train_batches": options.pop("limit")} if "limit" in (options := dict(options)) else {}
    trainer = quiet_trainer(max_epochs=4, callbacks=[hard, batches], limit_val_batches=0, **limit)
    trainer.fit(Plain(), plain_loader(63, shuffle=True, **options))

    count = math.ceil(delta * n)
    assert trainer.global_step == 2 * (n + count)
    for full, again in ((batches.seen[0], batches.seen[1]), (batches.seen[2], batches.seen[3])):
        top = sorted(full, key=lambda it: it[1], reverse=True)[:count]
        assert sorted(sorted(it) for it, _ in again) == sorted(sorted(it) for it, _ in top)


@pytest.mark.parametrize(
    ("delta", "again"),
    [(0.4, "hardest"), (1.0, "all"), (0.0, "none"), (0.4, "easiest")],
    ids=["hardest", "row_184 delta 1 is all twice", "row_184 delta 0 is plain training", "a mutant, the easiest"],
)
def test_row_184_training_equals_a_loop_written_by_hand(apart: Any, delta: float, again: str) -> None:
    def chooses(epoch: int, losses: Tensor, batches: list[list[int]]) -> list[list[int]]:
        if epoch % 2 == 0 or again == "none":
            return batches
        if again == "all":
            return batches
        sign = 1 if again == "easiest" else -1
        ranked = sorted(range(5), key=lambda it: sign * float(losses[batches[it]].mean()))
        return [batches[it] for it in sorted(ranked[:2])]

    difference = apart(HardBatches(delta), chooses)

    assert difference == 0.0 if again != "easiest" else difference > 1e-3


def test_row_184_select_asks_all_and_trains_on_the_hardest() -> None:
    """A loop by hand whose epochs begin with a forward pass in evaluation mode."""
    chosen: list[int] = []

    hard = HardBatches(0.4, mode="select", warmup_epochs=1, seed=3)
    torch.manual_seed(0)
    ours = Plain(dropout=0.0)
    torch.manual_seed(0)
    theirs = Plain(dropout=0.0)
    trainer = quiet_trainer(max_epochs=4, callbacks=[hard], limit_val_batches=0)
    trainer.fit(ours, plain_loader(SAMPLES))
    images, targets = labelled_images(SAMPLES).tensors
    made = theirs.configure_optimizers()
    for epoch in range(4):
        batches = whole()
        if epoch > 0:
            theirs.eval()
            with torch.no_grad():
                losses = F.cross_entropy(theirs.network(images), targets, reduction="none")
            place = np.random.default_rng((3, epoch)).permutation(SAMPLES)
            drawn = [[it for it in range(SAMPLES) if place[it] // 6 == number] for number in range(5)]
            ranked = sorted(range(5), key=lambda it: -float(losses[drawn[it]].mean()))[:2]
            batches = [drawn[it] for it in sorted(ranked, key=lambda it: (len(drawn[it]) < 6, it))]
        chosen.append(len(batches))
        theirs.train()
        for batch in batches:
            made["optimizer"].zero_grad()
            F.cross_entropy(theirs.network(images[batch]), targets[batch]).backward()
            made["optimizer"].step()
            made["lr_scheduler"]["scheduler"].step()

    assert trainer.global_step == sum(chosen) == 5 + 3 * 2
    assert all(torch.equal(it, theirs.state_dict()[name]) for name, it in ours.state_dict().items())


def test_epochs_of_warm_up_are_plain(apart: Any) -> None:
    def chooses(epoch: int, losses: Tensor, batches: list[list[int]]) -> list[list[int]]:
        if epoch != 5:
            return batches
        ranked = sorted(range(5), key=lambda it: -float(losses[batches[it]].mean()))
        return [batches[it] for it in sorted(ranked[:1])]

    assert apart(HardBatches(0.2, warmup_epochs=4), chooses) == 0.0


def test_settings_out_of_range_are_refused() -> None:
    for settings, said in (
        ({"delta": 1.2}, "delta is 1.2; give a number from 0 to 1"),
        ({"mode": "both"}, "mode is 'both'; give 'replay' or 'select'"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1; give a whole number of at least 0"),
    ):
        with pytest.raises(ValueError, match=f"^HardBatches: {said}"):
            HardBatches(**settings)  # type: ignore[arg-type]  # as a YAML may


def ranks_batches() -> tuple[Tensor, Tensor]:
    """On this rank: what all know of the batches of a fit on two processes whose sampler gives a sample twice."""
    hard = HardBatches(0.5)
    trainer = quiet_trainer(max_epochs=1, callbacks=[hard], limit_val_batches=0, strategy="ddp", devices=2)
    trainer.fit(Plain(dropout=0.0), plain_loader(29, batch_size=4, shuffle=True))
    state = hard.state_dict()
    return state["losses"], state["batches"]


def test_ranks_know_all_losses_and_whole_numbers_of_batches(two_ranks: Any) -> None:
    """Of 29 samples one comes on both ranks, in the first batch of the one and the last of the other."""
    (losses, batches), (there, batches_there) = two_ranks(ranks_batches)

    assert torch.equal(losses, there) and torch.equal(batches, batches_there) and losses.isfinite().all()
    assert sorted(batches.unique().tolist()) == [0.0, 1.0, 2.0, 3.0]

"""Where a training stands whose epochs a callback shortens: schedules are at their end with its last step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import (
    CyclicalLR,
    DataDiet,
    ExactResume,
    HardBatches,
    OneCycle,
    ProgressiveResizing,
    Ramp,
    WarmRestarts,
)
from lightning_vision.callbacks.hooks._lengths import steps_done
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import AnySize, Plain
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer


class Stands(Callback):
    """For each batch where the training stood, the rate, the decay and the side of the images."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.rates: list[float] = []
        self.decays: list[float] = []
        self.sides: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.done.append(steps_done(trainer))
        self.rates.append(group["lr"])
        self.decays.append(group["weight_decay"])
        self.sides.append(batch[0].shape[-1])


def stood(*callbacks: Callback, loader: Any = None, **options: Any) -> Stands:
    stands = Stands()
    trainer = quiet_trainer(callbacks=[*callbacks, stands], limit_val_batches=0, **{"max_epochs": 4} | options)
    trainer.fit(AnySize(), plain_loader() if loader is None else loader)
    return stands


WHOLE = list(range(10))


def test_the_steps_of_a_short_epoch_stand_evenly_between_those_of_a_whole_one() -> None:
    """Ten batches an epoch, of which every second repeats three, and in windows of three two of four steps."""
    assert stood(HardBatches(0.3)).done == [*WHOLE, 10, 14, 19, *(20 + it for it in WHOLE), 30, 34, 39]
    assert stood(HardBatches(0.1)).done == [*WHOLE, 19, *(20 + it for it in WHOLE), 39]
    windows = stood(HardBatches(0.4), accumulate_grad_batches=3, max_epochs=2).done
    assert windows == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 7]


def test_whole_epochs_and_trainings_that_end_by_steps_count_steps() -> None:
    assert stood(HardBatches(1.0)).done == list(range(40))
    assert stood(HardBatches(0.3), max_steps=20).done == list(range(20))
    assert stood(HardBatches(0.3), max_steps=40).done[-1] == 39


def test_all_that_moves_is_at_its_end_with_the_last_step() -> None:
    moving = [OneCycle(max_lr=1.0, replace=True), Ramp("optimizer.weight_decay", end=0.39, start=0.0)]
    stands = stood(*moving, ProgressiveResizing(multiple=1), HardBatches(0.2))

    assert len(stands.done) == 24
    assert stands.rates[-1] == pytest.approx(1 / 25 / 1e4)
    assert stands.decays[-1] == pytest.approx(0.39 * 39 / 40)
    assert (stands.sides[0], stands.sides[-1]) == (4, 8)


def test_cycles_in_epochs_stay_in_phase_and_keep_their_members() -> None:
    cyclical = stood(CyclicalLR(1, base_lr=0.1, max_lr=1.1, interval="epoch", replace=True), HardBatches(0.2))
    restarts = WarmRestarts(2, interval="epoch", snapshots=2, replace=True)
    restarted = stood(restarts, HardBatches(0.2))

    assert [round(cyclical.rates[it], 6) for it in (0, 10, 12, 22, 23)] == [0.1, 1.1, 0.1, 1.1, 0.2]
    assert restarted.rates[0] == restarted.rates[12] == max(restarted.rates)
    assert restarts.steps == [12, 24]


@pytest.mark.parametrize("short", [lambda: HardBatches(0.5), lambda: DataDiet(0.5, score_epoch=1)])
@pytest.mark.parametrize("kill_at", [13, 22])
def test_a_run_resumed_in_a_short_or_a_whole_epoch_equals_the_straight_one(
    short: Any, kill_at: int, tmp_path: Path
) -> None:
    def run(part: str, **how: Any) -> Any:
        torch.manual_seed(1)
        module, stands = Plain(), Stands()
        writer = ModelCheckpoint(tmp_path / part, every_n_train_steps=2, save_top_k=-1, filename="{step:03d}")
        callbacks = [short(), OneCycle(replace=True), ExactResume(), stands, writer]
        return stands, record(module, lambda: ResumableLoader(labelled_images(60), 6), callbacks, max_epochs=4, **how)

    straight, killed = run("straight"), run("killed", kill_at=kill_at)
    resumed = run("resumed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight[1], killed[1], resumed[1]) == []
    assert resumed[0].done == straight[0].done[-len(resumed[0].done) :]


def ranks_steps() -> list[int]:
    stands = stood(
        HardBatches(0.5), loader=plain_loader(29, batch_size=4, shuffle=True), strategy="ddp", devices=2, max_epochs=2
    )
    return stands.done


def test_ranks_stand_where_the_other_does(two_ranks: Any) -> None:
    first, second = two_ranks(ranks_steps)

    assert first == second == [0, 1, 2, 3, 4, 7]

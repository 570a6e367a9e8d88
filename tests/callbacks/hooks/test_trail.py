"""The trail seam under OneCycle: when weights are kept, what loggers get, and what a resumed run does with a trail."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from lightning_vision.callbacks import ExactResume, OneCycle
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain, TwoOptimizers
from support.resuming import newest, record

NAME = "hessian_free_lr"


class Quadratic(LightningModule):
    """Loss 2 w^2 for each of three weights, so h = 4, without noise."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return 2 * self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Kept(Callback):
    """Whether weights are kept after each batch."""

    def __init__(self, schedule):
        self.schedule, self.rows = schedule, []

    def on_train_batch_end(self, *args):
        self.rows.append(bool(self.schedule.state_dict()))


def logged(run):
    return [(step, row[NAME]) for step, row in run.rows if NAME in row]


def cycle(every, **options):
    return OneCycle(cycle_momentum=False, estimate_every=every, replace=True, **options)


def test_loggers_get_the_inverse_curvature_every_so_many_steps():
    """Steps 0, 1 and 2 make the first estimate, before step 2 is taken."""
    run = record(Quadratic(), plain_loader, [cycle(4)], max_epochs=1)

    assert logged(run) == [(step, pytest.approx(0.25, rel=1e-9)) for step in (2, 6)]


@pytest.mark.parametrize(("every", "expected"), [(0, [False] * 10), (4, [True, True, False, False] * 2 + [True, True])])
def test_weights_are_kept_for_two_steps_and_only_on_request(every, expected):
    schedule = cycle(every)
    kept = Kept(schedule)
    record(Quadratic(), plain_loader, [schedule, kept], max_epochs=1)

    assert kept.rows == expected


def test_nothing_is_kept_where_nobody_logs():
    schedule = cycle(4)
    kept = Kept(schedule)
    record(Quadratic(), plain_loader, [schedule, kept], max_epochs=1, logger=False)

    assert kept.rows == [False] * 10


def test_two_optimizers_are_one_estimate():
    run = record(TwoOptimizers(), plain_loader, [cycle(6)], max_epochs=1, max_steps=20)

    assert [step for step, _ in logged(run)] == [5, 11, 17]


def test_too_few_steps_for_several_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"^OneCycle: estimate_every is 5, .* the 2 optimizers; give at least 6, or 0"):
        record(TwoOptimizers(), plain_loader, [cycle(5)], max_epochs=1)

    assert logged(record(TwoOptimizers(), plain_loader, [cycle(6)], max_epochs=1))


def test_a_step_that_the_scaler_skipped_gives_no_estimate():
    """Scaled by 2**17 the first gradients overflow, so weights rest before the steps 1 and 2."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)
    run = record(
        Plain(0.0), plain_loader, [cycle(5)], max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )

    assert [step for step, _ in logged(run)] == [7]


def test_a_run_resumed_between_two_steps_of_a_trail_logs_what_the_straight_one_does(tmp_path):
    def run(**options):
        torch.manual_seed(1)
        saving = [ModelCheckpoint(tmp_path, every_n_train_steps=6)] if "kill_at" in options else []
        loader = ResumableLoader(labelled_images(60), 6)
        return record(Plain(0.0), lambda: loader, [cycle(5), ExactResume(), *saving], max_epochs=2, **options)

    straight = run()
    run(kill_at=7)
    file = newest(tmp_path)
    resumed = run(ckpt_path=file)

    assert len(logged(straight)) == 4
    assert len(torch.load(file, weights_only=True)["callbacks"]["OneCycle"]["steps"][0]) == 1
    assert logged(resumed) == logged(straight)[1:]

"""OneCycle against torch's schedule, a loop by hand, and quadratics whose best rate is known.

What any schedule must survive (resume, accumulation, skipped steps, two ranks) is proved in `hooks/test_schedule.py`,
momentum in general in `hooks/test_momentum.py`, when weights are kept in `hooks/test_trail.py`.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lightning_vision.callbacks import OneCycle
from lightning_vision.callbacks.schedules.one_cycle import annealed, hessian_free_rate
from lightning_vision.datamodules import Digits
from support.compare import distance
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import small_network
from support.optimizer_settings import BASES, Decayed, Settings
from support.resuming import record
from support.trainers import quiet_trainer


def torch_settings(optimizer, total, **options):
    """(rate, momentum) of each step by torch's schedule."""
    schedule = OneCycleLR(optimizer, 0.6, total, **options)
    (group,) = optimizer.param_groups
    rows = []
    for step in range(total):
        rows.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        if step + 1 < total:
            schedule.step()
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The row of the catalogue of methods: torch, the estimate, the length, and digits in fewer epochs.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize(("total", "pct_start"), [(100, 0.3), (37, 0.45), (10, 0.25), (4, 0.1), (9, 0.0)])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_row_268_rate_and_momentum_are_torchs_step_by_step(anneal, three_phase, total, pct_start, kind):
    parameter, momentum = torch.zeros(1, requires_grad=True), {"momentum": 0.9} if kind is torch.optim.SGD else {}
    options = {"pct_start": pct_start, "three_phase": three_phase, "div_factor": 10.0, "final_div_factor": 50.0}
    ours = OneCycle(0.6, anneal=anneal, **options)
    ours.plan(None, total)
    expected = torch_settings(kind([parameter], lr=1.0, **momentum), total, anneal_strategy=anneal, **options)
    rows = [(ours.factor(step), ours.momentum(step)) for step in range(total)]

    assert rows == [pytest.approx(row, rel=1e-9) for row in expected]


@pytest.mark.parametrize("curvature", [0.03, 0.5, 2.0, 7.0, 100.0])
@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.13), (0.02, 0.4)])
def test_row_268_the_estimate_is_one_over_the_curvature_of_a_quadratic(curvature, rates):
    """Loss h w^2 / 2: a step of gradient descent is w - lr h w. Halves and quarters are exact, bit for bit."""
    weights = [torch.tensor([1.0, -3.0, 0.2], dtype=torch.float64)]
    for rate in rates:
        weights.append(weights[-1] - rate * curvature * weights[-1])
    halves = [torch.tensor([0.5**step]) for step in range(3)]
    found = hessian_free_rate(*([it] for it in weights), [rates[0]], [rates[1]])

    assert found == pytest.approx(1 / curvature, rel=1e-9)
    assert hessian_free_rate(*([it] for it in halves), [0.25]) == 0.5


def test_row_268_several_curvatures_are_averaged_by_sums_of_absolute_values():
    """h = 2 and h = 1 from 1 and -4, lr 0.25: moves 0.5 and 1, bends 0.25 and 0.25 times the rate over."""
    before, between, after = ([torch.tensor([(1 - 0.5) ** it]), torch.tensor([-4 * 0.75**it])] for it in range(3))

    assert hessian_free_rate(before, between, after, [0.25, 0.25]) == 0.25 * (0.5 + 1) / (0.25 + 0.25)


LENGTHS = {
    "epochs": ({"max_epochs": 2}, 20),
    "accumulation with a short last window": ({"max_epochs": 2, "accumulate_grad_batches": 4}, 6),
    "max_steps": ({"max_epochs": 5, "max_steps": 13}, 13),
    "limited batches": ({"max_epochs": 2, "limit_train_batches": 0.5}, 10),
}


@pytest.mark.parametrize(("options", "total"), LENGTHS.values(), ids=LENGTHS)
def test_row_268_the_trainers_last_step_has_the_final_rate(options, total):
    settings = Settings()
    record(Decayed(), plain_loader, [OneCycle(0.5, div_factor=10, final_div_factor=100), settings], **options)
    rates, momenta = zip(*settings.rows, strict=True)

    assert len(rates) == total
    assert rates[-1] == pytest.approx([0.0005, 0.0005 * BASES[1] / BASES[0]], rel=1e-12)
    assert rates[0] == pytest.approx([0.05, 0.05 * BASES[1] / BASES[0]], rel=1e-12)
    assert momenta[0] == momenta[-1] == [0.95, 0.95]


def test_row_268_two_devices_share_the_steps(two_ranks):
    def case():
        settings = Settings()

        def shard():
            return ResumableLoader(labelled_images(120), 6, torch.distributed.get_rank(), 2)

        ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "max_epochs": 1}
        record(Decayed(), shard, [OneCycle(0.5, final_div_factor=100), settings], **ddp)
        return settings.rows

    first, second = two_ranks(case)

    assert first == second
    assert len(first) == 10
    assert first[-1][0][0] == pytest.approx(0.5 / 2500, rel=1e-12)


class Digit(LightningModule):
    """A small network that reads digits."""

    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )

    def training_step(self, batch):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def accuracies(seed, lr, *callbacks):
    """Percent of 539 unseen digits after each of four epochs."""
    torch.manual_seed(seed)
    module, data, found = Digit(lr), Digits(batch_size=64), []
    trainer = quiet_trainer(callbacks=list(callbacks), max_epochs=4, limit_val_batches=0)

    def score():
        module.eval()
        batches = [it for loader in (data.val_dataloader(), data.test_dataloader()) for it in loader]
        with torch.no_grad():
            hits = [(module.network(data.normalise(it[0])).argmax(1) == it[1]) for it in batches]
        module.train()
        found.append(100 * torch.cat(hits).float().mean().item())

    data.setup("test")
    module.on_train_epoch_end = score
    trainer.fit(module, datamodule=data)
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(it, marks=pytest.mark.slow) for it in (1, 2))])
def test_row_268_digits_are_read_after_fewer_epochs_than_at_any_constant_rate(seed):
    """96 percent after four epochs; of constant rates the best ones take five to eight."""
    constant = max(max(accuracies(seed, lr)) for lr in (0.03, 0.1, 0.2, 0.4))
    one_cycle = accuracies(seed, 0.3, OneCycle())[-1]

    assert constant < 96 < one_cycle
    assert seed != 0 or one_cycle > constant + 1.5


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics beyond torch, and a hand-written loop.
# ---------------------------------------------------------------------------------------------------------------------


def test_annealing_by_hand():
    values, ends = (1.0, 3.0, 0.0), (2, 6)

    assert [annealed(it, values, ends, "linear") for it in range(8)] == [1.0, 2.0, 3.0, 2.25, 1.5, 0.75, 0.0, 0.0]
    assert annealed(1, values, ends) == pytest.approx(2.0)
    assert annealed(0, (1.0, 3.0, 0.0), (0, 0)) == 3.0


def test_weights_that_rest_or_move_along_a_line_give_no_finite_estimate():
    still, moved, further = ([torch.full((2,), it)] for it in (1.0, 0.5, 0.0))

    assert math.isnan(hessian_free_rate(still, still, moved, [0.1]))
    assert math.isnan(hessian_free_rate(still, moved, moved, [0.1]))
    assert hessian_free_rate(still, moved, further, [0.1]) == math.inf
    assert math.isnan(hessian_free_rate(still, moved, further, [0.0]))


def by_hand(total=20, peak=0.3, momenta=(0.95, 0.85), shift=0):
    """Two epochs of the cosine up to step 5 and down to the last one, for two groups."""
    torch.manual_seed(1)
    network = small_network(dropout=0.0)
    optimizer = torch.optim.SGD([{"params": it.parameters()} for it in (network[:-1], network[-1])], 1.0, momentum=0.9)
    for number, (image, target) in enumerate([*plain_loader(), *plain_loader()]):
        step, top = number + shift, peak / BASES[0]
        rise, first, last = 0.3 * total - 1, top / 25, top / 25 / 1e4
        if step <= rise:
            here = (1 + math.cos(math.pi * (step / rise))) / 2
            factor, momentum = top + (first - top) * here, momenta[1] + (momenta[0] - momenta[1]) * here
        else:
            here = (1 + math.cos(math.pi * ((step - rise) / (total - 1 - rise)))) / 2
            factor, momentum = last + (top - last) * here, momenta[0] + (momenta[1] - momenta[0]) * here
        for group, base in zip(optimizer.param_groups, BASES, strict=True):
            group["lr"], group["momentum"] = base * factor, momentum
        optimizer.zero_grad()
        F.cross_entropy(network(image), target).backward()
        optimizer.step()
    return network.state_dict(prefix="network.")


def test_equals_a_loop_by_hand_and_wrong_ones_are_noticed():
    torch.manual_seed(1)
    run = record(Decayed(0.0), plain_loader, [OneCycle(0.3, estimate_every=5)], max_epochs=2)
    weights = run.state["weights"]

    assert distance(weights, by_hand()) == 0.0
    for wrong in ({"total": 21}, {"shift": 1}, {"peak": 0.25}, {"momenta": (0.9, 0.9)}, {"momenta": (0.85, 0.95)}):
        assert distance(weights, by_hand(**wrong)) > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Refusals, and a length that cannot be told.
# ---------------------------------------------------------------------------------------------------------------------


def test_a_training_without_an_end_stays_at_the_first_rate_and_says_so():
    schedule = OneCycle(0.5)

    assert schedule.plan(None, None) == (
        "OneCycle: the end of this training is not known, so the learning rate stays where the cycle begins (0.02); "
        "set max_epochs or max_steps."
    )
    assert [schedule.factor(step) for step in (0, 10**6)] == [0.02, 0.02]
    assert schedule.momentum(10) == 0.95


def test_without_max_lr_each_group_rises_to_its_own_rate():
    settings = Settings()
    record(Decayed(), plain_loader, [OneCycle(pct_start=0.6, cycle_momentum=False), settings], max_epochs=1)

    assert settings.rows[5] == (list(BASES), [0.9, 0.9])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_lr": 0.0}, "max_lr is 0.0; give a number above 0."),
        ({"pct_start": 1.5}, "pct_start is 1.5; give a number from 0 to 1."),
        ({"div_factor": 0}, "div_factor is 0; give a number above 0."),
        ({"final_div_factor": -1}, "final_div_factor is -1; give a finite number of at least 0."),
        ({"anneal": "poly"}, "anneal is 'poly'; give 'cos' or 'linear'."),
        (
            {"three_phase": True, "pct_start": 0.6},
            "a fall as long as the rise of pct_start=0.6 does not fit behind it; give at most 0.5, or "
            "three_phase=False.",
        ),
        ({"cycle_momentum": "yes"}, "cycle_momentum is 'yes'; give True or False."),
        (
            {"max_momentum": 1.0},
            "momentum goes from base_momentum=0.85 to max_momentum=1.0; give 0 <= base_momentum <= max_momentum < 1.",
        ),
        (
            {"base_momentum": "0.9"},
            "momentum goes from base_momentum='0.9' to max_momentum=0.95; give 0 <= base_momentum <= max_momentum < 1.",
        ),
        ({"estimate_every": 2}, "estimate_every is 2, and an estimate takes three steps; give 0 or at least 3."),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, sentence):
    with pytest.raises(ValueError) as error:
        OneCycle(**settings)

    assert str(error.value) == f"OneCycle: {sentence}"

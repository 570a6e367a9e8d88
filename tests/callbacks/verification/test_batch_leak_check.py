"""Layers that mix the samples of a batch are named, of strangers' modules and in each of the house's tasks.

That it leaves nothing behind is proved for toys in `conformance/`, here for modules that keep values beside weights.
"""

import warnings
from collections import Counter, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.callbacks import BatchLeakCheck, InitialLossCheck
from lightning_vision.callbacks.verification._rows import halves, prints
from lightning_vision.callbacks.verification.batch_leak_check import batch_leaks
from support.compare import distance, seeded
from support.data import plain_loader
from support.four_tasks import TASKS
from support.further_tasks import ALL_TASKS
from support.modules import PastLightning, Plain, TwoOptimizers
from support.trainers import quiet_trainer

DEFAULT = {*TASKS, "GAN"}


class Mean(nn.Module):
    def forward(self, rows):
        return rows - 0.1 * rows.mean(0)


class Turned(nn.Module):
    """`view(-1, B)` where a transposition was meant, turned back."""

    def forward(self, rows):
        return rows.view(-1, len(rows)).T


class FromTheFirst(nn.Module):
    def forward(self, rows):
        return rows + 0.1 * rows[:1]


class InForward(Plain):
    def forward(self, image):
        rows = self.network[:5](image)
        return self.network[5](rows - rows.mean(0))


class InItsStep(Plain):
    def training_step(self, batch, batch_idx):
        rows = self.network[:5](batch[0])
        return F.cross_entropy(self.network[5](rows - rows.mean(0)), batch[1])


class MixesImages(Plain):
    """MixUp by hand: the images are mixed before the first layer, which is not the network's doing."""

    def training_step(self, batch, batch_idx):
        image, target = batch
        return self.loss(0.7 * image + 0.3 * image.flip(0), target)


def with_layer(layer, kind=Plain):
    module = kind()
    module.network.insert(5, layer)
    return module


def check(module, loader=None, **settings):
    """Fit one batch under the check."""
    settings = {"callbacks": [BatchLeakCheck(**settings)], "max_epochs": 1, "limit_train_batches": 1}
    trainer = quiet_trainer(limit_val_batches=0, **settings)
    trainer.fit(module, plain_loader(12) if loader is None else loader)
    return trainer


@pytest.mark.parametrize("kind", [Plain, TwoOptimizers])
@pytest.mark.parametrize("layer", [Mean(), Turned(), nn.Softmax(0), FromTheFirst()], ids=lambda it: type(it).__name__)
def test_a_layer_that_mixes_samples_is_named_before_the_first_step(layer, kind):
    module = with_layer(layer, kind)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"^BatchLeakCheck: 'network.5' \({type(layer).__name__}\) mixes"):
        check(module)

    assert distance(module.state_dict(), before) == 0.0


@pytest.mark.parametrize("kind", [Plain, TwoOptimizers, MixesImages])
def test_a_module_that_keeps_samples_apart_trains(kind):
    assert check(kind()).global_step > 0


@pytest.mark.parametrize(("kind", "place"), [(InForward, "forward"), (InItsStep, "training_step")])
def test_what_the_module_computes_between_its_layers_is_judged(kind, place):
    with pytest.raises(RuntimeError, match=rf"^BatchLeakCheck: {place} of {kind.__name__}, between its layers, mixes"):
        check(kind())

    assert check(kind(), allowed=place).global_step == 1


def test_the_first_of_two_leaks_is_named_and_an_allowed_one_is_not():
    module = with_layer(nn.Sequential(Mean(), Mean()))
    with pytest.raises(RuntimeError, match=r"^BatchLeakCheck: 'network.5.0' \(Mean\)"):
        check(module)

    assert check(module, allowed=["network.5.*"]).global_step == 1


def test_batch_norm_is_named_and_refused_only_if_asked():
    with pytest.raises(RuntimeError, match=r"batch norms mix the samples of a batch while training: network.1;"):
        check(Plain(), allow_batch_norm=False)

    assert check(Plain(), allow_batch_norm=False, allowed="network.1").global_step == 1


def test_batch_norm_without_statistics_mixes_in_evaluation_too():
    module = Plain()
    module.network[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(RuntimeError, match="without running statistics mix the samples of a batch in evaluation mode"):
        check(module)


class MixesAtRest(nn.Module):
    def forward(self, rows):
        return rows if self.training else rows - rows.mean(0)


def test_a_layer_that_mixes_in_evaluation_alone_is_named():
    with pytest.raises(RuntimeError, match=r"'network.5' \(MixesAtRest\) mixes the samples of a batch in evaluation"):
        check(with_layer(MixesAtRest()))


def test_a_warning_lets_the_fit_go_on():
    with pytest.warns(UserWarning, match=r"^BatchLeakCheck: 'network.5' \(Mean\)"):
        trainer = check(with_layer(Mean()), action="warn")

    assert trainer.global_step == 1


def test_one_sample_says_nothing_and_that_is_said():
    with pytest.warns(UserWarning, match="nothing of Plain could be judged, for no layer was given several images"):
        check(with_layer(Mean()), plain_loader(3, batch_size=1))


def middle(module):
    """Path and layer of the convolution in the middle, of those that a training step calls."""
    layers = [(path, it) for path, it in module.named_modules() if isinstance(it, (nn.Conv2d, nn.ConvTranspose2d))]
    own = [it for it in layers if not it[0].startswith("target")]
    return own[len(own) // 2]


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in ALL_TASKS]
)
def test_each_task_keeps_samples_apart_and_a_leak_in_it_is_named(name):
    module, loader = ALL_TASKS[name]()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="BatchLeakCheck")
        assert check(module, loader).global_step == 1
    path, layer = middle(module)
    layer.register_forward_hook(lambda layer, given, maps: maps - 0.1 * maps.mean(0))
    with pytest.raises(RuntimeError, match=rf"BatchLeakCheck: '{path}' \({type(layer).__name__}\) mixes"):
        check(module, loader)


@pytest.mark.parametrize("name", ["GAN", *(pytest.param(it, marks=pytest.mark.slow) for it in ("VAE", "MoCo", "DINO"))])
def test_what_a_module_keeps_beside_its_weights_is_left_alone(name):
    def trained(*callbacks):
        module, loader = ALL_TASKS[name]()
        quiet_trainer(callbacks=list(callbacks), max_epochs=1, limit_train_batches=3).fit(module, loader)
        return module.state_dict()

    assert distance(trained(BatchLeakCheck()), trained()) == 0.0


class Counts(Plain):
    """It moves itself in its step: a generator, a counter, a list, and a weight that no optimizer moves."""

    def __init__(self):
        super().__init__()
        self.random, self.steps, self.seen = torch.Generator().manual_seed(0), 0, []
        self.follower = nn.Parameter(torch.zeros(()), requires_grad=False)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.seen.append(float(torch.rand((), generator=self.random)))
        self.follower.data += 1
        return super().training_step(batch, batch_idx)


def test_a_frozen_weight_of_small_integers_is_no_hindrance():
    module = Plain()
    module.quantized = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)

    assert check(module).global_step == 1


def test_a_step_that_moves_the_module_itself_moves_it_once():
    module = Counts()
    check(module)

    expected = float(torch.rand((), generator=torch.Generator().manual_seed(0)))
    assert (module.steps, module.seen, module.follower.item()) == (1, [expected], 1)


class Keeps(Plain):
    """What its step keeps in plain attributes: an average bound anew, one written in place, counts, a queue, draws."""

    def __init__(self):
        super().__init__()
        self.bound, self.written, self.counts, self.queue = torch.zeros(()), torch.zeros(()), Counter(), deque(maxlen=3)
        self.random, self.array = np.random.default_rng(0), np.zeros(())

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) * (1 + 0.1 * self.random.random())
        self.bound = 0.9 * self.bound + loss.detach()
        self.written.mul_(0.9).add_(loss.detach())
        self.counts.update("step")
        self.queue.append(loss.item())
        self.array += loss.item()
        self.made = getattr(self, "made", 0) + 1
        return loss


@pytest.mark.parametrize("look", [BatchLeakCheck, InitialLossCheck])
def test_a_fit_is_the_same_in_all_that_the_module_keeps_beside_its_weights(look):
    def trained(*callbacks):
        module = seeded(Keeps)
        torch.manual_seed(1)
        options = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
        quiet_trainer(callbacks=list(callbacks), **options).fit(module, plain_loader(12))
        kept = (module.bound, module.written, module.counts, module.queue, module.array, module.made)
        return kept, module.random.random(), module.state_dict()

    (kept, drawn, weights), (expected, expected_draw, expected_weights) = trained(look()), trained()

    assert (kept, drawn) == (expected, expected_draw)
    assert distance(weights, expected_weights) == 0.0


class PastLightningWithMomentum(PastLightning):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.loss(*batch).backward()
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def test_steps_past_lightning_leave_no_momentum_behind():
    def trained(*callbacks):
        torch.manual_seed(0)
        module = PastLightningWithMomentum()
        quiet_trainer(callbacks=list(callbacks), max_epochs=1, limit_train_batches=3).fit(module, plain_loader())
        return module.state_dict()

    assert distance(trained(BatchLeakCheck()), trained()) == 0.0


class Contrasts(nn.Module):
    """One number a sample, which is compared with all."""

    def forward(self, rows):
        return (rows @ rows.T).logsumexp(1)


@pytest.mark.parametrize("name", ["contrastive_loss", "contrasted"])
def test_what_is_named_a_loss_compares_samples_on_purpose(name):
    network, rows = nn.Sequential(nn.Linear(4, 4)), torch.randn(6, 4)
    network.add_module(name, Contrasts())

    leaks = [it.path for it in batch_leaks(lambda: network(rows), network).leaks]
    assert leaks == ([] if name.endswith("loss") else [name])


def test_rows_that_differ_between_equal_runs_are_no_leak():
    class Noisy(nn.Module):
        def forward(self, rows):
            # Seeded anew by the system, past what a rerun puts back.
            return rows + torch.rand(rows.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**32))

    network, rows = nn.Sequential(nn.Linear(4, 4), Noisy()), torch.randn(6, 4)

    assert batch_leaks(lambda: network(rows), network).leaks == ()


class Exchanges(nn.Module):
    """Each row with a share of another one; which, says a function of the number of rows."""

    def __init__(self, partner):
        super().__init__()
        self.partner = partner

    def forward(self, rows):
        return 0.5 * rows + 0.5 * rows[self.partner(torch.arange(len(rows)))]


PARTNERS = {
    "flip": lambda row: row.flip(0),
    "roll": lambda row: row.roll(1),
    "xor": lambda row: torch.where((row ^ 3) < len(row), row ^ 3, row),
}


@pytest.mark.parametrize("size", [4, 5, 8, 16, 32, 64])
@pytest.mark.parametrize("partner", PARTNERS.values(), ids=PARTNERS)
def test_rows_that_are_exchanged_in_any_regular_way_are_a_leak(partner, size):
    network, rows = nn.Sequential(nn.Linear(4, 4), Exchanges(partner)), torch.randn(size, 4)

    assert [it.path for it in batch_leaks(lambda: network(rows), network).leaks] == ["1"]


@pytest.mark.parametrize("partner", PARTNERS.values(), ids=PARTNERS)
def test_rows_that_the_step_exchanges_between_its_layers_are_a_leak(partner):
    class InItsOwn(Plain):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(Exchanges(partner)(self.network(batch[0])), batch[1])

    with pytest.raises(RuntimeError, match=r"^BatchLeakCheck: training_step of InItsOwn, between its layers, mixes"):
        check(InItsOwn(), plain_loader(16, batch_size=16))


def test_no_shift_flip_or_exclusive_or_of_numbers_keeps_each_row_in_its_half_both_times():
    for size in range(2, 66):
        first, second, row = halves(size), halves(size, split=1), torch.arange(size)
        flip = [size - 1 - row]
        shifts = [(row + by) % size for by in range(1, size)]
        for other in flip + shifts + [torch.where((row ^ by) < size, row ^ by, row) for by in range(1, size)]:
            assert ((first != first[other]) | (second != second[other])).any()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_a_fingerprint_tells_a_row_from_its_negative(kind):
    rows = torch.randn(10_000, 4).clamp(-2, 2)
    negatives = 0.25 - rows

    assert (prints(rows.to(kind)) != prints(negatives.to(kind))).all()
    assert torch.equal(prints(rows.to(kind)), prints(rows.to(kind)))


@pytest.mark.parametrize("size", [2, 3, 4, 8, 64, 256])
def test_both_splits_are_halves_and_part_three_pairs_of_four(size):
    first, second = halves(size), halves(size, split=1)
    together = (first == first[:, None]) & (second == second[:, None])

    assert [abs(2 * int(it.sum()) - size) <= 1 for it in (first, second)] == [True, True]
    assert int(together.sum()) - size <= size * (size - 1) / 4


@pytest.mark.parametrize("tolerance", [1e-4, 1.0])
def test_a_change_within_the_tolerance_is_rounding(tolerance):
    network, rows = nn.Sequential(nn.Linear(4, 4), Mean()), torch.randn(6, 4)
    leaks = batch_leaks(lambda: network(rows), network, tolerance=tolerance).leaks

    assert [it.path for it in leaks] == (["1"] if tolerance < 1 else [])


def test_named_samples_are_those_that_changed_without_reason():
    """Row 2 is made of row 1 and of itself; 1 and 2 are exchanged together, so only a third run tells them apart."""

    class OnlyTheLast(nn.Module):
        def forward(self, rows):
            return torch.cat([rows[:-1], rows[-1:] + rows[:1]])

    network, rows = nn.Sequential(OnlyTheLast()), torch.randn(5, 4)
    (leak,) = batch_leaks(lambda: network(rows), network).leaks

    assert (leak.path, leak.kind, leak.rows) == ("0", "OnlyTheLast", (4,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "stop"}, "BatchLeakCheck: action is 'stop'; give 'error', 'warn' or 'off'."),
        ({"tolerance": -1}, "BatchLeakCheck: tolerance is -1; give a finite number of at least 0."),
        ({"allow_batch_norm": 1}, "BatchLeakCheck: allow_batch_norm is 1; give True or False."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        BatchLeakCheck(**settings)

    assert str(caught.value) == message


def test_a_pattern_that_matches_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"allowed 'netwrok.5' matches none of the layers; there are"):
        check(Plain(), allowed="netwrok.5")

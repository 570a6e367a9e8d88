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
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_vision.callbacks import BatchLeakCheck, InitialLossCheck
from lightning_vision.callbacks.hooks._rerun import StepFailedError
from lightning_vision.callbacks.verification._rows import halves, prints, resized
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


class Recurrent(nn.Module):
    """Its last states `(4, N, 5)`, two of each direction, have as many rows as 4 samples."""

    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 10)

    def forward(self, image):
        states, _ = self.cells(image.squeeze(1))
        return self.head(states[:, -1])


class Measured(Plain):
    """Its metric has a number for each of 10 classes."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10, average=None)

    def training_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        return self.loss(*batch)


class Pair(nn.Module):
    """Two arguments and two results, of 8 positions each of which holds a row a sample."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, image):
        tokens, _ = Twofold()(self.embed(image.squeeze(1).transpose(0, 1)), torch.ones(8))
        return self.head(tokens.mean(0))


class Twofold(nn.Module):
    def forward(self, tokens, mask):
        return tokens * mask, tokens.neg()


class Templates(Plain):
    """Logits are products with what a layer makes of the module's own vectors, or of numbers made of them."""

    def __init__(self, made):
        super().__init__()
        self.made, self.project = made, nn.Linear(20, 36)
        self.register_buffer("vectors", torch.randn(10, 20))

    def training_step(self, batch, batch_idx):
        logits = self.network[:5](batch[0]) @ self.project(self.made(self.vectors)).T
        return F.cross_entropy(logits, batch[1])


def of(layer):
    module = Plain()
    module.network = layer
    return module


RIGHT_BY_CHANCE = {
    "states of as many layers as samples": (lambda: of(Recurrent()), 4),
    "states of as many layers as two samples": (lambda: of(Recurrent()), 2),
    "a metric of as many classes": (Measured, 10),
    "two arguments and two results": (lambda: of(Pair()), 2),
    "the module's own vectors": (lambda: Templates(lambda it: it), 10),
    "vectors made of its own": (lambda: Templates(F.normalize), 10),
    "more vectors than samples": (lambda: Templates(F.normalize), 4),
}


@pytest.mark.parametrize(("make", "size"), RIGHT_BY_CHANCE.values(), ids=RIGHT_BY_CHANCE)
def test_what_has_as_many_rows_as_there_are_samples_by_chance_is_no_leak(make, size):
    assert check(make(), plain_loader(size, batch_size=size)).global_step == 1


class Placed(Plain):
    """A layer makes places of the module's own numbers before images come in, and then samples are mixed."""

    def __init__(self, made):
        super().__init__()
        self.made, self.places = made, nn.Linear(2, 1)
        self.register_buffer("grid", torch.rand(64, 2))
        self.network.insert(5, Mean())

    def training_step(self, batch, batch_idx):
        places = self.places(self.made(self.grid)).view(1, 1, 8, 8)
        return F.cross_entropy(self.network(batch[0] + places), batch[1])


@pytest.mark.parametrize("made", [lambda it: it, torch.sin], ids=["its own", "made of its own"])
def test_a_table_of_the_module_does_not_hide_a_leak_behind_it(made):
    with pytest.raises(RuntimeError, match=r"^BatchLeakCheck: 'network.5' \(Mean\) mixes"):
        check(Placed(made))


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


class Around(nn.Module):
    """It mixes samples itself, after a layer inside of it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, rows):
        rows = self.inner(rows)
        return rows - 0.5 * rows.mean(0)


class Trembles(nn.Module):
    """Its rows differ by a little in each call, past what a rerun puts back."""

    def forward(self, rows):
        return rows * (1 + 1e-7 * (torch.seed() % 2**20) / 2**20)


@pytest.mark.parametrize("inner", [nn.Identity(), Trembles(), Mean()], ids=lambda it: type(it).__name__)
def test_a_leak_is_named_around_a_layer_that_trembles_or_may_mix(inner):
    message = r"^BatchLeakCheck: 'network.5' \(Around\) mixes"
    with pytest.raises(RuntimeError, match=message):
        check(with_layer(Around(inner)), allowed="network.5.inner")

    assert check(with_layer(nn.Sequential(inner)), allowed="network.5.0").global_step == 1


class Two(nn.Module):
    def forward(self, rows):
        return rows - rows.mean(0), rows.mean(0)


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.two = Two()

    def forward(self, rows):
        return self.two(rows)[0]


def test_around_an_allowed_layer_with_two_results_nothing_is_judged():
    assert check(with_layer(First()), allowed="network.5.two").global_step == 1


def test_what_comes_after_an_allowed_layer_is_judged():
    module = with_layer(Mean())
    module.network.insert(6, Mean())
    with pytest.raises(RuntimeError, match=r"^BatchLeakCheck: 'network.6' \(Mean\) mixes"):
        check(module, allowed="network.5")


@pytest.mark.parametrize("look", [BatchLeakCheck, InitialLossCheck])
@pytest.mark.parametrize("scripted", [torch.jit.script, lambda it: torch.jit.trace(it, torch.ones(2, 64))])
def test_a_scripted_teacher_is_left_alone(look, scripted):
    class Taught(Plain):
        def training_step(self, batch, batch_idx):
            return self.loss(*batch) + self.teacher(batch[0].flatten(1)).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = with_layer(nn.Identity(), Taught)
        module.teacher = scripted(nn.Sequential(nn.Linear(64, 10)).requires_grad_(False))

    options = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    trainer = quiet_trainer(callbacks=[look(action="error")], **options)
    trainer.fit(module, plain_loader(12))
    assert trainer.global_step == 1


class Pairs(Plain):
    """Each image beside all others, by their places in the batch."""

    def training_step(self, batch, batch_idx):
        rows = self.network(batch[0])
        return F.cross_entropy(rows @ rows.T, torch.arange(len(rows)))


def test_a_contrastive_loss_is_not_taken_for_one_by_the_numbers_of_the_samples():
    loader = DataLoader([(torch.randn(6, 1, 8, 8), torch.arange(6))], batch_size=None)

    assert check(Pairs(), loader).global_step == 1


def test_a_step_that_fails_in_one_process_fails_in_all():
    asked = []

    def fails():
        raise ZeroDivisionError

    for run, error in ((fails, ZeroDivisionError), (lambda: None, StepFailedError)):
        asked.append([])
        with pytest.raises(error):
            batch_leaks(run, nn.Linear(2, 2), agree=lambda found: bool(asked[-1].append(found) or True))

    assert asked == [[True], [False]]


@pytest.mark.parametrize("size", [2, 3])
def test_a_batch_of_another_size_has_one_sample_less_or_one_twice(size):
    images, boxes = [torch.rand(1, 4, 4) for _ in range(size)], [{"boxes": torch.rand(size, 4)} for _ in range(size)]
    rows = [0, 1] if size == 3 else [0, 1, 1]

    image, label = resized((torch.rand(size, 1, 4, 4), torch.arange(size)))
    assert (len(image), label.tolist()) == (len(rows), rows)
    images_now, boxes_now = resized((images, boxes))
    assert all(now is images[row] for now, row in zip(images_now, rows, strict=True))
    assert all(now is boxes[row] for now, row in zip(boxes_now, rows, strict=True))
    views = resized({"views": [torch.rand(size, 1, 4, 4)] * size})["views"]
    assert [len(it) for it in views] == [len(rows)] * size
    assert resized(torch.arange(size)) is None


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

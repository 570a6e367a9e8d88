"""A replay leaves no trace: weights, buffers, metrics, logs, random streams and hooks are as if computed once."""

import copy
import pickle
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics import MeanMetric

from lightning_vision.base.scalar_log import ScalarLog
from lightning_vision.callbacks import SAM, ExactResume
from lightning_vision.callbacks.hooks._replay import _NumpyStream, read_streams, rewind
from lightning_vision.callbacks.hooks.ascent import Ascent, replaying
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import KilledError, differences, newest, record
from support.sam_by_hand import FirstDraw, batches_of, fit, sam, train

HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_start",
    "on_train_batch_end",
)


class Watched(Plain):
    """Counts and draws in `training_step`, keeps a metric and sums, replaces a buffer, overrides `backward`."""

    def __init__(self, dropout=0.5):
        super().__init__(dropout)
        self.mean, self.scalars = MeanMetric(), ScalarLog(self)
        self.register_buffer("average", torch.zeros(()))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.draws, self.hooks, self.backwards, self.counted = [], dict.fromkeys(HOOKS, 0), 0, 0
        for name in HOOKS:
            setattr(self, name, lambda *args, name=name: self.hooks.update({name: self.hooks[name] + 1}))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean(loss.detach())
        self.log("train/mean", self.mean, on_step=True, on_epoch=True)
        self.scalars.log("train", {"counted": loss}, len(batch[0]))
        self.average = 0.9 * self.average + loss.detach()
        state = [random.random(), np.random.normal(), torch.rand(()).item(), self.network[3](torch.ones(8)).tolist()]
        self.draws.append((replaying(self), state))
        return loss

    def on_train_epoch_end(self):
        self.counted += int(self.scalars.state()["stages"]["train"]["ranks"][0, -1])
        self.scalars.finish("train")

    def backward(self, loss, *args, **kwargs):
        self.backwards += 1
        (2 * loss).backward()


def watched(*callbacks, **options):
    module = seeded(Watched)
    random.seed(1)
    np.random.seed(1)
    return module, fit(module, *callbacks, **options)


class Nowhere(Ascent):
    """Computes again at the very same weights, so that a run with it must equal one without."""

    neutral = "it is a test"

    def __init__(self):
        super().__init__(synchronise=True)

    def ascend(self, weights, gradients, step):
        return (yield [torch.zeros_like(it) for it in weights])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_replay_at_the_same_weights_changes_nothing(accumulate):
    plain, expected = watched(accumulate_grad_batches=accumulate)
    module, run = watched(Nowhere(), accumulate_grad_batches=accumulate)

    assert distance(run.state["weights"], expected.state["weights"]) == 0.0
    assert run.rows == expected.rows
    assert run.state["steps"] == expected.state["steps"]
    assert module.hooks == plain.hooks
    assert module.mean.update_count == plain.mean.update_count
    assert module.counted == plain.counted == 60  # images; twice each would be the same mean
    assert (module.backwards, plain.backwards) == (20, 10)
    assert [state for again, state in module.draws if not again] == [state for _, state in plain.draws]
    # Each window's first passes, then the same draws again.
    for start in range(0, 20, 2 * accumulate):
        window = module.draws[start : start + 2 * accumulate]
        assert [it[1] for it in window[: len(window) // 2]] == [it[1] for it in window[len(window) // 2 :]]


def test_frozen_and_unused_parameters_and_foreign_gradients_are_left_alone():
    module, run = watched(SAM(0.1))

    assert run.state["weights"]["unused"].tolist() == run.state["weights"]["frozen"].tolist() == [1, 1]
    assert module.unused.grad is module.frozen.grad is None


class Half(Plain):
    """Trains its head alone; the trunk's gradients grow from step to step and belong to nobody."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.network[-1].parameters(), lr=0.05)


def test_gradients_outside_the_optimizer_are_those_of_the_first_pass():
    plain, module = seeded(Half, 0.0), seeded(Half, 0.0)
    fit(plain, max_epochs=1, limit_train_batches=1)
    fit(module, SAM(0.1), limit_train_batches=1)

    assert torch.equal(module.network[0].weight.grad, plain.network[0].weight.grad)


class Failing(Plain):
    def training_step(self, batch, batch_idx):
        if replaying(self) and batch_idx == 2:
            raise KilledError
        self.before = copy.deepcopy(self.state_dict())
        self.streams = torch.get_rng_state()
        return super().training_step(batch, batch_idx)


def test_an_exception_in_the_replay_restores_weights_and_log():
    module, method = seeded(Failing), SAM(0.1)
    run = fit(module, method)

    assert isinstance(run.end, KilledError)
    learned = [name for name, _ in module.named_parameters()]
    after = module.state_dict()
    assert all(torch.equal(after[name], module.before[name]) for name in learned)
    assert after["network.1.num_batches_tracked"] == 3
    assert not vars(module).keys() & {"log", "log_dict", "training_step", "backward"}
    assert not replaying(module)
    pickle.loads(pickle.dumps(method))


@pytest.mark.parametrize("whole", [False, True], ids=["network", "module"])
def test_a_compiled_module_equals_the_loop(compiler, whole):
    module = seeded(Plain)
    if whole:
        module = torch.compile(module, backend="eager")
    else:
        module.network.compile(backend="eager")
    weights = fit(module, SAM(0.1)).state["weights"]

    assert distance(weights, train(seeded(Plain), sam)) == 0.0


class Shared(Plain):
    """One weight in two places."""

    def __init__(self):
        super().__init__(0.0)
        self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)
        self.second.weight = self.first.weight

    def forward(self, image):
        return self.second(self.first(super().forward(image)))


class Lengths(Nowhere):
    def ascend(self, weights, gradients, step):
        self.count = len(weights)
        self.distinct = len({it.data_ptr() for it in weights})
        return (yield [torch.zeros_like(it) for it in weights])


def test_a_shared_parameter_is_perturbed_once():
    method = Lengths()
    fit(seeded(Shared), method, limit_train_batches=1)

    assert method.count == method.distinct == len(list(Shared().parameters()))


class OneStep(Nowhere):
    def ascend(self, weights, gradients, step):
        self.keep(weights, [torch.full_like(it, step) for it in weights])
        self.seen = [*getattr(self, "seen", []), step]
        return gradients
        yield


def test_steps_and_what_is_kept_travel_in_the_state():
    first, second = OneStep(), OneStep()
    fit(seeded(Plain), first)
    assert first.seen == list(range(10))
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second.load_state_dict(state)

    assert second.state_dict()["steps"] == {0: 10}
    assert all(torch.equal(it, torch.full_like(it, 9)) for it in second.state_dict()["kept"].values())


class Forgetful(SAM):
    """Wrong: it computes again what it has of the window."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._incomplete = False


class SavesInsideAWindow(Callback):
    """Writes a checkpoint after the first micro-batch of the second window."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 3:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("kind", [SAM, Forgetful])
def test_after_a_checkpoint_from_inside_a_window_the_first_step_is_plain_and_the_second_sams(kind, steps, tmp_path):
    def loader():
        return ResumableLoader(labelled_images(60), 6)

    def ascends_but_for_the_second_window(weights, gradients):
        windows.append(len(windows))
        return [torch.zeros_like(it) for it in weights] if windows[-1] == 1 else sam(weights, gradients)

    options = {"batches": loader, "accumulate_grad_batches": 3, "max_steps": steps}
    fit(seeded(Plain), kind(0.1, name="a"), ExactResume(), SavesInsideAWindow(tmp_path / "inside.ckpt"), **options)
    with pytest.warns(UserWarning) as warned:
        resumed = fit(Plain(), kind(0.1, name="a"), ExactResume(), ckpt_path=tmp_path / "inside.ckpt", **options)
    windows, batches = [], list(loader())[: 3 * steps]
    expected = train(seeded(Plain), ascends_but_for_the_second_window, accumulate=3, batches=batches)
    found = distance(resumed.state["weights"], expected)

    assert found == 0.0 if kind is SAM else found > 1e-4
    assert distance(expected, train(seeded(Plain), accumulate=3, batches=batches)) > 1e-4
    assert (
        f"{kind.__name__}: the checkpoint was written inside an accumulation window, whose first 1 micro-batches "
        "cannot be computed again, so the first step is a plain one; resume from a checkpoint written after an "
        "optimizer step to continue exactly."
    ) in [str(it.message) for it in warned]


def quiet_trainer(*callbacks, **options):
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", callbacks=[FirstDraw(), *callbacks], **silent | options)


class Writing(Plain):
    """Changes its batch in place."""

    def training_step(self, batch, batch_idx):
        self.change(batch)
        return super().training_step(batch, batch_idx)


class WritesImages(Writing):
    def change(self, batch):
        batch[0].sub_(0.5)


class WritesLabels(Writing):
    def change(self, batch):
        batch[1].add_(1).remainder_(10)


@pytest.mark.parametrize("kind", [WritesImages, WritesLabels])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_that_is_written_in_place_is_refused(kind, accumulate):
    with pytest.raises(ValueError) as error:
        fit(seeded(kind), SAM(0.1), accumulate_grad_batches=accumulate)

    assert str(error.value) == (
        f"SAM: training_step of {kind.__name__} wrote into a tensor of its batch, which is to be computed again as it "
        "was; let it work on a copy (`x = x - 0.5` instead of `x -= 0.5`)."
    )


@dataclass
class Record:
    image: torch.Tensor
    target: torch.Tensor


class Pair(NamedTuple):
    image: torch.Tensor
    target: torch.Tensor


class Consuming(Plain):
    """Takes its batch out of whatever holds it, so that nothing is left for another pass."""

    def training_step(self, batch, batch_idx):
        if isinstance(batch, dict):
            pair = (batch.pop("image"), batch.pop("more")[0].pop("target"))
        elif isinstance(batch, Record):
            pair, batch.image = (batch.image, batch.target), None
        elif isinstance(batch, Pair):
            pair = batch.image, batch.target
        else:
            pair = (batch.pop(0), batch.pop(0))
        return super().training_step(pair, batch_idx)


@pytest.mark.parametrize(
    "container",
    [list, Pair._make, lambda it: Record(*it), lambda it: defaultdict(int, image=it[0], more=({"target": it[1]},))],
    ids=["list", "namedtuple", "dataclass", "nested"],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_that_is_taken_out_of_its_container_is_computed_again_whole(container, accumulate):
    class Contained(Consuming):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return container(batch)

    class Twice(Nowhere):
        def ascend(self, weights, gradients, step):
            yield [torch.zeros_like(it) for it in weights]
            return (yield sam(weights, [it.grad for it in weights]))

    expected = train(seeded(Plain), accumulate=accumulate)
    for method in (SAM(0.1), Twice()):
        module = seeded(Contained)
        quiet_trainer(method, max_epochs=1, accumulate_grad_batches=accumulate).fit(module, batches_of())

        assert distance(module.state_dict(), expected) == 0.0


class Accumulating(Plain):
    """Adds up gradients of two batches by hooks of its own, of which Lightning knows nothing."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / 2

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()

    def configure_optimizers(self):
        setup = super().configure_optimizers()
        return setup | {"lr_scheduler": setup["lr_scheduler"] | {"interval": "epoch"}}


class ZeroesInPlace(Plain):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


class Cutting(SAM):
    """Wrong: it takes every call of `optimizer_zero_grad` for one that zeroes."""

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self._cut_window()


@pytest.mark.parametrize("kind", [SAM, Cutting])
def test_gradients_added_up_by_hooks_of_the_module_equal_the_loop(kind):
    found = fit(seeded(Accumulating), kind(0.1)).state["weights"]
    difference = distance(found, train(seeded(Plain), accumulate=2))

    assert difference == 0.0 if kind is SAM else difference > 1e-4


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_module_that_zeroes_gradients_itself_equals_the_loop(accumulate):
    found = fit(seeded(ZeroesInPlace), SAM(0.1), accumulate_grad_batches=accumulate).state["weights"]

    assert distance(found, train(seeded(Plain), accumulate=accumulate)) == 0.0


class Skipping(Accumulating):
    """Has no loss for some batches: the first of a window, the last of one, both."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in (2, 5, 6, 7) else loss


class Dropping(Skipping):
    """Zeroes each time, in place, so that of two batches only the second counts."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("kind", [Skipping, Dropping])
def test_batches_without_a_loss_or_dropped_leave_the_window_as_the_gradients_are(kind):
    module = seeded(kind)
    fit(module, Nowhere())
    plain = seeded(kind)
    fit(plain)

    assert distance(module.state_dict(), plain.state_dict()) == 0.0


def test_another_module_on_the_same_trainer_starts_without_what_was_kept():
    trainer = quiet_trainer(method := OneStep(), max_epochs=1)
    first = seeded(Plain)
    trainer.fit(first, batches_of())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(first, batches_of())
    assert method.seen == list(range(20))
    trainer.fit_loop.max_epochs = 3
    trainer.fit(seeded(Plain), batches_of())

    assert method.seen == [*range(20), *range(10)]


def test_a_checkpoint_counts_in_another_module_too(tmp_path):
    trainer = quiet_trainer(OneStep(), max_epochs=1)
    trainer.fit(seeded(Plain), batches_of())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    trainer = quiet_trainer(method := OneStep(), max_epochs=1)
    trainer.fit(seeded(Plain), batches_of())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Plain(), batches_of(), ckpt_path=tmp_path / "first.ckpt")

    assert method.seen == [*range(10), *range(10, 20)]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_scoring_an_older_checkpoint_leaves_steps_and_what_is_kept(verb, tmp_path):
    trainer = quiet_trainer(method := OneStep(), max_epochs=1, limit_train_batches=4)
    trainer.fit(module := seeded(Plain), batches_of())
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches_of())
    getattr(trainer, verb)(module, batches_of(), ckpt_path=tmp_path / "early.ckpt", verbose=False)

    assert method.state_dict()["steps"] == {0: 8}
    assert all(torch.equal(it, torch.full_like(it, 7)) for it in method.state_dict()["kept"].values())


class Elsewhere(Plain):
    """Trains a weight that is none of its own."""

    def configure_optimizers(self):
        self.outside = [nn.Parameter(torch.ones(3))]
        return torch.optim.SGD([*self.parameters(), *self.outside], lr=0.05)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.outside[0].square().sum()


def test_a_weight_without_a_name_cannot_have_something_kept():
    fit(seeded(Elsewhere), SAM(0.1))
    with pytest.raises(ValueError) as error:
        fit(seeded(Elsewhere), SAM(0.1, every_n_steps=2))

    assert str(error.value) == (
        "SAM: the optimizer has a parameter of shape (3,) that is not in the module, so what belongs to it has no name "
        "in checkpoints; make it an attribute of the module, or take it out of the optimizer."
    )


class Direct(Plain):
    """Writes to its logger itself."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.logger.log_metrics({"own": loss.item()}, step=batch_idx)
        return loss


def test_what_is_written_to_the_logger_itself_is_written_once():
    rows = fit(seeded(Direct), SAM(0.1)).rows
    assert [step for step, row in rows if "own" in row] == list(range(10))
    assert rows[0] == fit(seeded(Direct)).rows[0]


class Lbfgs(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Iterating(Plain):
    def training_step(self, dataloader_iter):
        pass


@pytest.mark.parametrize(
    ("kind", "methods", "message"),
    [
        (
            Plain,
            [SAM(0.1, name="a"), SAM(0.2, name="b")],
            "SAM: the Trainer has SAM[a] and SAM[b], and each would take the other's gradient for the plain one; keep "
            "one of them.",
        ),
        (
            Lbfgs,
            [SAM(0.1)],
            "SAM: LBFGS compares losses at several points, which belong to other weights than its gradients here; use "
            "another optimizer.",
        ),
        (
            Iterating,
            [SAM(0.1)],
            "SAM: training_step of Iterating takes `dataloader_iter`, so its batches cannot be reached; let it take "
            "`batch`.",
        ),
    ],
    ids=["two", "LBFGS", "iterator"],
)
def test_what_it_cannot_do_is_refused_at_set_up(kind, methods, message):
    with pytest.raises(ValueError) as error:
        fit(seeded(kind), *methods)

    assert message == str(error.value)


def test_streams_are_read_and_put_back_exactly():
    """Normals come in pairs from numpy; the second is kept apart from the memory that is compared."""
    stream, states = _NumpyStream(), []
    for _ in range(5):
        states.append((stream.read(), np.random.normal()))
    for state, value in reversed(states):
        stream.write(state)
        assert np.random.normal() == value
    everything = read_streams(torch.device("cpu"))
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    np.random.rand(624)
    rewind(everything)

    assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn


def test_the_memory_that_numpy_publishes_is_its_state():
    """Guard of the only thing that stands on numpy's layout: 624 words and a position."""
    stream, seen = _NumpyStream(), set()
    for _ in range(700):
        seen.add(stream._read_memory())
        np.random.bytes(4)
    words = np.frombuffer(stream._read_memory()[:2496], np.uint32)

    assert len(seen) == 700
    assert np.array_equal(words, np.random.get_state()[1])


def test_looksam_resumes_inside_a_cycle(tmp_path):
    def loaders():
        return ResumableLoader(labelled_images(60), 6)

    def callbacks(folder):
        writer = ModelCheckpoint(tmp_path / folder, every_n_train_steps=4, save_top_k=-1)
        return [SAM(0.1, every_n_steps=5), ExactResume(), writer]

    straight = record(seeded(Plain), loaders, callbacks("straight"), max_epochs=2)
    killed = record(seeded(Plain), loaders, callbacks("killed"), max_epochs=2, kill_at=9)
    checkpoint = newest(tmp_path / "killed")
    resumed = record(Plain(), loaders, callbacks("resumed"), max_epochs=2, ckpt_path=checkpoint)

    assert differences(straight, killed, resumed) == []

"""A replay leaves no trace: weights, buffers, metrics, logs, random streams and hooks are as if computed once."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics import MeanMetric

from lightning_vision.callbacks import SAM, ExactResume
from lightning_vision.callbacks.hooks._replay import _NumpyStream, read_streams, rewind
from lightning_vision.callbacks.hooks.ascent import Ascent, replaying
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import KilledError, differences, newest, record
from support.sam_by_hand import fit, sam, train

HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_start",
    "on_train_batch_end",
)


class Watched(Plain):
    """Counts and draws in `training_step`, keeps a metric, replaces a buffer, overrides `backward`."""

    def __init__(self, dropout=0.5):
        super().__init__(dropout)
        self.mean = MeanMetric()
        self.register_buffer("average", torch.zeros(()))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.draws, self.hooks, self.backwards = [], dict.fromkeys(HOOKS, 0), 0
        for name in HOOKS:
            setattr(self, name, lambda *args, name=name: self.hooks.update({name: self.hooks[name] + 1}))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean(loss.detach())
        self.log("train/mean", self.mean, on_step=True, on_epoch=True)
        self.average = 0.9 * self.average + loss.detach()
        state = [random.random(), np.random.normal(), torch.rand(()).item(), self.network[3](torch.ones(8)).tolist()]
        self.draws.append((replaying(self), state))
        return loss

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

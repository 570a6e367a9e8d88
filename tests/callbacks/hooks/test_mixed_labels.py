"""Labels of a mixed batch are the own integer labels to everybody but a loss: metrics, readers, files."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lightning_vision.callbacks.hooks import _mixed_calls
from lightning_vision.callbacks.hooks._mixed_labels import MixedTensor, Mixture, resolved

B, K = 8, 5

Y = torch.tensor([3, 0, 4, 1, 2, 2, 0, 1])
PARTNER = torch.tensor([5, 2, 0, 7, 3, 1, 6, 4])
SHARES = [pytest.param(0.3, id="batch"), pytest.param(torch.linspace(0.1, 0.9, B), id="sample")]


def labels(lam=0.3):
    y = Y.clone()
    return MixedTensor.of(y, y[PARTNER], Mixture("Mixer", lam, B), lam)


def logits(seed=0):
    return torch.randn(B, K, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def metrics():
    kinds = {
        "micro": MulticlassAccuracy(K, average="micro"),
        "macro": MulticlassAccuracy(K),
        "top2": MulticlassAccuracy(K, top_k=2),
        "f1": MulticlassF1Score(K),
        "confusion": MulticlassConfusionMatrix(K),
        "auroc": MulticlassAUROC(K),
        "binned": MulticlassAUROC(K, thresholds=5),
    }
    return MetricCollection(kinds, compute_groups=False)


def states(collection):
    return {
        (name, key): value
        for name, metric in collection.items()
        for key, value in metric.metric_state.items()
    }  # fmt: skip


def plain_equal(found, expected):
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(plain_equal, found, expected))
    return type(found) is Tensor and torch.equal(found, expected)


def updated(lam=None):
    """A collection after two steps, on mixed labels if there is a share."""
    collection = metrics()
    for seed in (0, 1):
        if lam is None:
            collection(logits(seed), Y)
            continue
        y = labels(lam)
        with y.mixture.live():
            fresh = MixedTensor.of(y.own, y.twin, y.mixture, lam)
            collection(logits(seed), fresh)
            F.cross_entropy(logits(seed), y)
    return collection


@pytest.mark.parametrize("lam", SHARES)
def test_metrics_have_the_values_and_plain_states_of_own_labels(lam):
    found, expected = updated(lam), updated()

    for name, state in states(expected).items():
        assert plain_equal(states(found)[name], state), name
    for name, value in expected.compute().items():
        assert torch.equal(found.compute()[name], value), name


def test_updating_states_in_both_worlds_is_noticed(monkeypatch):
    monkeypatch.setattr(_mixed_calls.Call, "_is_in_place", lambda call: False)

    assert not torch.equal(updated(0.3)["confusion"].confmat, updated()["confusion"].confmat)


@pytest.mark.parametrize("lam", SHARES)
def test_accuracy_by_hand_is_that_of_own_labels(lam):
    y, z = labels(lam), logits()
    with y.mixture.live():
        correct = (z.argmax(1) == y).float().mean()
        counted = torch.zeros(()).add_((z.argmax(1) == y).sum())
        number = (z.argmax(1) == y).sum().item()
        whole = torch.zeros((), dtype=torch.int64)
        whole += (z.argmax(1) == y).sum()
    expected = (z.argmax(1) == Y).float().mean()

    assert plain_equal(correct, expected)
    assert plain_equal(counted, expected * B)
    assert round(expected.item() * B) == number == whole


def test_logged_losses_are_mixed_and_plain():
    y, z, mean = labels(), logits(), MeanMetric()
    expected = 0.3 * F.cross_entropy(z, Y) + (1 - 0.3) * F.cross_entropy(z, Y[PARTNER])
    with y.mixture.live():
        loss = F.cross_entropy(z, y)
        kept, read, shown, total = [loss], loss.item(), f"{loss:.6f}", torch.zeros(())
        mean.update(loss)
        with torch.no_grad():
            total += loss
        detached = loss.detach()

    assert expected.item() == read
    assert f"{expected:.6f}" == shown
    for found in (kept[0], detached, total, mean.mean_value):
        assert plain_equal(found.detach(), expected.detach())


def test_a_loss_can_be_driven_backward_inside_the_step():
    for drive in (lambda loss, z: loss.backward(), lambda loss, z: setattr(z, "grad", torch.autograd.grad(loss, z)[0])):
        y, found, expected = labels(), logits(), logits()
        with y.mixture.live():
            drive(F.cross_entropy(found, y) * 8, found)
        by_formula = 0.3 * F.cross_entropy(expected, Y) + (1 - 0.3) * F.cross_entropy(expected, Y[PARTNER])
        (by_formula * 8).backward()

        torch.testing.assert_close(found.grad, expected.grad)


def test_labels_read_as_the_integers_they_are():
    y = labels()

    for live in (False, True):
        y.mixture.is_live = live
        assert torch.int64 is y.dtype
        assert len(y) == B
        assert Y.tolist() == y.tolist() == [int(it) for it in y] == list(y.numpy())
        assert repr(Y) == repr(y)
        assert f"{Y}" == f"{y}"
        assert Y.shape == y.shape
        assert Y.device == y.device
        assert (1 in Y) == (1 in y)
        assert isinstance(y, Tensor)
    y.mixture.is_live = False
    assert type(y + 1) is Tensor


def test_copies_and_files_hold_plain_labels():
    y, file = labels(), io.BytesIO()
    torch.save({"y": y}, file)
    file.seek(0)

    for found in (
        pickle.loads(pickle.dumps(y)),
        copy.copy(y),
        copy.deepcopy(y),
        torch.load(file, weights_only=True)["y"],
    ):
        assert plain_equal(found, Y)


def test_what_a_step_leaves_behind_is_plain():
    y, memory = labels(), torch.zeros(20, dtype=torch.int64)
    kept = []
    with pytest.raises(RuntimeError, match="step"), y.mixture.live():
        memory[:B] = y
        kept += [y.view(-1), F.one_hot(y, K), *y.split(4), y.max(0).values, torch.zeros(B).copy_(y)]
        raise RuntimeError("step")

    assert plain_equal(memory[:B], Y)
    assert all(type(it) is Tensor for it in [memory, *kept])


@pytest.mark.parametrize("lam", SHARES)
def test_states_that_are_written_through_a_view_hold_own_labels(lam):
    y, counts, rows = labels(lam), torch.zeros(K, K, dtype=torch.long), torch.zeros(2, B, dtype=torch.long)
    guess = Y.flip(0)
    with y.mixture.live():
        for _ in range(2):
            counts.view(-1)[guess * K + y] += 1
            rows[1].copy_(y)
    expected = torch.zeros(K, K, dtype=torch.long)
    for _ in range(2):
        expected.view(-1)[guess * K + Y] += 1

    assert plain_equal(counts, expected)
    assert plain_equal(rows, torch.stack([torch.zeros_like(Y), Y]))


READS = {
    "tolist": lambda y: y.tolist(),
    "numpy": lambda y: y.numpy(),
    "array": lambda y: np.asarray(y),
    "item": lambda y: y[0].item(),
    "int": lambda y: int(y[0]),
    "float": lambda y: float(y[0].float()),
    "index": lambda y: range(9)[y[0]],
    "bool": lambda y: bool(y[1] == 0),
    "contains": lambda y: 0 in y[1:2],
    "equal": lambda y: torch.equal(y, Y),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_labels_that_leave_torch_are_noticed_where_the_partners_are_others(read):
    y = labels()
    with y.mixture.live():
        read(y)
        assert y.mixture.left_torch
    twin = MixedTensor.of(Y, Y.clone(), y.mixture, 0.3)
    with y.mixture.live():
        read(twin)
        F.cross_entropy(logits(), y).item()
        repr(y)
        assert not y.mixture.left_torch


def test_random_numbers_are_drawn_once():
    y = labels()
    before = torch.get_rng_state()
    torch.rand_like(Y.float())
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    with y.mixture.live():
        torch.rand_like(y.float())
        assert torch.equal(expected, torch.get_rng_state())

        with pytest.raises(ValueError, match="Mixer: the labels go through dropout, which cannot be computed twice"):
            F.dropout(y.float())
        with pytest.raises(ValueError, match="batch_norm"):
            nn.BatchNorm1d(K)(logits() * F.one_hot(y, K))


@pytest.mark.parametrize("lam", SHARES)
def test_in_place_changes_of_labels_reach_both_worlds(lam):
    y, z = labels(lam), logits()
    with y.mixture.live():
        y[y == 2] = -100
        found = resolved(F.cross_entropy(z, y, reduction="sum"))
    left, right = (torch.where(it == 2, -100, it) for it in (Y, Y[PARTNER]))
    own, twin = (F.cross_entropy(z, it, reduction="none") for it in (left, right))

    torch.testing.assert_close(found, (lam * own + (1 - lam) * twin).sum())


@pytest.mark.parametrize("change", [lambda y: y.flip(0), lambda y: y.roll(1), lambda y: y[[1, 0, *range(2, B)]],
                                    lambda y: y.cumsum(0) % K, lambda y: y.sort().values],
                         ids=["flip", "roll", "index", "cumsum", "sort"])  # fmt: skip
def test_shares_of_samples_do_not_move_to_other_samples(change):
    y, z = labels(SHARES[1].values[0]), logits()

    with y.mixture.live(), pytest.raises(ValueError, match="compares the labels of different samples, whose shares"):
        resolved(F.cross_entropy(z, change(y)))


@pytest.mark.parametrize("lam", SHARES)
def test_a_compiled_step_gives_the_same_loss(lam, compiler):
    network = nn.Linear(6, K)

    def step(network, x, y):
        z = network(x)
        return F.cross_entropy(z, y.view(-1)), (z.argmax(1) == y).float().mean()

    x = torch.randn(B, 6, generator=torch.Generator().manual_seed(0))
    losses = []
    for run, net in (
        (step, network),
        (torch.compile(step, backend="eager"), network),
        (step, torch.compile(network, backend="eager")),
    ):
        y = labels(lam)
        with y.mixture.live():
            losses.append(resolved(run(net, x, y)))
    expected = (network(x).argmax(1) == Y).float().mean()

    for loss, accuracy in losses:
        assert plain_equal(loss, losses[0][0])
        assert plain_equal(accuracy, expected)

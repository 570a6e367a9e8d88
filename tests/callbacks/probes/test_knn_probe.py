"""The vote is a hand-written loop's and lightly's, for all k in one pass; the callback says by which protocol.

How features are read is proved in `hooks/test_probing.py`, that training sees nothing of it in `conformance/`.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict as lightlys
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_vision.callbacks import KNNProbe, knn_predict
from lightning_vision.callbacks.probes.knn_probe import _largest
from support.data import plain_loader
from support.modules import Featured
from support.trainers import quiet_trainer


def clouds(queries=40, bank=150, width=12, classes=7, seed=0):
    """Queries, bank and labels of clouds that overlap."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (bank,), generator=generator)
    asked = torch.randint(classes, (queries,), generator=generator)
    noise = torch.randn(bank + queries, width, generator=generator) * 1.6
    return centres[asked] + noise[:queries], centres[labels] + noise[queries:], labels


def by_hand(queries, bank, labels, k, temperature, weigh=lambda s, t: (s / t).exp()):
    found = []
    for query in queries:
        similarity = torch.stack([F.cosine_similarity(query, it, dim=0) for it in bank])
        votes = torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
        for place in similarity.argsort(descending=True)[:k].tolist():
            votes[labels[place]] += weigh(similarity[place].double(), temperature)
        found.append(int(votes.argmax()))
    return torch.tensor(found)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.07), (150, 0.5)])
def test_the_vote_is_a_hand_written_loops(k, temperature):
    queries, bank, labels = clouds()

    assert torch.equal(
        knn_predict(queries, bank, labels, k, temperature), by_hand(queries, bank, labels, k, temperature)
    )


def test_a_wrong_vote_is_noticed():
    queries, bank, labels = clouds()
    right = knn_predict(queries, bank, labels, 60, 0.1)
    unweighted = by_hand(queries, bank, labels, 60, 0.1, weigh=lambda s, t: 1.0)
    inverted = by_hand(queries, bank, labels, 60, 0.1, weigh=lambda s, t: (-s / t).exp())

    assert all(not torch.equal(right, wrong) for wrong in (unweighted, inverted))
    # The lengths of features have no vote, which those of a plain product would have.
    lengths = torch.linspace(0.1, 10, len(bank))[:, None]
    assert torch.equal(knn_predict(queries, bank * lengths, labels, 60, 0.1), right)
    assert not torch.equal(queries @ (bank * lengths).T, queries @ bank.T)


@pytest.mark.parametrize(("bank", "classes", "k"), [(400, 10, 200), (300, 300, 20)])
def test_it_is_lightlys(bank, classes, k):
    queries, them, labels = clouds(100, bank, 16, classes, seed=1)
    unit = F.normalize(them, dim=1)
    expected = lightlys(F.normalize(queries, dim=1), unit.T, labels, classes, k, 0.1)[:, 0]

    assert torch.equal(knn_predict(queries, them, labels, k, 0.1), expected)


def test_several_k_in_one_pass_are_one_pass_each_whatever_their_order_and_chunk():
    queries, bank, labels = clouds()
    several = knn_predict(queries, bank, labels, [20, 1, 150], 0.5, chunk=7)

    assert several.tolist() == [knn_predict(queries, bank, labels, k, 0.5).tolist() for k in (20, 1, 150)]
    assert len({tuple(it) for it in several.tolist()}) == 3


def test_a_small_temperature_overflows_nothing():
    queries, bank, labels = clouds()
    nearest = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).argmax(1)

    assert torch.equal(knn_predict(queries, bank, labels, 50, 1e-4), labels[nearest])


@pytest.mark.parametrize(("columns", "k"), [(1000, 7), (1003, 7), (50, 50), (64, 1), (200, 60)])
def test_the_largest_are_topks(columns, k):
    rows = torch.randn(9, columns, generator=torch.Generator().manual_seed(2))
    values, places = _largest(rows, k)

    assert torch.equal(values, rows.topk(k).values) and torch.equal(rows.gather(1, places), values)
    assert all(len(set(it)) == k for it in places.tolist())


@pytest.mark.parametrize("chunk", [16, 64])
def test_no_more_similarities_are_held_than_the_chunk(chunk):
    queries, bank, labels = clouds(256, 4000, 8)
    held = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (4000,) and result.ndim == 2:
                held.append(len(result))
            return result

    with Watch():
        knn_predict(queries, bank, labels, 20, chunk=chunk)

    # The bank's transpose, too, has as many columns.
    assert max(it for it in held if it != 8) == chunk


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (151, "knn_predict: k is 151 and the bank has 150 images; give whole numbers from 1 to 150."),
        ([5, 0], "knn_predict: k is [5, 0] and the bank has 150 images; give whole numbers from 1 to 150."),
    ],
)
def test_more_neighbours_than_images_are_refused(k, message):
    with pytest.raises(ValueError) as caught:
        knn_predict(*clouds(), k)

    assert str(caught.value) == message


def test_shapes_that_do_not_fit_are_refused():
    queries, bank, labels = clouds()
    with pytest.raises(
        ValueError, match=r"^knn_predict: queries \(40, 11\), a bank \(150, 12\) and labels \(150,\) do"
    ):
        knn_predict(queries[:, 1:], bank, labels)


@pytest.mark.parametrize(
    ("settings", "called", "k", "temperature"),
    [
        ({}, "instdisc", [200], 0.1),
        ({"protocol": "dinov2"}, "dinov2", [10, 20, 100, 200], 0.07),
        ({"protocol": "solo"}, "solo", [20], 0.07),
        ({"protocol": "solo", "k": 20}, "solo", [20], 0.07),
        ({"protocol": "solo", "k": [1, 20]}, "solo*", [1, 20], 0.07),
        ({"temperature": 0.2}, "instdisc*", [200], 0.2),
        ({"max_samples": 500}, "instdisc*", [200], 0.1),
    ],
)
def test_a_protocol_whose_settings_were_changed_has_no_published_name(settings, called, k, temperature):
    probe = KNNProbe(**settings)

    assert (probe.protocol, probe.settings["k"], probe.settings["temperature"]) == (called, k, temperature)
    assert json.loads(json.dumps(probe.settings)) == probe.settings


class Cloud(Featured):
    """Its features are its pixels."""

    def features(self, image):
        return image.flatten(1)


def test_the_number_is_the_share_that_is_right_and_unknown_labels_have_no_part(tmp_path):
    train, val = plain_loader(60), plain_loader(30)
    train.dataset.tensors[1][:10] = -1
    val.dataset.tensors[1][20:] = -1
    probe = KNNProbe(k=[3, 50], max_samples=None)
    trainer = quiet_trainer(callbacks=[probe], max_epochs=1, default_root_dir=tmp_path)
    with isolate_rng():
        trainer.fit(_Silent(), train, val)
    (bank, labels), (asked, right) = train.dataset.tensors, val.dataset.tensors
    found = knn_predict(asked.flatten(1)[:20], bank.flatten(1)[10:], labels[10:], [3, 50], 0.1)
    shares = (found == right[:20]).double().mean(1)

    assert float(trainer.callback_metrics["probe/knn_3"]) == pytest.approx(float(shares[0]))
    assert float(trainer.callback_metrics["probe/knn_50"]) == pytest.approx(float(shares[1]))
    assert shares[0] != shares[1]


class _Silent(Cloud):
    """Unknown labels are no matter to it."""

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass


def test_more_neighbours_than_training_images_are_refused_before_the_first_step(tmp_path):
    module = Cloud()
    with pytest.raises(ValueError, match=r"^KNNProbe: 200 neighbours are to vote and there are 60 training images"):
        quiet_trainer(callbacks=[KNNProbe()], max_epochs=1, default_root_dir=tmp_path).fit(
            module, plain_loader(60), plain_loader(12)
        )

    assert module.trainer.global_step == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "mine"}, "KNNProbe: protocol is 'mine'; give 'instdisc', 'dinov2' or 'solo'."),
        ({"k": []}, "KNNProbe: k is []; give one number or several different ones."),
        ({"k": 0}, "KNNProbe: k is 0; give a whole number of at least 1."),
        ({"temperature": 0}, "KNNProbe: temperature is 0; give a number above 0."),
        ({"chunk": 0}, "KNNProbe: chunk is 0; give a whole number of at least 1."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        KNNProbe(**settings)

    assert str(caught.value) == message

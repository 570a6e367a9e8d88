"""Both losses of MoCo equal lightly's or a loop, on ranks as alone; the queue and the branch that follows."""

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from lightning_vision.self_supervised import MoCo
from lightning_vision.self_supervised.moco import info_nce_batch, info_nce_queue
from support.learners import contrasted, moves, resumed, shared, tiny, unlabelled
from support.trainers import quiet_trainer


def pair(count=6, dim=5):
    torch.manual_seed(1)
    return torch.randn(2, count, dim, dtype=torch.float64, requires_grad=True)


def unit(count, dim=5):
    torch.manual_seed(2)
    return F.normalize(torch.randn(count, dim, dtype=torch.float64), dim=1)


def test_with_a_queue_the_loss_is_lightlys_gradient_too():
    queries, keys = pair()
    negatives = unit(10)
    peer = NTXentLoss(temperature=0.2, memory_bank_size=(10, 5))
    peer.memory_bank.bank = negatives.clone()
    theirs = peer(queries, keys.detach())
    ours = info_nce_queue(queries, keys, negatives, 0.2)

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, queries)[0] for loss in (ours, theirs)))


def test_within_a_batch_the_loss_is_a_loop():
    queries, keys = pair()
    alike = torch.stack([torch.stack([F.cosine_similarity(q, k, dim=0) for k in keys.detach()]) for q in queries]) / 0.3
    loop = 2 * 0.3 * torch.stack([row.logsumexp(0) - row[i] for i, row in enumerate(alike)]).mean()
    ours = info_nce_batch(queries, keys, 0.3)

    torch.testing.assert_close(ours, loop)
    torch.testing.assert_close(*(torch.autograd.grad(loss, queries)[0] for loss in (ours, loop)))
    # The mutant lets keys look for their queries.
    swapped = 2 * 0.3 * torch.stack([row.logsumexp(0) - row[i] for i, row in enumerate(alike.T)]).mean()
    assert abs(ours - swapped) > 0.01


@pytest.mark.parametrize("loss", [info_nce_batch, lambda q, k, t: info_nce_queue(q, k, unit(4), t)])
def test_keys_get_no_gradient(loss):
    embeddings = pair()
    moved = torch.autograd.grad(loss(*embeddings, 0.2), embeddings)[0]

    assert moved[0].abs().max() > 1e-3
    assert moved[1].abs().max() == 0


def test_one_query_has_nothing_to_be_told_from():
    one = pair(1).detach()

    assert float(info_nce_queue(*one, unit(0), 0.2)) == float(info_nce_batch(*one, 0.2)) == 0


def test_ranks_with_unequal_rows_are_one_process(two_ranks):
    negatives = unit(7, 4)

    def both(*embeddings):
        return info_nce_queue(*embeddings, negatives, 0.5) + info_nce_batch(*embeddings, 0.5)

    def own(*embeddings):
        alike = F.normalize(embeddings[0], dim=1) @ F.normalize(embeddings[1].detach(), dim=1).T
        return F.cross_entropy(alike / 0.5, torch.arange(len(alike)))

    expected = contrasted(both)
    for found in two_ranks(contrasted, both):
        torch.testing.assert_close(found, expected)
    # The mutant looks among the keys of its own rank.
    torch.testing.assert_close(contrasted(own), contrasted(lambda *embeddings: info_nce_batch(*embeddings, 0.5)))
    assert (two_ranks(contrasted, own)[0][1] - contrasted(own)[1]).abs().max() > 1e-2


@pytest.mark.parametrize("queue_size", [0, 16])
def test_the_branch_moves_once_a_step(queue_size):
    assert moves(tiny(MoCo, queue_size=queue_size, momentum=0.9)) == ["stays", "moves"] * 2
    assert moves(shared(tiny(MoCo, queue_size=queue_size, momentum=0.9))) != ["stays", "moves"] * 2


def test_the_queue_holds_keys_of_one_view_and_a_batch_larger_than_it_leaves_its_last():
    sizes = {}
    for size in (4, 100):
        learner = tiny(MoCo, queue_size=size)
        quiet_trainer(max_steps=3).fit(learner, unlabelled(), unlabelled())
        sizes[size] = len(learner.queue.stored())

    # Six images a step; validation adds none.
    assert sizes == {4: 4, 100: 18}


def test_the_two_versions_have_their_heads():
    second, third = (tiny(MoCo, queue_size=size).network for size in (8, 0))

    assert [type(it).__name__ for it in second.projector] == ["Linear", "ReLU", "Linear"]
    assert not hasattr(second, "predictor")
    assert sum(isinstance(it, torch.nn.Linear) for it in third.projector) == 3
    assert sum(isinstance(it, torch.nn.Linear) for it in third.predictor) == 2


@pytest.mark.parametrize("queue_size", [0, 20])
def test_a_resumed_run_is_the_straight_one(queue_size, tmp_path):
    assert resumed(lambda: tiny(MoCo, queue_size=queue_size, momentum=0.9, momentum_end=1.0), tmp_path) == []


def test_an_empty_queue_after_resuming_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_vision.self_supervised.key_queue.KeyQueue.set_extra_state", lambda *_: None)

    assert resumed(lambda: tiny(MoCo, queue_size=20), tmp_path) != []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, r"^temperature is 0; give a number above 0$"),
        ({"queue_size": -1}, r"^queue_size is -1; give the number of embeddings that stay, or 0 for version 3$"),
        ({"views": "mae"}, r"^MoCo compares 2 views and `views` gives 1; give 2$"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(MoCo, **settings)

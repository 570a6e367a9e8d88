"""NT-Xent equals lightly's and a double loop, on ranks as alone; the second version's memory, resumed to the bit.

Fine-tuning from a layer of the head is proved in `test_projected.py`, the whole pipeline in `test_simclr_v2.py`.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from lightning_vision.callbacks import SAM
from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised import SimCLR
from lightning_vision.self_supervised.simclr import nt_xent
from support.learners import contrasted, moves, resumed, shared, tiny, unlabelled
from support.trainers import quiet_trainer


def pair(count=6, dim=5):
    torch.manual_seed(1)
    return torch.randn(2, count, dim, dtype=torch.float64, requires_grad=True)


def gradient(loss, embeddings):
    return torch.autograd.grad(loss, embeddings)[0]


def by_loop(first, second, temperature, negatives=(), itself=False):
    """Equation 1, one pair after the other; `itself` is the mutant that compares an answer with itself too."""
    embeddings = [*first, *second]
    terms = []
    for i, own in enumerate(embeddings):
        partner = embeddings[(i + len(first)) % len(embeddings)]
        others = [other for j, other in enumerate(embeddings) if itself or j != i] + list(negatives)
        alike = [F.cosine_similarity(own, other, dim=0) / temperature for other in others]
        terms.append(torch.stack(alike).logsumexp(0) - F.cosine_similarity(own, partner, dim=0) / temperature)
    return torch.stack(terms).mean()


def test_row_51_nt_xent_is_lightlys_gradient_too():
    embeddings = pair()
    ours, theirs = nt_xent(*embeddings, 0.2), NTXentLoss(temperature=0.2)(*embeddings)

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, embeddings), gradient(theirs, embeddings))


def test_with_negatives_it_is_a_double_loop():
    embeddings, negatives = pair(), F.normalize(pair(3)[0].detach(), dim=1)
    ours, loop = nt_xent(*embeddings, 0.5, negatives), by_loop(*embeddings, 0.5, negatives)

    torch.testing.assert_close(ours, loop)
    torch.testing.assert_close(gradient(ours, embeddings), gradient(loop, embeddings))
    assert abs(ours - nt_xent(*embeddings, 0.5)) > 0.1


def test_an_answer_compared_with_itself_is_noticed():
    embeddings = pair()

    assert abs(nt_xent(*embeddings, 0.2) - by_loop(*embeddings, 0.2, itself=True)) > 0.1


def test_equal_answers_are_told_apart_by_chance():
    same = torch.ones(2, 4, 3)

    assert float(nt_xent(*same, 0.1)) == pytest.approx(math.log(7))


def test_ranks_with_unequal_rows_and_negatives_are_one_process(two_ranks):
    negatives = F.normalize(pair(3, 4)[0].detach(), dim=1)

    def loss(*embeddings):
        return nt_xent(*embeddings, 0.5, negatives)

    expected = contrasted(loss)
    for found in two_ranks(contrasted, loss):
        torch.testing.assert_close(found, expected)


def test_ranks_that_contrast_their_own_rows_are_noticed(two_ranks):
    def own(*embeddings):
        return NTXentLoss(temperature=0.5)(*embeddings)

    assert (two_ranks(contrasted, own)[0][1] - contrasted(own)[1]).abs().max() > 1e-2


def test_head_layers_are_as_many_as_asked_and_answers_have_no_scale():
    for layers in (1, 2, 3):
        head = tiny(SimCLR, head_layers=layers).network.projector
        widths = [layer.out_features for layer in head if isinstance(layer, torch.nn.Linear)]

        assert widths == [16] * (layers - 1) + [8]
        assert head[-1].weight is None


def test_the_branch_of_the_memory_moves_once_a_step():
    assert moves(tiny(SimCLR, memory=16, momentum=0.9)) == ["stays", "moves"] * 2
    assert moves(shared(tiny(SimCLR, memory=16, momentum=0.9))) != ["stays", "moves"] * 2


def test_the_memory_holds_unit_answers_to_both_views():
    learner = tiny(SimCLR, memory=40)
    quiet_trainer(max_steps=3).fit(learner, unlabelled())

    assert learner.queue.stored().shape == (36, 8)
    torch.testing.assert_close(learner.queue.stored().norm(dim=1), torch.ones(36))


def test_without_memory_there_is_no_second_branch():
    names = tiny(SimCLR).state_dict().keys()

    assert all(name.startswith("network.") for name in names)


def test_a_batch_computed_again_comes_into_the_memory_once():
    learner = tiny(SimCLR, memory=100)
    quiet_trainer(max_steps=2, callbacks=[SAM(rho=0.05)], accumulate_grad_batches=2).fit(learner, unlabelled())

    assert len(learner.queue.stored()) == 2 * 2 * 12


def test_a_resumed_run_is_the_straight_one(tmp_path):
    assert resumed(lambda: tiny(SimCLR, memory=20), tmp_path) == []


def test_it_rebuilds_from_its_checkpoint(tmp_path):
    learner = tiny(SimCLR, memory=20, temperature=0.3)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(learner, unlabelled())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = SimCLR.load_from_checkpoint(tmp_path / "last.ckpt")

    assert again.temperature == 0.3
    assert torch.equal(again.queue.stored(), learner.queue.stored())
    assert torch.equal(again.eval()(torch.ones(2, 1, 8, 8)), learner.eval()(torch.ones(2, 1, 8, 8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, r"^temperature is 0; give a number above 0$"),
        ({"head_layers": 0}, r"^head_layers is 0; give a number above 0$"),
        ({"memory": -1}, r"^memory is -1; give the number of embeddings that stay, or 0 for none$"),
        ({"momentum": 2}, r"^momentum is 2; give the share of the target"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(SimCLR, **settings)


def test_a_batch_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"^a batch has 1 image and SimCLR needs 2; give "):
        quiet_trainer(max_steps=1).fit(tiny(SimCLR), datamodule=PlacedDigits(batch_size=1))
    with pytest.raises(ValueError, match=r"^this batch has 1 image and SimCLR needs 2; give "):
        quiet_trainer(max_steps=1).fit(tiny(SimCLR), [torch.zeros(1, 1, 8, 8)[None]])

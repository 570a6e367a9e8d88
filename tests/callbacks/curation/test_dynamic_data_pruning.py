"""DynamicDataPruning: groups and windows by hand, a loop written out, and half the visits on digits.

Conformance (resume, two processes, neutral run, undo) is proved in `tests/conformance/`, the loaders in
`tests/callbacks/hooks/test_training_samples.py`.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from sklearn.cluster import KMeans
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import DynamicDataPruning
from lightning_vision.callbacks.curation.dynamic_data_pruning import (
    _filled,
    _inside,
    loss_groups,
    random_part,
    window_at,
)
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

from .conftest import SAMPLES, in_sixes, whole

LOSSES = torch.tensor([0.1, 9.0, 0.2, 1.0, 1.1, 4.0, 0.15, 4.1])


def test_groups_go_from_easy_to_hard() -> None:
    assert loss_groups(LOSSES, 4).tolist() == [0, 3, 0, 1, 1, 2, 0, 2]


def test_of_fewer_losses_than_groups_each_is_a_group() -> None:
    assert loss_groups(torch.tensor([2.0, 1.0, 2.0]), 5).tolist() == [1, 0, 1]
    assert loss_groups(torch.ones(3), 5).tolist() == [0, 0, 0]


def test_chance_keeps_a_share_and_each_sample_alike() -> None:
    kept = torch.cat([random_part(10, 0.3, np.random.default_rng(draw)) for draw in range(2000)])
    counts = kept.bincount(minlength=10)

    assert len(kept) == 2000 * 7
    # Four standard errors of a share of 0.7 among 2,000 draws.
    assert (counts / 2000 - 0.7).abs().max() < 4 * (0.7 * 0.3 / 2000) ** 0.5


def planned(pruning: DynamicDataPruning, losses: Tensor, epoch: int, max_epochs: int = 8) -> Any:
    pruning.losses, pruning.batches = losses, torch.zeros(len(losses))
    pruning._fresh = torch.zeros(len(losses), dtype=torch.bool)
    pruning.max_epochs = max_epochs
    visit = pruning.visits(epoch, len(losses))
    return None if visit is None else visit.positions.tolist()


def test_row_292_the_window_slides_over_known_losses() -> None:
    """Window start t mod (groups - window + 1), indices those of a window made by hand; chance alone at the end."""
    pruning = DynamicDataPruning(prune_ratio=0.0, num_group=4, window_scale=0.5, delta=0.875)
    easy, second, hard = [0, 2, 3, 4, 6], [3, 4, 5, 7], [1, 5, 7]

    assert [window_at(t, 4, 0.5).start for t in range(6)] == [t % (4 - 2 + 1) for t in range(6)]
    found = [planned(pruning, LOSSES, epoch) for epoch in range(8)]
    assert found == [None, easy, second, hard, easy, second, hard, list(range(8))]


class Visits(Callback):
    """How often each sample came in each epoch."""

    def __init__(self, pruning: DynamicDataPruning) -> None:
        self.pruning = pruning
        self.counts: list[Counter[int]] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.counts.append(Counter())

    def on_train_batch_end(self, *args: Any) -> None:
        self.counts[-1].update(self.pruning.here.tolist())


def test_row_292_one_group_and_nothing_left_out_is_every_sample_once() -> None:
    """By a window of all groups too, whose epochs are decided on; and with both there is nothing to do."""
    assert DynamicDataPruning(prune_ratio=0.0, num_group=1).off
    pruning = DynamicDataPruning(prune_ratio=0.0, num_group=5, window_scale=0.999)
    visits = Visits(pruning)
    quiet_trainer(max_epochs=4, callbacks=[pruning, visits], limit_val_batches=0).fit(Plain(), plain_loader(SAMPLES))

    assert visits.counts == [Counter(range(SAMPLES))] * 4


@pytest.mark.parametrize("first", [0, 1], ids=["as the paper", "a mutant that begins one group later"])
def test_training_equals_a_loop_written_by_hand(apart: Any, first: int) -> None:
    def chooses(epoch: int, losses: Tensor, batches: list[list[int]]) -> list[list[int]]:
        if epoch == 0:
            return whole()
        kept = sorted(np.random.default_rng((7, epoch)).permutation(SAMPLES)[:23].tolist())
        if epoch >= 5:
            return in_sixes(kept)
        means = KMeans(5, n_init=1, random_state=7).fit(losses[kept].double().numpy()[:, None])
        rank = {group: place for place, group in enumerate(means.cluster_centers_[:, 0].argsort())}
        start = (epoch - 1 + first) % 4
        return in_sixes([it for it, group in zip(kept, means.labels_, strict=True) if start <= rank[group] < start + 2])

    difference = apart(DynamicDataPruning(0.2, 5, 0.4, delta=0.8, seed=7), chooses)

    assert difference == 0.0 if first == 0 else difference > 1e-3


def ranks_choice() -> tuple[list[list[int]], Tensor]:
    """On this rank: the samples that came in each epoch of a fit on two processes, and what the last one chose."""
    pruning = DynamicDataPruning(num_group=4)
    visits = Visits(pruning)
    trainer = quiet_trainer(max_epochs=4, callbacks=[pruning, visits], limit_val_batches=0, strategy="ddp", devices=2)
    trainer.fit(Plain(dropout=0.0), plain_loader(60, shuffle=True))
    return [sorted(it.elements()) for it in visits.counts], pruning.state_dict()["planned"]["positions"]


def test_row_292_ranks_choose_alike_and_share_what_they_chose(two_ranks: Any) -> None:
    (left, chosen), (right, chosen_there) = two_ranks(ranks_choice)

    assert sorted(left[0] + right[0]) == list(range(60))
    for epoch in (1, 2, 3):
        assert len(left[epoch]) == len(right[epoch]) > 0 and not set(left[epoch]) & set(right[epoch])
    assert torch.equal(chosen, chosen_there) and set(left[3] + right[3]) <= set(chosen.tolist())


def test_row_292_half_the_visits_are_within_a_point_on_digits() -> None:
    """Twelve epochs of one seed; a digit is 0.28 points. Five seeds and the time stand in docs/study_curation.md."""
    scores = []
    pruning = DynamicDataPruning(network="network")
    visits = Visits(pruning)
    for callbacks in ([], [pruning, visits]):
        seed_everything(0, verbose=False)
        module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
        trainer = quiet_trainer(max_epochs=12, callbacks=callbacks, limit_val_batches=0)
        trainer.fit(module, datamodule=(data := Digits(batch_size=64)))
        scores.append(100 * trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])

    assert sum(it.total() for it in visits.counts) < 0.5 * 12 * 1258
    assert scores[1] > scores[0] - 1.0


def test_losses_are_those_of_the_images_as_they_were_trained_on() -> None:
    pruning = DynamicDataPruning(num_group=4)
    torch.manual_seed(0)
    module = Plain(dropout=0.0)
    quiet_trainer(max_epochs=1, callbacks=[pruning], limit_train_batches=1).fit(module, plain_loader(SAMPLES))
    known = pruning.losses

    torch.manual_seed(0)
    first = Plain(dropout=0.0)
    images, targets = plain_loader(SAMPLES).dataset[:6]
    expected = torch.nn.functional.cross_entropy(first.train()(images), targets, reduction="none")
    assert torch.equal(known[:6], expected) and known[6:].isnan().all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prune_ratio": 1.0}, "prune_ratio=1.0 and window_scale=0.5 leave no sample to train on; give"),
        ({"window_scale": 0.0}, "prune_ratio=0.1 and window_scale=0.0 leave no sample to train on; give"),
        ({"num_group": 0}, "num_group is 0; give a whole number of at least 1"),
        ({"delta": 1.5}, "delta is 1.5; give a number from 0 to 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^DynamicDataPruning: {said}"):
        DynamicDataPruning(**settings)


def test_a_training_without_a_last_epoch_is_refused_and_one_that_needs_none_is_not() -> None:
    def fit(**settings: Any) -> None:
        trainer = quiet_trainer(max_epochs=-1, max_steps=8, callbacks=[DynamicDataPruning(**settings)])
        trainer.fit(Plain(), plain_loader(SAMPLES))

    with pytest.raises(ValueError, match=r"^DynamicDataPruning: the training has no last epoch, .*; give the Trainer"):
        fit()
    fit(delta=1.0)


def test_what_makes_no_logits_is_refused_in_the_first_batch() -> None:
    with pytest.raises(ValueError, match=r"^DynamicDataPruning: network\.0 answers \(6, 4, 3, 3\) to a batch of 6"):
        trainer = quiet_trainer(max_epochs=1, callbacks=[DynamicDataPruning(network="network.0")])
        trainer.fit(Plain(), plain_loader(SAMPLES))
    with pytest.raises(ValueError, match=r"^DynamicDataPruning: the module \(Plain\) has no layer 'head'"):
        quiet_trainer(max_epochs=1, callbacks=[DynamicDataPruning(network="head")]).fit(Plain(), plain_loader(SAMPLES))


@pytest.mark.parametrize(
    ("out", "label", "said"),
    [
        (1, lambda it: it[:, None].float(), r"Classes answers \(6, 1\) to a batch of 6 and not logits \(6, K\) of two"),
        (
            3,
            lambda it: torch.full_like(it, -100),
            "labels reach from -100 to -100, and the classes of Classes from 0 to 2",
        ),
        (3, lambda it: torch.ones(len(it), 3), r"labels \(6, 3\) are no shares of classes, for not all of their rows"),
    ],
    ids=["one logit", "ignored", "several classes"],
)
def test_what_has_no_cross_entropy_of_classes_is_refused_in_the_first_batch(out: int, label: Any, said: str) -> None:
    class Classes(Plain):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, :out]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).square().mean()

    images, targets = plain_loader(SAMPLES).dataset[:]
    trainer = quiet_trainer(max_epochs=1, callbacks=[DynamicDataPruning()], limit_val_batches=0)
    with pytest.raises(ValueError, match=f"^DynamicDataPruning: {said}"):
        trainer.fit(Classes(), DataLoader(TensorDataset(images, label(targets)), 6))
    assert trainer.global_step == 1


def test_two_that_choose_are_refused() -> None:
    callbacks = [DynamicDataPruning(), DynamicDataPruning(name="other")]

    with pytest.raises(ValueError, match=r"^DynamicDataPruning: .* would choose the samples of the same epochs; keep"):
        quiet_trainer(max_epochs=1, callbacks=callbacks).fit(Plain(), plain_loader(SAMPLES))


def test_what_never_came_has_the_mean_and_what_overflowed_is_hard() -> None:
    losses = torch.tensor([1.0, float("nan"), 3.0, float("inf")])

    assert _filled(losses).tolist() == [1.0, 2.0, 3.0, 3.0]


def test_a_window_of_less_than_a_batch_is_widened_towards_the_easy() -> None:
    group = torch.tensor([0, 0, 1, 2, 2, 3])

    assert _inside(group, range(3, 4), 1).tolist() == [False] * 5 + [True]
    assert _inside(group, range(3, 4), 3).tolist() == [False, False, False, True, True, True]
    assert _inside(group, range(3, 4), 9).all()


def test_a_loader_of_ours_that_drops_its_last_batch_trains_to_the_end() -> None:
    data = Digits(batch_size=400, drop_last=True)
    trainer = quiet_trainer(max_epochs=10, callbacks=[DynamicDataPruning()], limit_val_batches=0)
    trainer.fit(Plain(dropout=0.0), datamodule=data)

    assert trainer.current_epoch == 10


def test_overfitting_chosen_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^DynamicDataPruning: overfit_batches=3 says which samples .*; keep one"):
        quiet_trainer(max_epochs=1, callbacks=[DynamicDataPruning()], overfit_batches=3).fit(Plain(), plain_loader(29))

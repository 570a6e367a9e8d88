"""Which samples a batch holds and an epoch visits: in plain loaders, in ours, with workers, on two ranks' samplers.

Tests that name `fit_loop` turn red when Lightning derives something else from a loader's length.
"""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, SequentialSampler, TensorDataset

from lightning_vision.callbacks.hooks._training_samples import TrainingSamples
from lightning_vision.callbacks.hooks._visits import Order, PlainReader, Visit
from lightning_vision.datamodules import Digits
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Watch(Callback):
    """Installs `TrainingSamples` with a plan and writes down what came.

    Args:
        plan: By epoch, what it visits.
    """

    def __init__(self, plan: dict[int, Visit] | None = None) -> None:
        self.plan = None if plan is None else lambda epoch, samples: plan.get(epoch)
        self.seen: list[list[list[int]]] = []
        self.images: list[list[Tensor]] = []
        self.validated: list[int] = []
        self.lengths: list[int] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.samples = TrainingSamples("Watch", trainer, self.plan)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.samples.decides = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.append([])
        self.lengths.append(trainer.num_training_batches)
        self.images.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen[-1].append(self.samples.here().tolist())
        self.images[-1].append(batch[0])

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.samples.undo()


def watched(loader: Any, plan: dict[int, Visit] | None = None, epochs: int = 2, **options: Any) -> tuple[Watch, Any]:
    watch, module = Watch(plan), Plain()
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[watch], **{"num_sanity_val_steps": 0} | options)
    trainer.fit(module, loader, plain_loader(12))
    return watch, trainer


def flat(batches: list[list[int]]) -> list[int]:
    return [position for batch in batches for position in batch]


HALF = {1: Visit(torch.arange(0, 26, 2))}


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}])
def test_positions_are_those_of_the_images_that_came(options: dict[str, Any]) -> None:
    data = labelled_images(26)
    watch, _ = watched(DataLoader(data, batch_size=6, **options), HALF)

    for positions, images in zip(watch.seen[0] + watch.seen[1], watch.images[0] + watch.images[1], strict=True):
        assert torch.equal(data[positions][0], images)


def test_workers_that_read_ahead_do_not_mix_up_positions() -> None:
    data = labelled_images(26)
    loader = DataLoader(data, batch_size=6, shuffle=True, num_workers=1, persistent_workers=True)
    watch, _ = watched(loader, {0: HALF[1]})

    assert sorted(flat(watch.seen[0])) == list(range(0, 26, 2)) and sorted(flat(watch.seen[1])) == list(range(26))
    assert torch.equal(data[watch.seen[0][1]][0], watch.images[0][1])


def test_an_epoch_visits_what_was_chosen_in_the_loaders_own_order() -> None:
    torch.manual_seed(0)
    whole, _ = watched(plain_loader(26, shuffle=True))
    torch.manual_seed(0)
    half, _ = watched(plain_loader(26, shuffle=True), HALF)

    assert half.seen[0] == whole.seen[0]
    assert flat(half.seen[1]) == [it for it in flat(whole.seen[1]) if it % 2 == 0]


def test_an_order_of_its_own_is_kept() -> None:
    chosen = torch.tensor([7, 3, 11, 0])
    watch, _ = watched(plain_loader(26, batch_size=3, shuffle=True), {0: Visit(chosen, ordered=True)}, epochs=1)

    assert watch.seen == [[[7, 3, 11], [0]]]


def test_fit_loop_validates_at_the_end_of_a_short_epoch_and_goes_on_with_a_whole_one() -> None:
    watch, _ = watched(plain_loader(26), HALF, epochs=3)

    assert [len(it) for it in watch.seen] == watch.lengths == [5, 3, 5]
    assert watch.validated == [5, 8, 13]


def test_fit_loop_validates_within_a_short_epoch_as_often_as_asked() -> None:
    watch, _ = watched(plain_loader(26), HALF, val_check_interval=0.5)

    # After two and four of five batches, and after each of three.
    assert watch.validated == [2, 4, 6, 7, 8]


def test_fit_loop_steps_at_the_end_of_a_short_epochs_window() -> None:
    _, trainer = watched(plain_loader(26), HALF, accumulate_grad_batches=2)

    assert trainer.global_step == 3 + 2


def test_a_loader_of_ours_visits_what_was_chosen_with_workers_and_without() -> None:
    for workers in (0, 1):
        data = Digits(batch_size=500, num_workers=workers)
        watch = Watch({1: Visit(torch.arange(0, 1000, 3))})
        quiet_trainer(max_epochs=3, callbacks=[watch], limit_val_batches=0).fit(Ours(), datamodule=data)

        assert [sorted(flat(it)) == list(range(1258)) for it in watch.seen] == [True, False, True]
        assert sorted(flat(watch.seen[1])) == list(range(0, 1000, 3))


class Ours(Plain):
    """Digits are 8x8 with one channel, as `Plain` takes them."""

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def test_each_epoch_may_bring_a_new_loader() -> None:
    class Loads(Plain):
        def train_dataloader(self) -> Any:
            return plain_loader(26)

    watch = Watch(HALF)
    trainer = quiet_trainer(max_epochs=3, callbacks=[watch], limit_val_batches=0, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Loads())

    assert [len(it) for it in watch.seen] == [5, 3, 5]


@pytest.mark.parametrize("ordered", [False, True])
def test_ranks_share_what_is_visited_and_have_as_many(ordered: bool) -> None:
    chosen = torch.tensor([1, 2, 5, 8, 12, 13, 20])
    data = list(range(21))
    shards = []
    for rank in (0, 1):
        own = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True, seed=3)
        order = Order(own, Trainer().fit_loop)
        order.visited(Visit(chosen, ordered))
        shards.append(list(order))
        assert len(order) == 3

    assert len(set(shards[0] + shards[1])) == 6 and set(shards[0] + shards[1]) <= set(chosen.tolist())
    if ordered:
        assert [shards[0], shards[1]] == [[1, 5, 12], [2, 8, 13]]


def test_undone_the_loader_is_as_it_was() -> None:
    loader = plain_loader(26)
    own = loader.batch_sampler.sampler
    watched(loader, HALF)

    assert loader.batch_sampler.sampler is own


class Endless(Dataset[Any]):
    """Has no length."""

    def __getitem__(self, index: int) -> Any:
        return labelled_images(1)[0]


class Custom(BatchSampler):
    """Makes batches as it likes."""


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (lambda: DataLoader(Endless(), batch_size=6, sampler=range(26)), "has no dataset of a known length"),
        (lambda: [labelled_images(6)[:]] * 3, "has no dataset of a known length"),
        (
            lambda: DataLoader(labelled_images(26), batch_sampler=Custom(SequentialSampler(range(26)), 6, False)),
            "makes its batches in a way of its own",
        ),
    ],
)
def test_a_loader_that_does_not_tell_samples_apart_is_refused(loader: Any, said: str) -> None:
    with pytest.raises(
        ValueError, match=f"^Watch: the training loader .* {said}, so samples cannot be told apart; give"
    ):
        watched(loader())


def test_samples_that_come_more_than_once_are_told_apart_and_not_chosen_from() -> None:
    def loader() -> Any:
        sampler = torch.utils.data.WeightedRandomSampler(torch.ones(26), 26)
        return DataLoader(labelled_images(26), batch_size=6, sampler=sampler)

    watch, _ = watched(loader())
    assert torch.equal(labelled_images(26)[watch.seen[1][2]][0], watch.images[1][2])
    with pytest.raises(ValueError, match="WeightedRandomSampler gives samples more than once"):
        watched(loader(), HALF)


def test_several_loaders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Watch: the fit has several training loaders"):
        watched([plain_loader(26), plain_loader(26)])


def test_balanced_epochs_are_refused() -> None:
    data = Digits(batch_size=500, sampler="balanced")
    watch = Watch({0: Visit(torch.arange(100))})

    with pytest.raises(ValueError, match=r"^Watch: an epoch of sampler='balanced' has places for classes"):
        quiet_trainer(max_epochs=1, callbacks=[watch]).fit(Ours(), datamodule=data)


def test_an_epoch_of_no_sample_is_refused() -> None:
    loader = DataLoader(TensorDataset(*labelled_images(26).tensors), batch_size=6)

    with pytest.raises(ValueError, match=r"^Watch: an epoch of 0 samples is not enough for 1 processes"):
        watched(loader, {1: Visit(torch.empty(0, dtype=torch.int64))})


def test_a_loader_whose_last_batch_is_full_keeps_the_order_of_every_epoch() -> None:
    """A RandomSampler that is asked for its end draws one permutation more, which nobody asks for without a rest."""

    class Labels(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            labels.append(batch[1].tolist())
            return super().training_step(batch, batch_idx)

    labels: list[list[int]] = []
    for callbacks in ([], [Watch()]):
        loader = plain_loader(30, shuffle=True, generator=torch.Generator().manual_seed(3))
        quiet_trainer(max_epochs=3, callbacks=callbacks, limit_val_batches=0).fit(Labels(), loader)

    assert labels[:15] == labels[15:]


def test_of_two_that_tell_samples_apart_each_leaves_the_loader_in_any_order() -> None:
    for first in (0, 1):
        loader = plain_loader(30)
        own = loader.batch_sampler.sampler  # type: ignore[union-attr]  # a BatchSampler
        both = [PlainReader(loader, None), PlainReader(loader, None)]
        both[first].leave()
        both[1 - first].leave()

        assert loader.batch_sampler.sampler is own  # type: ignore[union-attr]


def test_a_schedule_that_asks_for_the_number_of_steps_makes_the_loader_early() -> None:
    class Plans(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = int(self.trainer.estimated_stepping_batches)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)}

    watch = Watch({0: HALF[1]})
    trainer = quiet_trainer(max_epochs=2, callbacks=[watch], limit_val_batches=0)
    trainer.fit(Plans(), plain_loader(26, shuffle=True))

    assert sorted(flat(watch.seen[0])) == list(range(0, 26, 2)) and sorted(flat(watch.seen[1])) == list(range(26))


def test_a_short_epoch_of_a_loader_that_drops_its_last_batch_keeps_one() -> None:
    watch, trainer = watched(plain_loader(26, shuffle=True, drop_last=True), {1: Visit(torch.arange(4))}, epochs=3)

    assert [len(it) for it in watch.seen] == [4, 1, 4] and sorted(flat(watch.seen[1])) == [0, 1, 2, 3]
    assert trainer.current_epoch == 3


def test_a_batch_that_collates_to_none_leaves_the_others_their_positions() -> None:
    def collate(samples: list[Any]) -> Any:
        batch = torch.utils.data.default_collate(samples)
        return None if batch[0].sum() == skipped else batch

    data = labelled_images(26)
    skipped = data[6:12][0].sum()
    watch, _ = watched(DataLoader(data, batch_size=6, collate_fn=collate), epochs=1)

    assert [batch[0] for batch in watch.seen[0]] == [0, 12, 18, 24]


def test_a_whole_number_between_validations_is_capped_at_a_short_epoch() -> None:
    watch, _ = watched(plain_loader(26), HALF, epochs=3, val_check_interval=4)

    assert watch.validated == [4, 8, 12]

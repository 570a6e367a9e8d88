"""The loader continues exactly where it was saved, shards without loss, and lets errors through as one sentence.

How a whole training run resumes stands in `test_datamodule.py` and in `tests/callbacks/resume`.
"""

import copy
import itertools
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.datamodules.common._loader import ShardedLoader
from lightning_vision.datamodules.common._sets import ArrayImages, FileImages
from lightning_vision.images import BadImageError


def numbered(samples: int = 37) -> ArrayImages:
    """Images filled with their number, labelled by it modulo 10."""
    number = torch.arange(samples)
    return ArrayImages(number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), number % 10)


def make(**options: Any) -> ShardedLoader:
    return ShardedLoader(numbered(), 5, **{"shuffle": True, "seed": 3, **options})


def skewed() -> ArrayImages:
    """Thirty images of class 0, five of 1 and two of 2, filled with their number."""
    return ArrayImages(numbered().images, torch.tensor([0] * 30 + [1] * 5 + [2] * 2))


def balanced(**options: Any) -> ShardedLoader:
    return ShardedLoader(skewed(), 5, **{"shuffle": True, "seed": 3, "sampler": "balanced", **options})


def samples(batches: Any) -> list[list[int]]:
    return [index.tolist() for _, _, index in batches]


def epochs(loader: ShardedLoader, count: int) -> list[list[int]]:
    return [batch for _ in range(count) for batch in samples(loader)]


WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@WORKERS
def test_images_labels_and_indices_belong_together(num_workers: int) -> None:
    for image, target, index in make(num_workers=num_workers):
        assert torch.equal(image[:, 0, 0, 0].long(), index)
        assert torch.equal(target, index % 10)
        assert (torch.uint8, torch.int64, torch.int64) == (image.dtype, target.dtype, index.dtype)


def test_workers_change_nothing() -> None:
    assert epochs(make(), 3) == epochs(make(num_workers=2), 3)
    assert epochs(make(), 2) == epochs(make(num_workers=2, multiprocessing_context="spawn"), 2)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["here", "in workers"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
def test_after_any_batch_the_rest_of_a_run_is_that_of_the_straight_run(
    num_workers: int, drop_last: bool, rank: int, world_size: int
) -> None:
    options = {"drop_last": drop_last, "rank": rank, "world_size": world_size}
    straight = epochs(make(**options), 3)
    length = len(make(**options))
    # With workers, which cost a start, only the first batch, a middle one and both sides of an epoch's end.
    places = range(2 * length) if num_workers == 0 else [1, length - 1, length, length + 2]
    for done in places:
        first = make(**options, num_workers=num_workers)
        iterator = itertools.chain.from_iterable(itertools.repeat(first))
        seen = samples(itertools.islice(iterator, done))
        state = copy.deepcopy(first.state_dict())
        resumed = make(**options, num_workers=num_workers)
        resumed.load_state_dict(state)
        rest = samples(itertools.islice(itertools.chain.from_iterable(itertools.repeat(resumed)), 3 * length - done))

        assert straight == seen + rest


def test_a_position_counts_batches_handed_out_not_fetched_ahead() -> None:
    loader = make(num_workers=2)
    for number, _ in zip(range(1, 4), loader, strict=False):
        assert number == loader.state_dict()["yielded"]


def test_a_position_belongs_to_its_epoch() -> None:
    loader = make()
    next(iter(loader))
    loader.sampler.set_epoch(1)

    assert (loader.state_dict()["epoch"], loader.state_dict()["yielded"]) == (1, 0)


def test_after_a_break_the_same_epoch_starts_anew() -> None:
    loader = make()
    next(iter(loader))

    assert samples(make()) == samples(loader)


@WORKERS
def test_saved_after_the_last_batch_the_epoch_is_over(num_workers: int) -> None:
    loader = make(num_workers=num_workers)
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    resumed = make(num_workers=num_workers)
    resumed.load_state_dict(loader.state_dict())

    assert samples(resumed) == []
    assert epochs(make(), 2)[len(loader) :] == samples(resumed)


def test_a_new_epoch_begins_at_its_start_whatever_was_saved() -> None:
    loader, straight = make(), make()
    next(iter(loader))
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(1)
    straight.sampler.set_epoch(1)

    assert samples(straight) == samples(resumed)


def test_the_epoch_told_after_the_iterator_was_made_counts() -> None:
    early, late = make(), make()
    early.sampler.set_epoch(4)
    iterator = iter(late)
    late.sampler.set_epoch(4)

    assert samples(early) == samples(iterator)


def test_an_iterator_made_to_try_does_not_use_up_the_saved_position() -> None:
    loader = make()
    iterator = iter(loader)
    first = [next(iterator), next(iterator)]
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    iter(resumed)

    assert samples(make()) == samples(first) + samples(resumed)


def test_without_anyone_telling_the_epoch_each_pass_has_a_new_order() -> None:
    first, second = (samples(loader) for loader in [make()] * 2)

    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(37))
    assert first != second


def test_told_the_same_epoch_again_a_later_pass_continues() -> None:
    loader = make()
    samples(loader)
    iterator = iter(loader)
    seen = samples([next(iterator), next(iterator)])
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(0)

    assert epochs(make(), 2)[len(loader) :] == seen + samples(resumed)


def test_two_ranks_share_an_epoch_and_a_global_batch_is_that_of_one_process() -> None:
    halves = [samples(make(rank=rank, world_size=2)) for rank in (0, 1)]
    whole = samples(ShardedLoader(numbered(), 10, shuffle=True, seed=3))

    assert [set(batch) for batch in whole] == [set(first + second) for first, second in zip(*halves, strict=True)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 6}, "with batch_size 6, it was saved with batch_size 5"),
        ({"world_size": 2}, "with world_size 2, it was saved with world_size 1"),
        ({"seed": 4}, "with seed 4, it was saved with seed 3"),
        ({"sampler": "balanced"}, "with sampler balanced, it was saved with sampler all"),
        ({"dataset": numbered(38)}, "with samples 38, it was saved with samples 37"),
    ],
)
def test_other_settings_inside_an_epoch_are_refused_naming_both(other: dict[str, Any], message: str) -> None:
    loader = make()
    next(iter(loader))
    settings = {"dataset": numbered(), "batch_size": 5, "shuffle": True, "seed": 3, **other}
    with pytest.raises(ValueError, match=f"^cannot resume inside epoch 0 {message}; use that again or a checkpoint"):
        ShardedLoader(**settings).load_state_dict(loader.state_dict())


def test_another_batch_size_is_fine_at_an_epochs_end() -> None:
    loader = make()
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    resumed = ShardedLoader(numbered(), 4, shuffle=True, seed=3)
    resumed.load_state_dict(loader.state_dict())

    assert samples(resumed) == []
    assert list(range(37)) == sorted(itertools.chain(*samples(resumed)))


def test_another_batch_size_is_fine_at_an_epochs_start() -> None:
    resumed = ShardedLoader(numbered(), 4, shuffle=True, seed=3)
    resumed.load_state_dict(make().state_dict())

    assert samples(resumed) == samples(ShardedLoader(numbered(), 4, shuffle=True, seed=3))


def test_the_state_is_plain_data() -> None:
    assert {int, bool, str} == {type(value) for value in make().state_dict().values()}


@WORKERS
def test_global_random_state_is_left_alone(num_workers: int) -> None:
    before = torch.get_rng_state()
    samples(make(num_workers=num_workers))

    assert torch.equal(before, torch.get_rng_state())


@WORKERS
def test_a_loader_pickled_in_mid_epoch_keeps_its_place(num_workers: int) -> None:
    loader = make(num_workers=num_workers)
    iterator = iter(loader)
    seen = samples([next(iterator), next(iterator)])
    other = pickle.loads(pickle.dumps(loader))
    other.load_state_dict(other.state_dict())

    assert samples(make()) == seen + samples(other)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_second_iteration_takes_over_and_the_first_ends_in_a_sentence(num_workers: int) -> None:
    loader = make(num_workers=num_workers)
    first = iter(loader)
    next(first)
    second = iter(loader)
    taken = samples([next(second)])
    with pytest.raises(RuntimeError, match=r"^this loader serves one iteration at a time and another began; make a"):
        next(first)
    place = loader.state_dict()["yielded"]

    assert place == 1
    assert samples(make()) == taken + samples(second)


def test_workers_stay_from_epoch_to_epoch() -> None:
    loader = make(num_workers=1)
    pids = [[worker.pid for worker in (samples(loader), loader._iterator)[1]._workers] for _ in range(2)]

    assert pids[0] == pids[1]


def test_closed_workers_end_and_start_again() -> None:
    loader = make(num_workers=1)
    expected = epochs(make(), 2)
    first = samples(loader)
    loader.close()

    assert expected == first + samples(loader)


def test_lightnings_reset_stops_the_workers_and_the_next_epoch_starts_others() -> None:
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    loader = make(num_workers=1)
    combined = CombinedLoader(loader)
    first = [index.tolist() for (_, _, index), _, _ in combined]
    workers = loader._iterator._workers
    combined.reset()

    assert [worker.is_alive() for worker in workers] == [False]
    assert epochs(make(), 2) == first + samples(loader)


def test_a_break_in_mid_epoch_leaves_no_batch_behind_for_the_next() -> None:
    loader = make(num_workers=2)
    for _ in loader:
        break
    loader.sampler.set_epoch(1)
    straight = make()
    straight.sampler.set_epoch(1)

    assert samples(straight) == samples(loader)


def test_sets_also_work_in_a_plain_dataloader() -> None:
    batches = list(DataLoader(numbered(), batch_size=5))

    assert torch.equal(numbered().images, torch.cat([image for image, _, _ in batches]))
    assert list(range(37)) == torch.cat([index for _, _, index in batches]).tolist()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Twelve images filled with their number; 3 and 7 are cut short."""
    paths = [tmp_path / f"{number:02}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("L", (16, 16), number).save(path)
        if number in (3, 7):
            path.write_bytes(path.read_bytes()[:40])
    return [str(path) for path in paths]


def from_files(files: list[str], num_workers: int = 0, batch_size: int = 4, **options: Any) -> ShardedLoader:
    images = FileImages(files, torch.arange(12), 1, (4, 4), **options)
    return ShardedLoader(images, batch_size, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_stops_with_one_sentence_that_names_it(num_workers: int, files: list[str]) -> None:
    with pytest.raises(BadImageError) as caught:
        samples(from_files(files, num_workers))

    assert str(caught.value).startswith(f"cannot decode the image {files[3]}: ")
    assert str(caught.value).endswith("; remove it or pass on_bad_image='skip'")
    assert "\n" not in str(caught.value)
    assert str(caught.traceback[-1].path).endswith(("_loader.py", "_sets.py"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_make_their_batch_smaller_and_are_reported_once(num_workers: int, files: list[str]) -> None:
    with pytest.warns(UserWarning, match="^left out 2 of 12 images in epoch 0, unusable: ") as reports:
        found = samples(from_files(files, num_workers, on_bad_image="skip"))

    assert found == [[0, 1, 2], [4, 5, 6], [8, 9, 10, 11]]
    assert [f"{files[3]}, {files[7]}"] == [str(report.message).partition(": ")[2] for report in reports]


def test_the_report_comes_with_the_last_batch_because_lightning_asks_for_no_more(files: list[str]) -> None:
    iterator = iter(from_files(files, on_bad_image="skip"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iterator)
        next(iterator)
    with pytest.warns(UserWarning, match="left out 2 of 12"):
        next(iterator)


def test_an_epoch_cut_short_is_reported_when_the_next_begins(files: list[str]) -> None:
    loader = from_files(files, on_bad_image="skip")
    next(iter(loader))
    loader.sampler.set_epoch(1)
    with pytest.warns(UserWarning) as reports:
        samples(loader)

    assert [f"left out {count} of 12 images in epoch {epoch}" for epoch, count in ((0, 1), (1, 2))] == [
        str(report.message).partition(",")[0] for report in reports
    ]


def test_an_epoch_cut_short_is_reported_when_the_loader_closes(files: list[str]) -> None:
    loader = from_files(files, on_bad_image="skip")
    next(iter(loader))
    with pytest.warns(UserWarning, match="left out 1 of 12"):
        loader.close()


def test_resuming_counts_batches_not_readable_images(files: list[str]) -> None:
    first = from_files(files, on_bad_image="skip")
    next(iter(first))
    resumed = from_files(files, on_bad_image="skip")
    resumed.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="left out 1 of 12"):
        found = samples(resumed)
    with pytest.warns(UserWarning, match="left out 1 of 12"):
        first.close()

    assert found == [[4, 5, 6], [8, 9, 10, 11]]


def test_a_batch_without_a_readable_image_is_an_error(files: list[str]) -> None:
    with pytest.raises(BadImageError, match=r"^none of the 1 images .*03.png: .*; remove them or pass a larger"):
        samples(from_files(files, batch_size=1, on_bad_image="skip"))


def test_a_file_that_vanished_counts_as_bad(files: list[str]) -> None:
    Path(files[0]).unlink()
    with pytest.raises(BadImageError, match=r"there is no image file .*00.png; remove it or pass"):
        samples(from_files(files))


def test_batches_can_be_dicts(files: list[str]) -> None:
    labelled = ShardedLoader(numbered(4), 4, as_dict=True)
    bare = ShardedLoader(FileImages(files[:3], None, 1, (4, 4)), 4, as_dict=True)
    batch: dict[str, Tensor] = next(iter(bare))  # type: ignore[assignment]

    assert list(next(iter(labelled))) == ["image", "target", "index"]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"image": (3, 1, 4, 4), "index": (3,)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_copies_of_a_sample_bring_its_image_and_label_and_an_index_of_their_own(num_workers: int) -> None:
    seen = list(balanced(num_workers=num_workers))
    image, target, index = (torch.cat(parts) for parts in zip(*seen, strict=True))

    assert torch.equal(index % 37, image[:, 0, 0, 0].long())
    assert torch.equal(skewed().targets[index % 37], target)  # type: ignore[index]  # labelled
    assert sorted(target.bincount().tolist()) == [12, 12, 13]
    assert len(index.unique()) == 37


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
def test_a_balanced_run_resumes_after_any_batch(rank: int, world_size: int) -> None:
    options = {"rank": rank, "world_size": world_size}
    straight, length = epochs(balanced(**options), 3), len(balanced(**options))
    for done in range(2 * length):
        first, resumed = balanced(**options), balanced(**options)
        seen = samples(itertools.islice(itertools.chain.from_iterable(itertools.repeat(first)), done))
        resumed.load_state_dict(copy.deepcopy(first.state_dict()))
        rest = samples(itertools.islice(itertools.chain.from_iterable(itertools.repeat(resumed)), 3 * length - done))

        assert straight == seen + rest


def test_two_ranks_share_a_balanced_epoch() -> None:
    halves = [list(itertools.chain(*samples(balanced(rank=rank, world_size=2)))) for rank in (0, 1)]
    whole = list(itertools.chain(*samples(balanced())))

    assert sorted(whole) == sorted(halves[0] + halves[1])


def test_a_state_saved_before_samplers_had_names_is_one_of_all_samples() -> None:
    first, resumed = make(), make()
    seen = samples(itertools.islice(first, 2))
    state = first.state_dict()
    del state["sampler"]
    resumed.load_state_dict(state)

    assert samples(make()) == seen + samples(resumed)


def test_copies_of_files_are_read_and_skipped_by_their_sample(files: list[str]) -> None:
    images = FileImages(files, torch.arange(12), 1, (4, 4), on_bad_image="skip")
    fetched = images.fetch(torch.tensor([13, 15, 26]))

    assert [1, 2] == fetched.image[:, 0, 0, 0].tolist() == fetched.target.tolist()  # type: ignore[union-attr]  # labelled
    assert fetched.index.tolist() == [13, 26]
    assert (files[3],) == fetched.skipped

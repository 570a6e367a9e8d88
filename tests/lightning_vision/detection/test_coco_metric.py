"""CocoMAP over an epoch, on two ranks against one, and its table."""

import pickle
from typing import Any

import pytest
import torch

from lightning_vision.detection.coco_metric import CocoMAP
from support.coco import NAMES, K, counted, scene


def judged_by_two(rank: int, masks: bool) -> list[dict[str, float]]:
    results, targets = scene(11, masks=masks, images=6, most=8)
    turns = ([0, 2, 4], [1, 3, 5])
    found = []
    for shares in (turns, (range(6), []), ([], range(6)), ([0, 1, 2, 3], [2, 3, 4, 5])):
        metric = CocoMAP(K, masks)
        mine = list(shares[rank])
        metric.update([results[place] for place in mine], [targets[place] for place in mine])
        found.append({name: float(value) for name, value in metric.compute().items()})
    nameless = [{name: item[name] for name in item if name != "image_id"} for item in targets]
    metric = CocoMAP(K, masks)
    metric.update(results[rank::2], nameless[rank::2])
    found.append({name: float(value) for name, value in metric.compute().items()})
    return [*found, {row["class"]: row["map"] for row in metric.per_class("abcd")}]


def on_two_ranks(rank: int) -> list[list[dict[str, float]]]:
    return [judged_by_two(rank, masks) for masks in (False, True)]


def failing_on_two_ranks(rank: int) -> str:
    metric = CocoMAP(K)
    metric.update(*scene(1))
    metric.detections = []
    try:
        metric.compute()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def rank_and(fn: Any, *args: Any) -> Any:
    return fn(torch.distributed.get_rank(), *args)


@pytest.mark.filterwarnings("ignore:.*was called before the ``update``")
def test_two_ranks_are_one_on_all_images_whatever_each_has_seen(two_ranks: Any) -> None:
    first, second = two_ranks(rank_and, on_two_ranks)
    broken = two_ranks(rank_and, failing_on_two_ranks)

    assert first == second
    for masks, found in zip((False, True), first, strict=True):
        results, targets = scene(11, masks=masks, images=6, most=8)
        nameless = [{name: item[name] for name in item if name != "image_id"} for item in targets]
        whole, unnamed = counted(results, targets, CocoMAP(K, masks)), counted(results, nameless, CocoMAP(K, masks))
        assert [whole, whole, whole, whole, unnamed] == found[:-1]
    assert broken[0] == "IndexError: list index out of range"
    assert broken[1].startswith("RuntimeError: CocoMAP: rank 0 could not compute")


def test_an_epoch_starts_empty_and_nothing_of_one_is_in_a_checkpoint() -> None:
    results, targets = scene(2)
    metric = CocoMAP(K)
    metric.update(*scene(8))
    between = pickle.loads(pickle.dumps(metric))
    metric.reset()

    assert metric.state_dict() == {}
    assert counted(results, targets) == counted(results, targets, metric)
    assert counted(*scene(8)) == {name: float(value) for name, value in between.compute().items()}
    with pytest.raises(TypeError, match="no value for a batch"):
        metric(results, targets)


def test_no_image_at_all_is_nothing_to_find() -> None:
    metric = CocoMAP(K)
    metric.update([], [])

    assert {-1.0} == {float(value) for value in metric.compute().values()}


def test_the_table_has_the_lines_of_coco_and_the_time_it_took() -> None:
    metric = CocoMAP(K)
    found = counted(*scene(4), metric)
    lines = metric.table().splitlines()

    assert f"Average Precision (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {found['map']:.3f}" == lines[0]
    assert (
        f"Average Recall    (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = {found['mar_large']:.3f}" == lines[11]
    )
    assert [f"{found[name]:.3f}" for name in NAMES] == [line.rsplit(" ", 1)[1] for line in lines[:12]]
    assert (
        lines[12:] == [lines[12]] and lines[12].startswith("evaluated in 0.") and lines[12].endswith("% of the epoch")
    )


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 3 and max_detections 0; give at least 1 of each"):
        CocoMAP(3, max_detections=0)

"""COCO's numbers against pycocotools on the same files, and against numbers by hand."""

from pathlib import Path

import pytest
import torch

from lightning_vision.detection.coco_metric import CocoMAP
from support.coco import NAMES, Images, K, counted, scene, summarised


@pytest.mark.parametrize("seed", range(24))
def test_boxes_are_counted_as_pycocotools_counts_them_from_files(seed: int, tmp_path: Path) -> None:
    results, targets = scene(seed)

    assert pytest.approx(summarised(results, targets, tmp_path), abs=1e-6) == [
        counted(results, targets)[name] for name in NAMES
    ]


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_counted_as_pycocotools_counts_them_from_files(seed: int, tmp_path: Path) -> None:
    results, targets = scene(seed, images=5, most=6, masks=True)
    found = counted(results, targets, CocoMAP(K, masks=True))

    assert pytest.approx(summarised(results, targets, tmp_path, "segm"), abs=1e-6) == [
        found[f"segm_{name}"] for name in NAMES
    ]
    assert pytest.approx(counted(results, targets)) == {name: found[name] for name in NAMES}


def test_two_images_by_hand() -> None:
    """The best detection finds its object whole, the second nothing, the third with an overlap of 0.82.

    At the seven overlaps of 0.5 to 0.8 both are found: of 101 recalls the 51 up to a half have precision 1, the others
    2/3. At the three above only the first is, and the recalls beyond a half have precision 0. Neither has an area of
    its own, so both boxes, of 100 pixels, are small.
    """
    square = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    one = torch.tensor([1])
    results = [
        {"boxes": torch.cat([square, square + 30]), "labels": one.repeat(2), "scores": torch.tensor([0.9, 0.8])},
        {"boxes": torch.tensor([[0.0, 0.0, 10.0, 8.2]]), "labels": one, "scores": torch.tensor([0.7])},
    ]
    metric = CocoMAP(num_classes=2)
    found = counted(results, 2 * [{"boxes": square, "labels": one}], metric)
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101

    assert pytest.approx((7 * loose + 3 * strict) / 10) == found["map"] == found["map_small"]
    assert pytest.approx(loose) == found["map_50"] == found["map_75"]
    assert pytest.approx((7 + 3 / 2) / 10) == found["mar_1"] == found["mar_100"]
    assert found["map_large"] == -1
    assert [row["support"] for row in metric.per_class(["cat", "dog"])] == [2, 0]
    assert pytest.approx([found["map"], -1]) == [row["map"] for row in metric.per_class(["cat", "dog"])]


def mutants() -> dict[str, tuple[Images, Images]]:
    results, targets = scene(3)
    worst_first = [{name: value.flip(0) for name, value in item.items()} for item in results]
    return {
        "crowds are objects": (results, [{**item, "iscrowd": 0 * item["iscrowd"]} for item in targets]),
        "boxes for areas": (results, [{name: item[name] for name in item if name != "area"} for item in targets]),
        "equal scores in another order": (worst_first, targets),
        "images as they come": (
            results,
            [{name: item[name] for name in item if name != "image_id"} for item in targets],
        ),
    }


@pytest.mark.parametrize("name", mutants())
def test_a_wrong_count_is_seen(name: str) -> None:
    right, wrong = counted(*scene(3)), counted(*mutants()[name])

    assert 0.1 < right["map"] < 0.9
    assert max(abs(right[name] - wrong[name]) for name in right) > 1e-4


def test_as_many_detections_count_as_the_detector_gives() -> None:
    results, targets = scene(5, most=40)
    order = [item["scores"].argsort(descending=True, stable=True) for item in results]
    ranked = [{name: value[place] for name, value in item.items()} for item, place in zip(results, order, strict=True)]
    best = [
        {
            name: torch.cat([value[item["labels"] == label][:5] for label in range(1, K + 1)])
            for name, value in item.items()
        }
        for item in ranked
    ]
    five, many = (counted(results, targets, CocoMAP(K, max_detections=most)) for most in (5, 300))

    assert {"mar_1", "mar_5"} == {name for name in five if name[4:].isdigit() and name.startswith("mar")}
    assert pytest.approx(counted(best, targets)["map"]) == five["map"]
    assert pytest.approx(counted(results, targets)["map"]) == many["map"] != five["map"]
    assert many["mar_300"] >= many["mar_10"] > 0

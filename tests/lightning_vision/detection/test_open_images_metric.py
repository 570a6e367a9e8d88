"""OpenImagesMAP against torchmetrics and CocoMAP, against a loop and against counts by hand, and on two ranks."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from lightning_vision.detection.coco_metric import CocoMAP
from lightning_vision.detection.open_images_metric import OpenImagesMAP

Images = list[dict[str, Tensor]]
K = 4
NAN = float("nan")


def scenes(seed: int, groups: float = 0.0, images: int = 12) -> tuple[Images, Images]:
    """Detections near true boxes that overlap each other, equal scores, images without objects or detections."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(size, generator=rng)

    results, targets = [], []
    for number in range(images):
        n = 0 if number % 5 == 3 else 1 + int(6 * draw(1))
        corner = 30 * draw(n, 2).round(decimals=1)
        boxes = torch.cat([corner, corner + 10 + (20 * draw(n, 2)).round()], 1)
        labels = 1 + (draw(n) * (K - 1)).long()  # of the last class there is no object
        d = 0 if number % 7 == 6 else 3 * n + 2
        source = (draw(d) * n).long()
        near = boxes[source] + (8 * draw(d, 4) - 4).round() if n else torch.cat([draw(d, 2), 9 + draw(d, 2)], 1)
        guess = torch.where(draw(d) < 0.8, labels[source] if n else 1, 1 + (draw(d) * K).long())
        results.append({"boxes": near, "labels": guess, "scores": (10 * draw(d)).round() / 10})
        targets.append(
            {
                "boxes": boxes,
                "labels": labels,
                "iscrowd": (draw(n) < groups).long(),
                "image_id": torch.tensor(100 - number),
                "verified": torch.ones(K),
            }
        )
    return results, targets


def score(results: Images, targets: Images, classes: int = K, **settings: Any) -> float:
    metric = OpenImagesMAP(classes, **settings)
    for start in range(0, len(targets), 5):
        metric.update(results[start : start + 5], targets[start : start + 5])
    return float(metric.compute()["map_50"])


def boxed(*lefts: float, label: int = 1, **more: Any) -> dict[str, Tensor]:
    """Squares of 10 pixels at these places in a row."""
    boxes = torch.tensor([[left, 0.0, left + 10, 10.0] for left in lefts]).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.full((len(lefts),), label), **{k: torch.tensor(v) for k, v in more.items()}}


@pytest.mark.parametrize("seed", range(4))
def test_row_313_equals_torchmetrics_without_groups_where_all_is_verified(seed: int) -> None:
    results, targets = scenes(seed)
    # Their own recalls are float32, so that 7 of 10 may miss 0.7; these are COCO's.
    recalls = np.linspace(0, 1, 101).tolist()
    theirs = MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=recalls, backend="faster_coco_eval")
    order = sorted(range(len(targets)), key=lambda number: int(targets[number]["image_id"]))
    theirs.update([results[number] for number in order], [targets[number] for number in order])

    assert score(results, targets, protocol="coco") == pytest.approx(float(theirs.compute()["map_50"]), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_no_weight_are_crowds_of_coco(seed: int) -> None:
    results, targets = scenes(seed, groups=0.4)
    coco = CocoMAP(K)
    coco.update(results, targets)
    expected = float(coco.compute()["map_50"])

    assert score(results, targets, protocol="coco", group_weight=0) == pytest.approx(expected, abs=1e-6)
    assert score(results, targets, protocol="coco", group_weight=1) != pytest.approx(expected, abs=1e-3)


def by_a_loop(results: Images, targets: Images) -> float:
    """VOC's average precision of 2010, box by box, without groups; mean over the classes that there are."""
    means = []
    order = sorted(range(len(targets)), key=lambda number: int(targets[number]["image_id"]))
    for label in range(1, K + 1):
        rows, objects = [], 0
        for number in order:
            result, target = results[number], targets[number]
            true = target["boxes"][target["labels"] == label].double()
            objects += len(true)
            chosen = result["labels"] == label
            ranked = result["scores"][chosen].argsort(descending=True, stable=True)
            taken: set[int] = set()
            for place in ranked.tolist():
                overlap = box_iou(result["boxes"][chosen][place][None].double(), true)[0]
                best = int(overlap.argmax()) if len(true) else -1
                hit = best >= 0 and float(overlap[best]) >= 0.5 and best not in taken
                taken |= {best} if hit else set()
                rows.append((float(result["scores"][chosen][place]), hit))
        if not objects:
            continue
        rows.sort(key=lambda row: -row[0])
        hits = np.array([hit for _, hit in rows])
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        # Each object that is found adds the best precision from there on.
        means.append(sum(precision[place:].max() for place in np.flatnonzero(hits)) / objects)
    return float(np.mean(means))


@pytest.mark.parametrize("seed", range(4))
def test_the_challenges_protocol_equals_a_loop_and_is_not_cocos(seed: int) -> None:
    results, targets = scenes(seed)

    assert score(results, targets) == pytest.approx(by_a_loop(results, targets), abs=1e-6)
    assert score(results, targets) != pytest.approx(score(results, targets, protocol="coco"), abs=1e-4)


def test_row_313_groups_equal_a_count_by_hand() -> None:
    """An object at 0, a group of 40 pixels at 100, one at 200 that nobody finds.

    From the best score down: in the group (its one hit), the object, elsewhere (false), in the group again (ignored).
    Three things to find: precision 1 at the first two, so 2/3. Without weight the group and what is in it are gone: one
    object, found first, is 1; with half a weight 1.5 of 2.
    """
    true = boxed(0, 100, 200, iscrowd=[0, 1, 1])
    true["boxes"][1, 2:] = torch.tensor([140.0, 40.0])
    found = boxed(110, 0, 60, 125, scores=[0.9, 0.8, 0.7, 0.6])

    assert score([found], [true]) == pytest.approx(2 / 3)
    assert score([found], [true], group_weight=0.0) == pytest.approx(1.0)
    assert score([found], [true], group_weight=0.5) == pytest.approx(1.5 / 2)


def test_row_313_a_group_that_is_no_group_counts_otherwise() -> None:
    """As a plain object of 40 x 40 nothing of 10 x 10 overlaps it by half: one hit in four, second, of three."""
    true = boxed(0, 100, 200, iscrowd=[0, 0, 0])
    true["boxes"][1, 2:] = torch.tensor([140.0, 40.0])
    found = boxed(110, 0, 60, 125, scores=[0.9, 0.8, 0.7, 0.6])

    assert score([found], [true]) == pytest.approx(1 / 2 / 3)


def test_the_best_detection_in_a_group_says_where_it_counts() -> None:
    """The group is found at 0.9 or at 0.3; between them lies a false alarm, so its precision is 1 or a half."""
    true = boxed(0, iscrowd=[1])

    assert score([boxed(1, 50, 2, scores=[0.9, 0.5, 0.3])], [true]) == pytest.approx(1.0)
    assert score([boxed(50, 2, scores=[0.5, 0.3])], [true]) == pytest.approx(0.5)


def test_a_detection_belongs_to_an_object_before_the_group_around_it() -> None:
    """Both stand at 0; the first detection is the object's and the second the group's, so nothing is missed."""
    true = boxed(0, 0, iscrowd=[1, 0])

    assert score([boxed(0, 1, scores=[0.9, 0.8])], [true]) == pytest.approx(1.0)
    assert score([boxed(0, scores=[0.9])], [true]) == pytest.approx(0.5)


def test_less_than_half_inside_a_group_is_a_false_alarm() -> None:
    true = boxed(0, 30, iscrowd=[1, 0])

    assert score([boxed(5, 30, scores=[0.9, 0.8])], [true]) == pytest.approx(1.0)
    assert score([boxed(5.1, 30, scores=[0.9, 0.8])], [true]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("verified", "expected"),
    [([1.0, NAN], 1.0), ([1.0, 0.0], 1.0), ([NAN, NAN], 1.0), ([0.0, 1.0], 1.0)],
    ids=["unknown", "absent", "told by its box alone", "box against label"],
)
def test_false_alarms_of_a_class_without_objects_change_no_mean(verified: list[float], expected: float) -> None:
    found = {name: torch.cat([boxed(0)[name], boxed(60, label=2)[name]]) for name in ("boxes", "labels")}

    assert score([found | {"scores": torch.tensor([0.5, 0.9])}], [boxed(0, verified=verified)], 2) == expected


@pytest.mark.parametrize(
    ("verified", "expected"), [(NAN, 1.0), (0.0, 0.5), (None, 0.5)], ids=["unknown", "absent", "nothing told"]
)
def test_row_313_detections_of_a_class_count_only_where_it_is_verified(verified: float | None, expected: float) -> None:
    """In a second image, at a higher score, a detection of what only the first one shows: precision 1/2, or ignored."""
    told = {} if verified is None else {"verified": [verified]}
    targets = [boxed(0), boxed(**told)]

    assert score([boxed(0, scores=[0.5]), boxed(0, scores=[0.9])], targets, 1) == pytest.approx(expected)


def test_row_313_ancestors_are_found_and_there_with_their_descendants() -> None:
    """1 animal, 2 dog, 3 puppy. A puppy that was taken for a dog: found as dog and animal, not as puppy."""
    found, true = boxed(0, label=2, scores=[0.9]), boxed(0, label=3)
    metric = OpenImagesMAP(3, ancestors=[[], [1], [2, 1]])
    metric.update([found], [true])
    mean = float(metric.compute()["map_50"])

    assert [row["map_50"] for row in metric.per_class(["animal", "dog", "puppy"])] == [1.0, 1.0, 0.0]
    assert [row["support"] for row in metric.per_class(["animal", "dog", "puppy"])] == [1.0, 1.0, 1.0]
    assert mean == pytest.approx(2 / 3)
    assert score([found], [true], 3) == 0


@pytest.mark.parametrize(
    ("verified", "expected"),
    [
        ([NAN, NAN, NAN], [0.5, 1.0, 1.0]),
        ([0.0, NAN, NAN], [0.5, 0.5, 0.5]),
        ([NAN, 0.0, NAN], [0.5, 0.5, 0.5]),
        ([NAN, NAN, 0.0], [0.5, 1.0, 0.5]),
        ([NAN, 1.0, NAN], [0.5, 0.5, 1.0]),
    ],
    ids=["unknown", "no animal", "no dog", "no puppy", "a dog"],
)
def test_row_313_what_is_absent_is_so_for_descendants_and_what_is_present_for_ancestors(
    verified: list[float], expected: list[float]
) -> None:
    """A puppy in one image, and a better detection of one in another, which another animal's box verifies as such."""
    targets = [boxed(0, label=3), boxed(70, label=4, verified=[*verified, 1.0])]
    metric = OpenImagesMAP(4, ancestors=[[], [1], [2, 1], [1]])
    metric.update([boxed(0, label=3, scores=[0.5]), boxed(0, label=3, scores=[0.9])], targets)
    metric.compute()

    found = [row["map_50"] for row in metric.per_class(list("abcd"))]
    # Of two animals one is found, second: 1/2 * 1/2.
    assert found[0] == pytest.approx(expected[0] / 2)
    assert found[1:3] == pytest.approx(expected[1:])


def test_boxes_go_back_to_the_pixels_of_their_images() -> None:
    true = {**boxed(0), "placement": torch.tensor([1.0, 0.25, 0.0, 2.0]), "size": torch.tensor([16, 10])}
    found = {"boxes": torch.tensor([[0.0, 2.0, 10.0, 6.0]]), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    true["boxes"][:, 3] = 6.0
    true["boxes"][:, 1] = 2.0

    assert score([found], [true], 1) == 1.0


def test_an_image_that_comes_twice_counts_once() -> None:
    results, targets = scenes(1, groups=0.3)
    targets[2]["verified"][:2] = NAN
    with pytest.warns(UserWarning, match="3 images came more than once"):
        again = score(results + results[:3], targets + targets[:3])

    assert again == pytest.approx(score(results, targets))


def test_an_epoch_without_images_or_objects_is_undefined() -> None:
    metric = OpenImagesMAP(2)
    metric.update([], [])

    assert float(metric.compute()["map_50"]) == -1
    assert score([boxed(0, scores=[0.5])], [boxed(label=1, verified=[0.0])], 1) == -1


def test_reset_forgets() -> None:
    metric = OpenImagesMAP(K)
    metric.update(*scenes(2))
    metric.reset()
    metric.update([], [])

    assert float(metric.compute()["map_50"]) == -1


def on_two_ranks() -> list[float]:
    """Unequal shares, then all on rank 1."""
    found, rank = [], dist.get_rank()
    for shares in ([slice(0, 9), slice(9, None)], [slice(0, 0), slice(None)]):
        results, targets = told(scenes(3, groups=0.3))
        metric = OpenImagesMAP(K, ancestors=[[], [1], [], []])
        metric.update(results[shares[rank]], targets[shares[rank]])
        found.append(float(metric.compute()["map_50"]))
    return found


def told(pair: tuple[Images, Images]) -> tuple[Images, Images]:
    for number, target in enumerate(pair[1]):
        target["verified"][number % K] = NAN
        target["verified"][(number + 1) % K] = 0
    return pair


def test_two_ranks_are_one_on_all_images(two_ranks: Any) -> None:
    alone = score(*told(scenes(3, groups=0.3)), ancestors=[[], [1], [], []])
    everything = score(*scenes(3, groups=0.3), ancestors=[[], [1], [], []])

    assert two_ranks(on_two_ranks) == [[pytest.approx(alone)] * 2] * 2
    assert alone != pytest.approx(everything, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"group_weight": 1.5}, "group_weight 1.5"),
        ({"group_weight": NAN}, "group_weight nan"),
        ({"protocol": "voc"}, "protocol is 'voc'; give open_images or coco"),
        ({"ancestors": [[]]}, "ancestors has 1 entries for 2 classes"),
        ({"ancestors": [[1], []]}, r"the ancestors of label 1 are \[1\]; give other labels in 1..2"),
        ({"ancestors": [[3], []]}, r"the ancestors of label 1 are \[3\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenImagesMAP(**{"num_classes": 2, **settings})


def test_what_is_known_of_other_classes_than_k_is_refused() -> None:
    metric = OpenImagesMAP(2)

    with pytest.raises(ValueError, match=r"verified has shape \(3,\); give a number for each of the 2 classes"):
        metric.update([boxed(scores=[])], [boxed(verified=[1.0, 0.0, NAN])])
    with pytest.raises(TypeError, match="OpenImagesMAP has no value for a batch"):
        metric([], [])

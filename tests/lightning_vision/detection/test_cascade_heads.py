"""The stages of a cascade: against torchvision's heads, a loop by hand, perfect heads, and a short training."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou

from lightning_vision.detection.cascade_heads import CascadeHeads
from support.cascades import CODERS, THRESHOLDS, WEIGHTS, cascade, everything, map_of, objects_on, scene, shaken

EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


class AlikeForAll(nn.Module):
    """Classes and moves as torchvision's heads give them, from layers whose moves are alike for all classes."""

    def __init__(self, classes: nn.Linear, moves: nn.Linear) -> None:
        super().__init__()
        self.classes, self.moves = classes, moves

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(hidden), self.moves(hidden).repeat(1, self.classes.out_features)


def _theirs(ours: CascadeHeads, predictor: nn.Module) -> RoIHeads:
    """torchvision's heads with the layers of the only stage of ours, half of 64 boxes positive at most."""
    return RoIHeads(ours.pool, ours.heads[0].hidden, predictor, 0.5, 0.5, 64, 0.5, None, 0.05, 0.5, 100)


def _one_stage(num_classes: int, iou_threshold: float = 0.5) -> CascadeHeads:
    torch.manual_seed(0)
    sampler = BalancedPositiveNegativeSampler(64, 0.5)
    return cascade(num_classes, (iou_threshold,), CODERS[:1], WEIGHTS[:1], sampler)


def _both_losses(ours: CascadeHeads, theirs: RoIHeads, num_classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of both for the same draws, on two images with objects and one without."""
    maps, proposals, sizes, targets = scene(3, num_classes=num_classes)
    targets[1] = EMPTY
    found = []
    for heads in (theirs, ours):
        torch.manual_seed(1)
        found.append(list(heads(maps, list(proposals), sizes, targets)[1].values()))
    return found[1], found[0]


def test_row_147_one_stage_at_a_half_has_the_losses_of_torchvisions_heads() -> None:
    ours = _one_stage(3)
    mine, expected = _both_losses(ours, _theirs(ours, AlikeForAll(ours.heads[0].classes, ours.heads[0].moves)), 3)

    assert expected == mine
    assert all(loss > 0 for loss in expected)


def test_row_147_one_stage_for_one_class_has_the_losses_of_torchvisions_own_predictor() -> None:
    ours = _one_stage(1)
    predictor = FastRCNNPredictor(16, 2)
    predictor.cls_score = ours.heads[0].classes
    with torch.no_grad():
        predictor.bbox_pred.weight[4:] = ours.heads[0].moves.weight
        predictor.bbox_pred.bias[4:] = ours.heads[0].moves.bias
    mine, expected = _both_losses(ours, _theirs(ours, predictor), 1)

    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0.0)


def test_row_147_one_stage_at_another_overlap_has_other_losses() -> None:
    ours = _one_stage(3, iou_threshold=0.6)
    mine, theirs = _both_losses(ours, _theirs(ours, AlikeForAll(ours.heads[0].classes, ours.heads[0].moves)), 3)

    assert mine != theirs


def test_one_stage_has_the_detections_of_torchvisions_heads() -> None:
    ours = _one_stage(3).eval()
    theirs = _theirs(ours, AlikeForAll(ours.heads[0].classes, ours.heads[0].moves)).eval()
    maps, proposals, sizes, _ = scene(2)
    expected, _ = theirs(maps, list(proposals), sizes)
    found, _ = ours(maps, proposals, sizes)

    assert len(expected[0]["boxes"]) > 10
    for image, name in ((image, name) for image in (0, 1) for name in ("boxes", "labels", "scores")):
        torch.testing.assert_close(found[image][name], expected[image][name], rtol=1e-6, atol=1e-5)


def _by_hand(
    heads: CascadeHeads,
    maps: dict[str, Tensor],
    boxes: Tensor,
    target: dict[str, Tensor],
    thresholds: tuple[float, ...] = THRESHOLDS,
    coders: tuple[tuple[float, ...], ...] = CODERS,
    weights: tuple[float, ...] = WEIGHTS,
    truth_again: bool = True,
) -> Tensor:
    """The sum of the losses of one image, all candidates taken, written from the paper's Sections 4.1 and 4.2."""
    truth, total = target["boxes"], torch.zeros(())
    for head, overlap, coder, weight in zip(heads.heads, thresholds, coders, weights, strict=True):
        proposed = len(boxes)
        candidates = torch.cat([boxes, truth]) if truth_again else boxes
        logits, moves = head(heads.pool(maps, [candidates], [(64, 64)]))
        best = box_iou(candidates, truth).max(1)
        labels = target["labels"][best.indices] * (best.values >= overlap)
        size, centre = candidates[:, 2:] - candidates[:, :2], (candidates[:, 2:] + candidates[:, :2]) / 2
        aims = truth[best.indices]
        shift = ((aims[:, 2:] + aims[:, :2]) / 2 - centre) / size
        growth = ((aims[:, 2:] - aims[:, :2]) / size).log()
        wanted, units = torch.cat([shift, growth], 1), torch.tensor(coder)
        off = ((moves - wanted * units)[labels > 0]).abs()
        smooth = torch.where(off < 1 / 9, off**2 * 4.5, off - 1 / 18)
        total = total + weight * (F.cross_entropy(logits, labels) + smooth.sum() / len(candidates))
        moves = moves.detach() / units
        centre, size = centre + moves[:, :2] * size, size * moves[:, 2:].exp()
        boxes = torch.cat([centre - size / 2, centre + size / 2], 1).clamp(0, 64)[:proposed]
    return total


def test_row_147_three_stages_equal_a_loop_by_hand_and_a_wrong_stage_is_noticed() -> None:
    torch.manual_seed(0)
    heads = cascade(3)
    maps, proposals, sizes, targets = scene(1)
    by_hand = partial(_by_hand, heads, maps, proposals[0], targets[0])
    losses = heads.losses(maps, proposals, sizes, targets)
    found = torch.stack(list(losses.values())).sum()

    assert list(losses) == [f"loss_{term}_{stage}" for stage in (1, 2, 3) for term in ("classifier", "box_reg")]
    torch.testing.assert_close(found, by_hand(), rtol=1e-5, atol=0.0)
    wrong = {
        "weights of the stages": by_hand(weights=(1.0, 1.0, 1.0)),
        "overlaps that do not rise": by_hand(thresholds=(0.5, 0.5, 0.5)),
        "coders in the other order": by_hand(coders=CODERS[::-1]),
        "objects that are not added": by_hand(truth_again=False),
    }
    for what, value in wrong.items():
        assert abs(value - found) > 1e-3, what


class Boxes(nn.Module):
    """In the place of a pool: what is pooled from a box is the box."""

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        return torch.cat(boxes)


class Perfect(nn.Module):
    """A head that knows the objects of an image and moves each box onto the one it overlaps most."""

    def __init__(self, truth: Tensor, coder: tuple[float, ...]) -> None:
        super().__init__()
        self.truth, self.coder = truth, torch.tensor(coder)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        aims = self.truth[box_iou(boxes, self.truth).argmax(1)]
        size, centre = boxes[:, 2:] - boxes[:, :2], boxes[:, 2:] + boxes[:, :2]
        shift = (aims[:, 2:] + aims[:, :2] - centre) / 2 / size
        growth = ((aims[:, 2:] - aims[:, :2]) / size).log()
        return torch.zeros(len(boxes), 4), torch.cat([shift, growth], 1) * self.coder


def _perfect(truth: Tensor, coders: tuple[tuple[float, ...], ...]) -> CascadeHeads:
    heads = cascade(3)
    heads.pool = Boxes()  # type: ignore[assignment]  # what is pooled is all that matters of it
    heads.heads = nn.ModuleList(Perfect(truth, coder) for coder in coders)
    return heads


@pytest.mark.parametrize("training", [True, False])
def test_row_147_perfect_heads_propose_the_objects_themselves_to_later_stages(training: bool) -> None:
    maps, proposals, sizes, targets = scene(1)
    truth = targets[0]["boxes"]
    heads = _perfect(truth, CODERS)
    handed = []
    for head in heads.heads:
        head.register_forward_pre_hook(lambda _, given: handed.append(given[0]))
    losses = heads.train(training)(maps, proposals, sizes, targets)[1]

    assert [len(proposals[0]) + 3 * training] * 3 == [len(boxes) for boxes in handed]
    assert _farthest(handed[0], truth) > 5
    assert _farthest(handed[1], truth) < 1e-3 and _farthest(handed[2], truth) < 1e-3
    # A move in a stage's own units leaves nothing to be learned.
    assert [name for name, loss in losses.items() if "box_reg" in name and loss > 1e-6] == []


def _farthest(boxes: Tensor, truth: Tensor) -> float:
    """How far, in pixels, a side of a box is from the object it overlaps most, at worst."""
    return float((boxes - truth[box_iou(boxes, truth).argmax(1)]).abs().max())


def test_row_147_perfect_moves_in_another_stages_units_miss_the_objects() -> None:
    maps, proposals, sizes, targets = scene(1)
    _, boxes = _perfect(targets[0]["boxes"], CODERS[::-1]).stages(maps, proposals, sizes)

    assert _farthest(boxes[0][0], targets[0]["boxes"]) > 5


def _shares(heads: CascadeHeads, seed: int) -> list[float]:
    """What share of the proposals overlaps an object by 0.7, as they reach each of the three stages."""
    maps, proposals, sizes, targets = scene(8, seed)
    _, moved = heads.stages(maps, proposals, sizes)
    return [
        float(
            torch.cat([box_iou(*pair).amax(1) for pair in zip(boxes, (it["boxes"] for it in targets), strict=True)])
            .ge(0.7)
            .float()
            .mean()
        )
        for boxes in (proposals, *moved[:2])
    ]


def test_row_147_positives_at_seven_tenths_rise_from_stage_to_stage_after_a_short_training() -> None:
    torch.manual_seed(0)
    heads = cascade(3, width=64)
    untrained = _shares(heads, seed=9)
    optimizer = torch.optim.AdamW(heads.parameters(), 3e-3)
    for step in range(80):
        loss = torch.stack(list(heads.losses(*scene(4, 100 + step)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, second, third = _shares(heads, seed=9)

    assert first + 0.1 < second < third
    assert not untrained[0] < untrained[1] < untrained[2]


def test_targets_without_objects_and_proposals_without_positives_give_finite_losses() -> None:
    heads = cascade(3)
    maps, proposals, sizes, targets = scene(2)
    nothing = [torch.zeros(0, 4)] * 2
    cases = {
        "no objects": (proposals, [EMPTY, EMPTY]),
        "no objects in one image": (proposals, [EMPTY, targets[1]]),
        "no positives but the objects": ([torch.tensor([[0.0, 0.0, 2.0, 2.0]])] * 2, targets),
        "boxes without area": ([torch.tensor([[5.0, 5.0, 5.0, 5.0]])] * 2, targets),
        "no proposals": (nothing, targets),
        "neither": (nothing, [EMPTY, EMPTY]),
    }
    for what, (boxes, objects) in cases.items():
        loss = torch.stack(list(heads.losses(maps, boxes, sizes, objects).values())).sum()
        heads.zero_grad()
        loss.backward()

        assert loss.isfinite(), what
        assert all(it.grad is not None and bool(it.grad.isfinite().all()) for it in heads.parameters()), what
    detections, losses = heads.eval()(maps, nothing, sizes)
    assert (losses, [0, 0]) == ({}, [len(found["boxes"]) for found in detections])


def test_draws_can_be_handed_in_and_touch_no_global_stream() -> None:
    maps, proposals, sizes, targets = scene(1)
    before = torch.get_rng_state()
    heads = cascade(3, sampler=everything)
    drawn = torch.get_rng_state()
    heads.losses(maps, proposals, sizes, targets)

    assert not torch.equal(before, drawn)
    assert torch.equal(drawn, torch.get_rng_state())


def test_half_precision_around_the_heads_keeps_boxes_in_full_precision() -> None:
    maps, proposals, sizes, _ = scene(1)
    with torch.autocast("cpu", torch.bfloat16):
        logits, boxes = cascade(3).stages(maps, proposals, sizes)

    assert [torch.float32] * 6 == [it.dtype for it in logits] + [found[0].dtype for found in boxes]


def test_objects_drawn_for_the_tests_lie_apart_and_proposals_near_them() -> None:
    targets = objects_on(2)
    own = box_iou(targets[0]["boxes"], targets[0]["boxes"])
    near = box_iou(shaken(targets)[0][:60], targets[0]["boxes"]).amax(1)

    assert torch.equal(own, torch.eye(3))
    assert 0.4 < near.mean() < 0.9
    assert map_of(targets)["0"].shape == (2, 4, 16, 16)

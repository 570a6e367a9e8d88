"""What a detector learns from, checked."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["learnable_targets"]

OBJECTS = ("boxes", "labels", "iscrowd", "area", "masks")
# Pixels that a box may stand over the edge: scaling rounds.
SLACK = 1.0


def learnable_targets(
    images: Tensor | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], num_classes: int
) -> list[dict[str, Tensor]]:
    """Targets without crowds, whose boxes are no single object's.

    Args:
        images: `(B, C, H, W)` or a list of `(C, H, W)`.
        targets: One an image, with `boxes` `(N, 4)`, `labels` `(N,)` and, where known, `iscrowd` `(N,)`.
        num_classes: K.

    Returns:
        The targets, boxes float32 and labels int64.

    Raises:
        ValueError: there is not a target for each image or a label for each box, a box has no area or lies outside its
            image, or a label is none of 1..K.
    """
    if len(images) != len(targets):
        raise ValueError(f"the batch has {len(images)} images and {len(targets)} targets; give each image one")
    if not targets:
        return []
    for number, target in enumerate(targets):
        shapes = [tuple(target[name].shape) if name in target else None for name in ("boxes", "labels")]
        boxes_there = shapes[0][0] if shapes[0] else 0
        if shapes[0] not in ((boxes_there, 4), (0,)) or shapes[1] != (boxes_there,):
            raise ValueError(
                f"target {number} of the batch has boxes {shapes[0]} and labels {shapes[1]}; give boxes (N, 4) and "
                "labels (N,)"
            )
    read = [
        {**target, "boxes": target["boxes"].reshape(-1, 4).float(), "labels": target["labels"].long()}
        for target in targets
    ]
    counts = [len(target["boxes"]) for target in read]
    boxes = torch.cat([target["boxes"] for target in read])
    labels = torch.cat([target["labels"] for target in read])
    sides = torch.tensor([(it.shape[-1], it.shape[-2]) for it in images], device=boxes.device)
    sides = sides.repeat_interleave(torch.tensor(counts, device=boxes.device), 0, output_size=len(boxes))
    crowd = torch.cat([it["iscrowd"] if "iscrowd" in it else torch.zeros_like(it["labels"]) for it in read]).bool()
    wrong = (
        ((boxes[:, 2:] <= boxes[:, :2]) | ~boxes.isfinite().view(-1, 2, 2).all(1)).any(1),
        ((boxes[:, :2] < -SLACK) | (boxes[:, 2:] > sides + SLACK)).any(1),
        (labels < 1) | (labels > num_classes),
    )
    # One look at the device for all questions.
    some_crowd, *found = torch.stack([crowd.any(), *((it & ~crowd).any() for it in wrong)]).tolist()
    for is_there, which, problem in zip(found, wrong, PROBLEMS, strict=True):
        if is_there:
            row = int((which & ~crowd).nonzero()[0])
            number = next(n for n in range(len(counts)) if row < sum(counts[: n + 1]))
            box, label, size = boxes[row].tolist(), int(labels[row]), sides[row].tolist()
            said = problem.format(box=[round(it, 1) for it in box], label=label, width=size[0], height=size[1])
            name = f", image_id {int(read[number]['image_id'])}" if "image_id" in read[number] else ""
            raise ValueError(f"image {number} of the batch{name}: {said.format(last=num_classes)}")
    if not some_crowd:
        return read
    singles = (~crowd).split(counts)
    return [
        {name: value[single] if name in OBJECTS else value for name, value in target.items()}
        for target, single in zip(read, singles, strict=True)
    ]


PROBLEMS = (
    "the box {box} has no area; drop it or mend its order, which is left, top, right, bottom",
    "the box {box} leaves the image of {width} x {height} pixels; clip it",
    "the label {label} is none of 1..{{last}}, which num_classes allows; 0 is the background's",
)

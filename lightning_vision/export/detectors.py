"""One-stage detectors as ONNX files, from bytes of an image to a fixed number of detections.

The network, the decoding of its boxes and the choice of candidates go through torch's exporter; doubles are suppressed
by ONNX's own operator, which torch cannot express with sizes that are known beforehand, and is added to the graph.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, clip_boxes_to_image

from lightning_vision.detection.network import TorchvisionDetector
from lightning_vision.images import normalise

from .programs import onnx_program, trace_program

__all__ = ["RawDetector", "compare_detections", "read_onnx_detector", "write_onnx_detector"]

OUTPUTS = ("boxes", "scores", "labels")
SCORES_AGREE, BOXES_AGREE, CORNERS_AGREE = 1e-4, 0.999, 1e-3


class RawDetector(nn.Module):
    """A one-stage detector that takes images as files hold them and gives its candidates, doubles included.

    Args:
        network: Of one of torchvision's one-stage detectors; shared, not copied.
        mean: Mean of each channel, for pixel values from 0 to 1.
        std: Standard deviation of each channel, for pixel values from 0 to 1.
        image_size: Height and width of the images, pixels.

    Shape:
        uint8 `(B, C, H, W)` to boxes float32 `(B, N, 4)`, left, top, right, bottom in pixels, of the N anchors, and the
        scores of the background and K classes float32 `(B, K + 1, N)`, 0 where a candidate is none of the best.

    Raises:
        ValueError: the detector has two stages.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], image_size: tuple[int, int]) -> None:
        super().__init__()
        model = network.model if isinstance(network, TorchvisionDetector) else network
        if not isinstance(model, FCOS | RetinaNet | SSD):
            raise ValueError(
                f"{type(model).__name__} looks again at each box that it proposes, which no file of fixed shapes "
                "expresses; export a detector of one stage: fcos, retinanet, ssd or ssdlite"
            )
        self.network, self.mean, self.std, self.image_size = model, mean, std, image_size
        below, right = (-side % model.transform.size_divisible for side in image_size)
        self.padding = (0, right, 0, below)
        with torch.no_grad():
            images, _ = model.transform(torch.zeros(1, len(mean), *image_size))
            maps = list(model.backbone(images.tensors).values())
            self.anchors = model.anchor_generator(images, maps)[0]
        cells = [found.shape[2] * found.shape[3] for found in maps]
        # How many anchors each map has.
        self.anchors_of_maps = [count * len(self.anchors) // sum(cells) for count in cells]
        if isinstance(model, SSD):
            each = model.anchor_generator.num_anchors_per_location()
            self.anchors_of_maps = [count * boxes for count, boxes in zip(cells, each, strict=True)]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(normalise(image, self.mean, self.std), self.padding)
        answers = self.network.head(list(self.network.backbone(padded).values()))
        return self._boxes(answers["bbox_regression"]), self._scores(answers)

    def _boxes(self, offsets: Tensor) -> Tensor:
        anchors = self.anchors.expand_as(offsets)
        if isinstance(self.network, FCOS):
            boxes = self.network.box_coder.decode(offsets, anchors)
        else:
            boxes = self.network.box_coder.decode_single(offsets.flatten(0, 1), anchors.flatten(0, 1)).view_as(offsets)
        return clip_boxes_to_image(boxes, self.image_size)

    def _scores(self, answers: Mapping[str, Tensor]) -> Tensor:
        logits, network = answers["cls_logits"], self.network
        if isinstance(network, SSD):  # the best of each class
            return F.pad(best(logits.softmax(2).mT[:, 1:], network.topk_candidates), (0, 0, 1, 0))
        scores = logits.sigmoid()
        if isinstance(network, FCOS):
            scores = (scores * answers["bbox_ctrness"].sigmoid()).sqrt()
        # The best of each map, of all classes together.
        parts = [best(part.flatten(1), network.topk_candidates) for part in scores.split(self.anchors_of_maps, 1)]
        return torch.cat([part.unflatten(1, (-1, scores.shape[2])) for part in parts], 1).mT


def best(scores: Tensor, count: int) -> Tensor:
    """Scores `(..., N)` with zeros in the place of all but the best `count`."""
    if scores.shape[-1] <= count:
        return scores
    worst = scores.topk(count).values[..., -1:]
    return scores.where(scores >= worst, 0.0)


def write_onnx_detector(detector: RawDetector, metadata: dict[str, str], path: Path) -> None:
    """Write an ONNX model with a free batch size: input `image`, outputs `boxes`, `scores` and `labels`.

    An image has as many detections as the network may give at most, D, the best first; where fewer are found, the last
    ones have score 0. Boxes `(B, D, 4)` are left, top, right, bottom in pixels of `image`, scores float32 `(B, D)` and
    labels int64 `(B, D)` in 1..K.

    Args:
        detector: In evaluation mode, on the CPU.
        metadata: Becomes the model's metadata properties.
        path: File to write.

    Raises:
        ValueError: the network does something that a program or ONNX cannot express.
    """
    import onnx

    example = torch.zeros(2, len(detector.mean), *detector.image_size, dtype=torch.uint8)
    dense = onnx_program(trace_program(detector, example), ["anchor_boxes", "anchor_scores"])
    dense.model.metadata_props.update(metadata)
    model = dense.model_proto
    _suppress(model.graph, detector.network)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def read_onnx_detector(path: Path) -> Callable[[Tensor], list[dict[str, Tensor]]]:
    """Function from uint8 images `(B, C, H, W)` to detections as torchvision gives them, run by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def detect(image: Tensor) -> list[dict[str, Tensor]]:
        boxes, scores, labels = map(torch.from_numpy, session.run(OUTPUTS, {"image": image.numpy()}))
        found = zip(boxes, scores, labels, scores > 0, strict=True)
        return [{"boxes": it[there], "scores": s[there], "labels": k[there]} for it, s, k, there in found]

    return detect


def compare_detections(
    expected: Sequence[Mapping[str, Tensor]],
    found: Sequence[Mapping[str, Tensor]],
    score_threshold: float,
    max_detections: int,
) -> float:
    """Largest difference of scores between detections of the same objects, image by image.

    Two detections are the same if their labels agree, their boxes, with an intersection over union above 0.999 or
    corners to 1e-3 pixels, and their scores, to 1e-4. One that the other side lacks is forgiven only if its score
    is that close to the threshold, or to the weakest score of a side that is full: there a last bit decides who is
    dropped.

    Args:
        expected: A mapping an image, with `boxes` `(D, 4)`, `labels` `(D,)` and `scores` `(D,)`.
        found: Likewise, of another program.
        score_threshold: Below it both drop detections.
        max_detections: How many both keep at most in an image.

    Raises:
        ValueError: an image has a detection that the other side lacks.
    """
    largest = 0.0
    for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        differences = (ours["scores"][:, None] - theirs["scores"]).abs()
        alike = (ours["labels"][:, None] == theirs["labels"]) & (differences < SCORES_AGREE)
        # Boxes without area, as untrained networks draw them, have no overlap.
        corners = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2)
        alike &= (box_iou(ours["boxes"], theirs["boxes"]) > BOXES_AGREE) | (corners < CORNERS_AGREE)
        sides = (("file", ours, theirs, ~alike.any(1)), ("checkpoint", theirs, ours, ~alike.any(0)))
        for whose, has, lacks, lonely in sides:
            full = len(lacks["scores"]) >= max_detections
            lowest = float(lacks["scores"].min()) if full else score_threshold
            lost = has["scores"][lonely & (has["scores"] > lowest + SCORES_AGREE)]
            if len(lost):
                raise ValueError(
                    f"nothing was written: the {whose} lacks {len(lost)} of {len(has['scores'])} detections in image "
                    f"{number}, the surest with score {float(lost.max()):.4f}"
                )
        if alike.any():
            largest = max(largest, float(differences[alike].max()))
    return largest


def _suppress(graph: Any, network: Any) -> None:
    """Exchange the outputs of a dense detector for those of `OUTPUTS`, by nodes that suppress doubles."""
    from onnx import TensorProto, helper

    boxes, scores = (value.name for value in graph.output)
    dims = graph.output[1].type.tensor_type.shape.dim
    classes, anchors = dims[1].dim_value, dims[2].dim_value
    kept = min(network.detections_per_img, classes * anchors)

    def constant(name: str, kind: int, values: list[Any], shape: list[int] | None = None) -> None:
        shape = [len(values)] if shape is None else shape
        graph.initializer.append(helper.make_tensor(ours(name), kind, shape, values))

    def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = f"suppression/{operator}_{outputs[0]}"
        graph.node.append(helper.make_node(operator, [*map(ours, inputs)], [*map(ours, outputs)], name, **attributes))

    def ours(name: str) -> str:
        return name if name in (boxes, scores, *OUTPUTS) else f"suppression/{name}"

    constant("most_of_a_class", TensorProto.INT64, [kept])
    constant("nms_threshold", TensorProto.FLOAT, [network.nms_thresh])
    constant("score_threshold", TensorProto.FLOAT, [network.score_thresh])
    chosen = ["most_of_a_class", "nms_threshold", "score_threshold"]
    # Rows of image, class and anchor, in an order and a number that nothing fixes; a mask has both fixed.
    node("NonMaxSuppression", [boxes, scores, *chosen], ["survivors"])
    constant("nought", TensorProto.FLOAT, [0.0], [])
    node("Mul", [scores, "nought"], ["no_scores"])
    node("GatherND", [scores, "survivors"], ["scores_of_survivors"])
    node("ScatterND", ["no_scores", "survivors", "scores_of_survivors"], ["survivors_scores"])
    constant("in_a_row", TensorProto.INT64, [0, classes * anchors])
    node("Reshape", ["survivors_scores", "in_a_row"], ["scores_in_a_row"])
    constant("kept", TensorProto.INT64, [kept])
    node("TopK", ["scores_in_a_row", "kept"], ["best_scores", "best_places"], axis=1)
    constant("anchors", TensorProto.INT64, [anchors], [])
    # The background takes part, as in torchvision, and goes when the best are chosen.
    node("Div", ["best_places", "anchors"], ["best_classes"])
    node("Cast", ["best_classes"], ["weights"], to=TensorProto.FLOAT)
    node("Sign", ["weights"], ["are_objects"])
    node("Mul", ["best_scores", "are_objects"], ["scores_of_objects"])
    node("TopK", ["scores_of_objects", "kept"], ["scores", "order"], axis=1)
    node("GatherElements", ["best_places", "order"], ["places"], axis=1)
    node("Div", ["places", "anchors"], ["labels"])
    node("Mod", ["places", "anchors"], ["rows"])
    constant("last_axis", TensorProto.INT64, [2])
    node("Unsqueeze", ["rows", "last_axis"], ["rows_of_boxes"])
    constant("four", TensorProto.INT64, [1, 1, 4])
    node("Expand", ["rows_of_boxes", "four"], ["rows_of_sides"])
    node("GatherElements", [boxes, "rows_of_sides"], ["boxes"], axis=1)
    batch = dims[0].dim_param or "batch"
    del graph.output[:]
    kinds = {"boxes": (TensorProto.FLOAT, [batch, kept, 4]), "scores": (TensorProto.FLOAT, [batch, kept])}
    kinds["labels"] = (TensorProto.INT64, [batch, kept])
    graph.output.extend(helper.make_tensor_value_info(name, *kinds[name]) for name in OUTPUTS)

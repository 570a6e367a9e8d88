"""A detector's ONNX file finds what the detector finds, with doubles suppressed inside and a fixed number of places."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from lightning_vision import main
from lightning_vision.datamodules import DigitScenes
from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.export.detectors import (
    RawDetector,
    best,
    compare_detections,
    read_onnx_detector,
    write_onnx_detector,
)
from lightning_vision.images import normalise

MEAN, STD = [0.48, 0.42, 0.36], [0.24, 0.21, 0.27]
SIZE = (96, 128)


def detector(architecture: str, **changed: Any) -> ObjectDetector:
    """Untrained, with all scores above the threshold, so that doubles abound."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"image_size": SIZE, "strides": [8, 16], "pyramid_channels": 32, "score_threshold": 0.01}
    return ObjectDetector(architecture, "test_byobnet", 5, **(settings | changed)).eval()  # type: ignore[arg-type]  # parametrised


def scenes(count: int = 3) -> Tensor:
    """uint8 `(count, 3, 96, 128)`."""
    data = DigitScenes(batch_size=count)
    batch: Any = next(iter(data.val_dataloader()))
    return batch[0][:, :, : SIZE[0], : SIZE[1]].contiguous()


def written(module: ObjectDetector, path: Path) -> Path:
    with torch.no_grad():
        write_onnx_detector(RawDetector(module.network, MEAN, STD, SIZE).eval(), {"output": "detections"}, path)
    return path


@pytest.mark.parametrize(
    "architecture", ["fcos", *(pytest.param(it, marks=pytest.mark.slow) for it in ("retinanet", "ssd", "ssdlite"))]
)
def test_a_file_finds_what_the_detector_finds(architecture: str, tmp_path: Path) -> None:
    # Few candidates a map and few places, so that both limits are reached.
    module = detector(architecture, options={"topk_candidates": 40}, max_detections=30, nms_threshold=0.3)
    path, images = written(module, tmp_path / "model.onnx"), scenes()
    with torch.no_grad():
        expected = module(normalise(images, MEAN, STD))
    found = read_onnx_detector(path)(images)

    assert compare_detections(expected, found, 0.01, 30) < 1e-4
    assert all(10 < len(image["scores"]) <= 30 for image in found)
    assert compare_detections(expected[:1], read_onnx_detector(path)(images[:1]), 0.01, 30) < 1e-4
    session = onnxruntime.InferenceSession(path)
    assert {it.name: it.shape[1:] for it in session.get_outputs()} == {"boxes": [30, 4], "scores": [30], "labels": [30]}
    assert session.get_modelmeta().custom_metadata_map["output"] == "detections"


@pytest.mark.parametrize("architecture", ["faster_rcnn", "cascade_rcnn", "mask_rcnn"])
def test_a_detector_of_two_stages_is_refused(architecture: str) -> None:
    module = detector(architecture, strides=[8, 16, 32])

    with pytest.raises(ValueError, match=r"looks again at each box.*export a detector of one stage: fcos"):
        RawDetector(module.network, MEAN, STD, SIZE)


def detections(*rows: tuple[float, float, float, float, float, int]) -> dict[str, Tensor]:
    """Left, top, right, bottom, score and label each."""
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 6)
    return {"boxes": table[:, :4].float(), "scores": table[:, 4].float(), "labels": table[:, 5].long()}


PAIR = detections((0, 0, 10, 10, 0.9, 1), (5, 5, 25, 25, 0.4, 2))


@pytest.mark.parametrize(
    "found",
    [
        detections((0, 0, 10, 10, 0.9, 1)),
        detections((0, 0, 10, 10.02, 0.9, 1), (5, 5, 25, 25, 0.4, 2)),
        detections((0, 0, 10, 10, 0.9002, 1), (5, 5, 25, 25, 0.4, 2)),
        detections((0, 0, 10, 10, 0.9, 2), (5, 5, 25, 25, 0.4, 2)),
        detections((0, 0, 10, 10, 0.9, 1), (5, 5, 25, 25, 0.4, 2), (50, 50, 60, 60, 0.8, 1)),
    ],
    ids=["a box less", "moved", "another score", "another label", "a box more"],
)
def test_other_detections_are_noticed(found: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"nothing was written: the (file|checkpoint) lacks 1 of .* in image 1"):
        compare_detections([PAIR, PAIR], [PAIR, found], 0.05, 100)


def test_who_is_dropped_at_a_limit_by_a_last_bit_is_no_difference() -> None:
    more = detections((0, 0, 10, 10, 0.9, 1), (5, 5, 25, 25, 0.4, 2), (50, 50, 60, 60, 0.05001, 1))
    other = detections((0, 0, 10, 10, 0.9, 1), (70, 5, 90, 25, 0.40001, 2))

    assert compare_detections([PAIR], [more], 0.05, 100) == 0
    assert compare_detections([PAIR], [other], 0.05, 2) == 0
    with pytest.raises(ValueError, match="lacks"):
        compare_detections([PAIR], [other], 0.05, 3)


def test_all_but_the_best_scores_are_nought() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.3], [0.9, 0.2, 0.8]])

    assert best(scores, 2).tolist() == torch.tensor([[0.0, 0.5, 0.3], [0.9, 0.0, 0.8]]).tolist()
    assert best(scores, 3) is scores


def test_the_command_writes_a_file_that_agrees_on_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--config", "detection/digits", "--trainer.default_root_dir", str(tmp_path), "--data.train_images", "32"]
    small = ["--model.backbone", "test_byobnet", "--model.pyramid_channels", "32", "--trainer.max_epochs", "1"]
    main(["fit", *place, *small, "--trainer.limit_val_batches", "0"])
    (checkpoint,) = tmp_path.glob("version_0/checkpoints/last.ckpt")
    output = ["--output", str(tmp_path / "exported")]
    capsys.readouterr()
    main(["export", *place, *small, "--ckpt_path", str(checkpoint), *output])
    told = capsys.readouterr().out

    assert "detections on 16 images of DigitScenes; scores differ by at most" in told
    assert [it.name for it in (tmp_path / "exported").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map.keys() >= {"class_names", "category_ids", "image_size", "resize"}
    with pytest.raises(ValueError, match="a detector can be exported as ONNX only"):
        main(["export", "--format", "timm", "--ckpt_path", str(checkpoint), *output])
    with pytest.raises(FileExistsError):
        main(["export", "--ckpt_path", str(checkpoint), *output])

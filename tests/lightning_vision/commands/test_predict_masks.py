"""The masks that `predict` writes, judged by pycocotools from the file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

from lightning_vision import ObjectDetector, main
from lightning_vision.commands._detection_files import DetectionFiles
from lightning_vision.datamodules import DigitScenes
from lightning_vision.detection.coco_metric import CocoMAP
from lightning_vision.detection.placement import original_rles
from support.coco import NAMES, K, run_lengths, scene
from support.trainers import QUIET, quiet_trainer

pytestmark = pytest.mark.one_worker

SIDE = 320


class Names:
    """What is asked of a module when its detections are written."""

    class_names = tuple("abcd")
    category_ids = (5, 6, 7, 8)


def written_up(results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> str:
    """The results of a batch as `predict` writes them."""
    outputs = {"results": results, "target": targets}
    records = DetectionFiles().records(Names(), None, outputs, list(range(len(results))), [None] * len(results))
    Path("part").write_text("".join(json.dumps(record) + "\n" for record in records))
    DetectionFiles().write([Path("part")], Path())
    return "predictions.json"


def judged(path: str, targets: Iterable[Mapping[str, Tensor]], categories: list[int]) -> list[float]:
    """pycocotools' numbers of the masks in a file of results, whose boxes are left out as the page says."""
    known, images = COCO(), []
    rows: list[dict[str, Any]] = []
    for target in targets:
        height, width = target["masks"].shape[-2:]
        images.append({"id": int(target["image_id"]), "height": height, "width": width})
        for place, label in enumerate(target["labels"].tolist()):
            mask = run_lengths(target["masks"][place].byte())
            row = {"image_id": images[-1]["id"], "category_id": categories[label - 1], "segmentation": mask}
            numbers = {name: target[name][place].item() for name in ("iscrowd", "area")}
            rows.append({"id": len(rows) + 1, **row, **numbers})
    known.dataset = {"images": images, "annotations": rows, "categories": [{"id": it} for it in categories], "info": {}}
    known.createIndex()
    results = json.loads(Path(path).read_text())
    Path("masks.json").write_text(json.dumps([{name: row[name] for name in row if name != "bbox"} for row in results]))
    evaluation = COCOeval(known, known.loadRes("masks.json"), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats)


@pytest.mark.parametrize("placement", [(1, 1, 0, 0), (0.5, 0.5, 0, 20)], ids=["as they are", "letterboxed"])
def test_masks_in_the_file_give_what_is_counted(placement: tuple[float, ...]) -> None:
    results, targets = scene(3, images=6, most=6, masks=True)
    placed = {"placement": torch.tensor(placement), "size": torch.tensor([SIDE, SIDE])}
    for it in [*results, *targets]:
        it["boxes"] = it["boxes"] * placement[0] + torch.tensor(placement)[[2, 3, 2, 3]]
        if placement[3]:
            it["masks"] = F.pad(it["masks"][:, ::2, ::2], (0, 0, 20, 20))
    batch = [{**it, **placed} for it in targets]
    metric = CocoMAP(K, masks=True)
    metric.update(results, batch)
    counted = metric.compute()
    whole = [original_rles(it["masks"], np.array(placement), (SIDE, SIDE)) for it in targets]
    for target, texts in zip(targets, whole, strict=True):
        drawn = rle.decode([{"size": [SIDE, SIDE], "counts": text} for text in texts]) if texts else []
        target["masks"] = torch.tensor(drawn).reshape(SIDE, SIDE, len(texts)).permute(2, 0, 1)

    found = judged(written_up(results, batch), targets, list(Names.category_ids))
    assert 0.05 < found[0] < 0.9
    assert pytest.approx(found, abs=1e-6) == [float(counted[f"segm_{it}"]) for it in NAMES]


@pytest.mark.slow
def test_mask_rcnn_from_fit_to_the_file_has_the_masks_that_test_counts() -> None:
    scenes: dict[str, Any] = {"image_size": 64, "objects": (1, 2), "sizes": (0.4, 0.6), "masks": True}
    scenes |= {"train_images": 400, "val_images": 4, "test_images": 10, "batch_size": 8}
    said = {f"--data.{name}": str(value).lower().replace("(", "[").replace(")", "]") for name, value in scenes.items()}
    said |= {"--model.object_sizes": "[0.4, 0.6]", "--model.pyramid_channels": "32", "--model.options.proposals": "50"}
    said |= {"--trainer.accelerator": "cpu", "--callbacks.warm_up_cosine": "null"}
    words = [
        "--config",
        "detection/mask_rcnn",
        *(word for pair in said.items() for word in pair),
        *QUIET,
        "--trainer.default_root_dir",
        "runs",
    ]
    best = str(main(["fit", *words, "--trainer.max_epochs", "1"]).best_ckpt)
    told = main(["test", *words, "--ckpt_path", best]).metrics
    output: Any = main(["predict", *words, "--ckpt_path", best, "--output", ".", "--sheet", "2"]).output
    (alone,) = quiet_trainer().test(ObjectDetector.load_from_checkpoint(best), DigitScenes(**scenes), verbose=False)
    targets = [target for _, annotations, _ in DigitScenes(**scenes).test_dataloader() for target in annotations]
    targets = [{"iscrowd": torch.zeros_like(it["labels"]), **it} for it in targets]

    assert told == alone and told["test/segm_map"] > 0
    assert pytest.approx(judged(output["json"], targets, list(range(1, 11))), abs=1e-6) == [
        told[f"test/segm_{name}"] for name in NAMES
    ]

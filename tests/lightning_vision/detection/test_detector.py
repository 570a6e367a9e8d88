"""The LightningModule of detectors: steps, checkpoints, what is frozen, what is refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.datamodules import DigitScenes
from lightning_vision.detection.detector import ObjectDetector
from support.shapes import shapes, shapes_loader
from support.trainers import quiet_trainer

ONE_STAGE = ("fcos", "retinanet", "ssd", "ssdlite")
SGD = partial(torch.optim.SGD, lr=0.05)


def detector(architecture: Any = "ssd", **options: Any) -> ObjectDetector:
    torch.manual_seed(0)
    given = {"backbone": "test_byobnet", "num_classes": 2, "image_size": 64, "pyramid_channels": 32, "optimizer": SGD}
    return ObjectDetector(architecture, **(given | options))


@pytest.mark.parametrize("architecture", ONE_STAGE)
def test_row_128_images_without_objects_have_a_finite_loss(architecture: str) -> None:
    module = detector(architecture)
    images, targets = shapes(2)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    crowd = targets[0] | {"iscrowd": torch.ones(2, dtype=torch.int64)}
    for batch in ([empty, empty], [targets[0], empty], [crowd, empty]):
        loss = module.training_step((images, batch), 0)
        loss.backward()

        assert loss.isfinite()
        assert all(it.grad is None or it.grad.isfinite().all() for it in module.parameters())


@pytest.mark.parametrize("architecture", ONE_STAGE)
def test_detections_name_a_class_and_stay_in_the_image(architecture: str) -> None:
    module = detector(architecture, score_threshold=0.0).eval()
    with torch.no_grad():
        found = module(torch.randn(2, 3, 64, 80))

    for image in found:
        assert len(image["boxes"]) == len(image["labels"]) == len(image["scores"]) <= 100
        assert set(image["labels"].tolist()) <= {1, 2}
        assert image["boxes"].min() >= 0
        assert (image["boxes"] <= torch.tensor([80.0, 64.0, 80.0, 64.0])).all()


@pytest.mark.parametrize("architecture", [*ONE_STAGE, "faster_rcnn"])
def test_under_autocast_anchors_and_boxes_are_not_rounded_to_half_precision(architecture: str) -> None:
    module = detector(architecture, score_threshold=0.0).eval()
    seen: list[Tensor] = []
    for it in module.modules():
        if type(it).__name__ in ("AnchorGenerator", "DefaultBoxGenerator"):
            it.register_forward_hook(lambda _module, _args, anchors: seen.append(anchors[0]))
    with torch.no_grad():
        module(torch.randn(1, 3, 64, 64))
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = module(torch.randn(1, 3, 64, 64))

    assert seen[1].dtype == torch.float32
    assert torch.equal(seen[0], seen[1])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())


def test_accumulated_gradients_divide_the_loss_once() -> None:
    """Two steps of two batches each equal a loop that adds the halves of two losses up."""
    module, loop = detector(), detector()
    trainer = quiet_trainer(max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(module, shapes_loader(count=8, batch_size=2))
    optimizer = loop.configure_optimizers()
    images, targets = shapes(8)
    for first in (0, 4):
        optimizer.zero_grad()
        for start in (first, first + 2):
            losses = loop.network.losses(images[start : start + 2], targets[start : start + 2])
            (sum(losses.values()) / 2).backward()
        optimizer.step()

    assert trainer.global_step == 2
    ours, theirs = module.state_dict(), loop.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def union(rank: int) -> dict[str, Tensor]:
    """Gradients of this rank's half of a batch, as averaged over both ranks."""
    module = detector("retinanet", freeze_norm=True).train()
    images, targets = shapes(4)
    mine = slice(2 * rank, 2 * rank + 2)
    wrapped = DistributedDataParallel(Losses(module.network), find_unused_parameters=True)
    wrapped(images[mine], targets[mine]).backward()
    return {name: it.grad for name, it in module.named_parameters() if it.grad is not None}


class Losses(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel looks after."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, targets: Any) -> Tensor:
        return torch.stack(list(self.network.losses(images, targets).values())).sum()


def on_a_rank() -> dict[str, Tensor]:
    return union(torch.distributed.get_rank())


def test_two_ranks_have_the_gradients_of_their_union(two_ranks: Any) -> None:
    """RetinaNet's loss is a mean over images, and frozen norms see no batch."""
    first, second = two_ranks(on_a_rank)
    module = detector("retinanet", freeze_norm=True).train()
    images, targets = shapes(4)
    Losses(module.network)(images, targets).backward()
    whole = {name: it.grad for name, it in module.named_parameters() if it.grad is not None}

    assert first.keys() == second.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(first[name], gradient, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0)


def test_a_checkpoint_holds_plain_data_and_rebuilds_the_detector(tmp_path: Path) -> None:
    module = detector("fcos", options={"num_convs": 1}, object_sizes=(0.1, 0.6))
    trainer = quiet_trainer(
        max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path)], num_sanity_val_steps=0
    )
    trainer.fit(module, shapes_loader(), shapes_loader())
    (path,) = tmp_path.glob("*.ckpt")
    torch.load(path, weights_only=True)
    again, named = ObjectDetector.load_from_checkpoint(path), module_from_checkpoint(path)
    images, _ = shapes(2)
    found = [it.eval()(images) for it in (module, again, named)]

    assert len(found[0][0]["boxes"])
    for other in found[1:]:
        assert all(torch.equal(a[name], b[name]) for a, b in zip(found[0], other, strict=True) for name in a)


def test_a_run_resumed_within_an_epoch_is_the_straight_one(tmp_path: Path) -> None:
    """On scenes that are drawn anew, with norms that stay frozen after the resumption too."""

    def fitted(resumed: Path | None) -> dict[str, Tensor]:
        module = detector("fcos", num_classes=10, image_size=96, freeze_norm=True, options={"num_convs": 1})
        data = DigitScenes(image_size=96, train_images=10, val_images=2, test_images=2, batch_size=2)
        saving = ModelCheckpoint(tmp_path / str(resumed is None), every_n_train_steps=3)
        trainer = quiet_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[saving], limit_val_batches=0)
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
        return module.state_dict()

    straight = fitted(None)
    (path,) = (tmp_path / "True").glob("*step=3.ckpt")
    resumed = fitted(path)

    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_test_alone_reports_coco_s_figures() -> None:
    module = detector()
    trainer = quiet_trainer()
    (found,) = trainer.test(module, shapes_loader(), verbose=False)

    assert found.keys() >= {"test/map", "test/map_50", "test/map_75", "test/mar_100"}
    assert [row["class"] for row in module.per_class] == ["1", "2"]
    assert "Average Precision" in module.coco_table


@pytest.mark.parametrize("knob", ["freeze_backbone", "freeze_norm"])
def test_what_is_frozen_stays_as_it_is(knob: str) -> None:
    module = detector(**{knob: True})
    before = {name: it.clone() for name, it in module.state_dict().items()}
    quiet_trainer(max_epochs=1).fit(module, shapes_loader())
    kept = {name for name, it in module.state_dict().items() if torch.equal(it, before[name])}
    backbone = {name for name in before if name.startswith("network.model.backbone.levels.")}
    norms = {name for name in backbone if ".bn." in name or "norm" in name}

    assert norms and norms < backbone
    frozen = backbone if knob == "freeze_backbone" else norms
    assert frozen <= kept
    moved = before.keys() - kept
    assert any("head" in name for name in moved)
    assert any(name in backbone for name in moved) is (knob == "freeze_norm")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": None}, "ObjectDetector needs num_classes; from Python pass it, for example num_classes=10"),
        ({"num_classes": 0}, "num_classes=0 is below 1"),
        ({"architecture": "fcoss"}, "no architecture 'fcoss'; did you mean fcos"),
        ({"options": {"neg_to_pos": 1}}, "ssd has no option 'neg_to_pos'; did you mean neg_to_pos_ratio"),
        ({"object_sizes": (0.5, 0.1)}, r"object_sizes=\(0.5, 0.1\) are no sizes from small to large; give fractions"),
        ({"score_threshold": 1.0}, r"score_threshold=1.0 is outside \[0, 1\)"),
        ({"nms_threshold": 0.0}, r"nms_threshold=0.0 is outside \(0, 1\]"),
        ({"max_detections": 0}, "max_detections=0 is below 1"),
        ({"image_size": 0}, r"image_size=\(0, 0\) is below 1"),
        ({"image_size": [64]}, r"image_size=\[64\] has 1 numbers; give two"),
        ({"object_sizes": [0.1, 0.2, 0.3]}, "object_sizes=.* has 3 numbers; give two"),
        ({"options": {"topk_candidates": "many"}}, "options has topk_candidates='many'; give a whole number"),
        ({"options": {"topk_candidates": 2.5}}, "options has topk_candidates=2.5; give a whole number"),
        ({"options": {"neg_to_pos_ratio": True}}, "options has neg_to_pos_ratio=True; give a number"),
        ({"options": {"topk_candidates": 0}}, "topk_candidates=0 is below 1; give at least 1"),
        ({"options": {"aspect_ratios": [[2], [0], [2]]}}, r"aspect_ratios=\[\[2\], \[0\], \[2\]\] must all be above"),
        ({"architecture": "fcos", "options": {"num_convs": 0}}, "num_convs=0 and topk_candidates=1000 must be above 0"),
        ({"architecture": "retinanet", "options": {"bg_iou_thresh": 0.9}}, "bg_iou_thresh=0.9 and fg_iou_thresh=0.5"),
        ({"architecture": "retinanet", "options": {"aspect_ratios": []}}, r"all of aspect_ratios=\[\] must be above 0"),
        ({"backbone": nn.Identity(), "pretrained": True}, "timm has weights for networks that it builds by name, none"),
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'; did you mean resnet51q"),
        ({"strides": [1, 8]}, r"test_byobnet has maps of strides \[2, 4, 8, 16, 32\] and none of \[1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        detector(**options)


def test_images_of_another_size_than_anchors_follow_are_refused_before_training() -> None:
    data = DigitScenes(image_size=96, train_images=2, val_images=2, test_images=2, batch_size=2)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    said = r"anchors follow image_size=\(64, 64\) and DigitScenes has image_size=\(96, 96\); make them agree"
    with pytest.raises(ValueError, match=said):
        trainer.fit(detector(num_classes=10), datamodule=data)
    trainer.fit(detector(num_classes=10, image_size=96), datamodule=data)

    assert trainer.global_step == 1


def test_losses_and_detections_belong_to_their_modes() -> None:
    images, targets = shapes(1)
    with pytest.raises(RuntimeError, match=r"losses in training mode only; call train\(\) first"):
        detector().eval().network.losses(images, targets)
    with pytest.raises(RuntimeError, match=r"detects in evaluation mode only; call eval\(\) first"):
        detector().train()(images)


def test_a_module_of_ones_own_is_a_backbone_and_images_may_be_a_list() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 8, 8), Several())
    module = detector("retinanet", backbone=backbone, strides=[8, 16]).eval()
    with torch.no_grad():
        found = module([torch.randn(3, 40, 64), torch.randn(3, 64, 48)])

    assert len(found) == 2
    assert dict(module._left_out) == {"backbone": "Sequential"}


class Several(nn.Module):
    """One map as a list of maps."""

    def forward(self, found: Tensor) -> list[Tensor]:
        return [found]


def test_a_schedule_that_waits_for_the_map_waits_for_it_to_rise() -> None:
    def module(mode: str) -> ObjectDetector:
        plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode)
        return ObjectDetector("fcos", "test_byobnet", 2, image_size=64, pyramid_channels=32, lr_scheduler=plateau)

    assert module("max").configure_optimizers()["lr_scheduler"]["monitor"] == "val/map"
    with pytest.raises(ValueError, match="waits for val/map to fall, which is to rise; pass mode='max'"):
        module("min").configure_optimizers()


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_boxes_are_not_rounded_to_half_precision(precision: Any) -> None:
    module = ObjectDetector("fcos", "test_byobnet", 2, image_size=64, pyramid_channels=32)

    with pytest.raises(ValueError, match=f"precision {precision} rounds boxes .* with precision .*mixed"):
        quiet_trainer(max_steps=1, precision=precision).fit(module, shapes_loader())

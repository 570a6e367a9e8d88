"""Weights for a detector: files of ours, of torchvision, of another number of classes; torchvision's published ones."""

import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large

from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.detection.published import published_architecture, published_state, published_weights
from support.trainers import quiet_trainer

NAME = "SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"


def detector(num_classes: int = 2, **options: Any) -> ObjectDetector:
    given = {"architecture": "ssd", "backbone": "test_byobnet", "image_size": 64, "pyramid_channels": 32}
    return ObjectDetector(num_classes=num_classes, **(given | options))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Names that hold the same."""
    return {name for name in first if torch.equal(first[name], second[name])}


@pytest.mark.parametrize("form", ["checkpoint", "network", "torchvision"])
def test_weights_come_from_checkpoints_networks_and_torchvisions_models(form: str, tmp_path: Path) -> None:
    source = detector()
    path = tmp_path / "weights.pt"
    if form == "checkpoint":
        trainer = quiet_trainer()
        trainer.strategy.connect(source)
        trainer.save_checkpoint(path)
    else:
        torch.save((source.network if form == "network" else source.network.model).state_dict(), path)
    found = detector(weights=str(path)).network.state_dict()

    assert same(found, source.network.state_dict()) == set(found)


def test_layers_that_depend_on_the_classes_start_fresh_and_are_named(tmp_path: Path) -> None:
    source = detector(2)
    torch.save(source.network.state_dict(), tmp_path / "two.pt")
    with pytest.warns(UserWarning, match="knows 2 classes and the detector 5, so these layers start untrained: model"):
        module = detector(5, weights=str(tmp_path / "two.pt"))
    found, there = module.network.state_dict(), source.network.state_dict()
    fresh = {name for name in found if "classification_head" in name}

    assert fresh
    assert same({name: it for name, it in found.items() if name not in fresh}, there) == found.keys() - fresh


@pytest.mark.parametrize("options", [{"strides": [16, 32]}, {"backbone": "test_resnet"}, {"architecture": "ssdlite"}])
def test_weights_of_another_detector_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    torch.save(detector().network.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt holds weights of another detector: .*(missing|another shape)"):
        detector(weights=str(tmp_path / "other.pt"), **options)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        detector(weights=str(tmp_path / "nothing.pt"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A hub folder with a file as torchvision publishes it, of weights made here."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    state = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91).state_dict()
    (folder / "checkpoints").mkdir()
    file = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.url.rpartition("/")[2]
    torch.save(dict(state), folder / "checkpoints" / file)
    return folder, state


def published(num_classes: int) -> ObjectDetector:
    return ObjectDetector("ssdlite", "ssdlite320_mobilenet_v3_large", num_classes=num_classes, weights=NAME)


def test_published_weights_bring_their_classes(
    hub: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub[0]))
    whole, named = published(90), published(80)
    with pytest.warns(UserWarning, match=f"{NAME} knows 90 classes and the detector 3"):
        few = published(3)
    images = torch.randn(1, 3, 320, 320)
    logits = [
        it.eval().network.model.head([torch.ones(1, c, 2, 2) for c in (672, 480, 512, 256, 256, 128)])["cls_logits"]
        for it in (whole, named)
    ]

    assert same(whole.network.model.state_dict(), hub[1]) == set(hub[1])
    assert (named.class_names[:2], named.class_names[-1]) == (["person", "bicycle"], "toothbrush")
    assert (named.category_ids[0], named.category_ids[11], named.category_ids[-1]) == (1, 13, 90)
    assert (len(whole.class_names), whole.category_ids[11], few.class_names) == (90, 12, ["1", "2", "3"])
    # The answers for the 80 are those that the 90 have at their places.
    torch.testing.assert_close(logits[1], logits[0][:, :, [0, *named.category_ids]])
    assert named.preprocessing is not None and named.preprocessing["image_size"] == (320, 320)
    assert named.preprocessing["mean"] == [0.5, 0.5, 0.5]
    # A checkpoint needs no hub.
    trainer = quiet_trainer()
    trainer.strategy.connect(named)
    trainer.save_checkpoint(tmp_path / "named.ckpt")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "nowhere"))
    again = ObjectDetector.load_from_checkpoint(tmp_path / "named.ckpt").eval()
    found = again(images)[0], named(images)[0]

    assert again.class_names == named.class_names
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("backbone", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_published_files_with_older_names_and_norms_without_epsilon_are_read_as_torchvision_does(
    backbone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    torch.manual_seed(0)
    theirs = get_model(backbone, weights=None, weights_backbone=None, num_classes=91)
    for name, it in theirs.state_dict().items():
        if name.endswith("running_var"):
            it.uniform_(5e-6, 5e-5)  # so small that an epsilon tells
    (tmp_path / "checkpoints").mkdir()
    (weights,) = get_model_weights(backbone)
    older = {older_name(name): it for name, it in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(older, tmp_path / "checkpoints" / weights.url.rpartition("/")[2])
    architecture: Any = published_architecture(backbone)
    module = ObjectDetector(architecture, backbone, num_classes=90, weights=str(weights), image_size=64).eval()
    bodies = [it.backbone.body.eval() for it in (module.network.model, theirs)]
    bodies[1].bn1.eps = 0.0
    with torch.no_grad():
        ours, wanted = (body.bn1(body.conv1(torch.ones(1, 3, 8, 8))) for body in bodies)

    assert len(older.keys() - theirs.state_dict().keys()) >= 18
    state = module.network.model.state_dict()
    varied = {name for name in state if name.endswith(("running_var", "num_batches_tracked"))}
    assert same(state, theirs.state_dict()) >= state.keys() - varied
    torch.testing.assert_close(ours, wanted)


def older_name(name: str) -> str:
    """What the first version of torchvision's layers called a tensor."""
    name = re.sub(r"fpn\.(inner|layer)_blocks\.(\d)\.0\.", r"fpn.\1_blocks.\2.", name)
    name = re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
    name = re.sub(r"mask_head\.(\d)\.0\.", lambda it: f"mask_head.mask_fcn{int(it[1]) + 1}.", name)
    return re.sub(r"^(head\..*)conv\.(\d)\.0\.", lambda it: f"{it[1]}conv.{2 * int(it[2])}.", name)


def test_published_weights_give_torchvisions_own_detections(
    hub: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub[0]))
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91, detections_per_img=100)
    theirs.load_state_dict(hub[1])
    # Their own resizing does nothing at this size; their own thresholds.
    module = ObjectDetector(
        "ssdlite",
        "ssdlite320_mobilenet_v3_large",
        num_classes=90,
        weights=NAME,
        score_threshold=0.001,
        nms_threshold=0.55,
    )
    image = torch.rand(3, 320, 320)
    with torch.no_grad():
        (ours,), (wanted,) = module.eval()((image[None] - 0.5) / 0.5), theirs.eval()([image])

    assert len(wanted["boxes"]) == 100
    assert same(ours, wanted) == {"boxes", "labels", "scores"}


def test_published_weights_that_cannot_be_fetched_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def refused(*args: Any, **options: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    weights = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
    with pytest.raises(ConnectionError, match=f"^{NAME} could not be fetched .URLError.; when offline, put a copy of "):
        published_state(weights, 90)


@pytest.mark.parametrize(
    ("architecture", "backbone", "weights", "said"),
    [
        ("fcos", "resnet50", "FCOS_ResNet50_FPN_Weights.COCO_V1", "fits torchvision's own network only; pass archit"),
        ("fcos", "fcos_resnet50_fpn", "FCOS_ResNet50_FPN_Weights.COCO_V2", "torchvision publishes no FCOS_ResNet50_"),
        (
            "ssd",
            "fcos_resnet50_fpn",
            None,
            "torchvision's fcos_resnet50_fpn is fcos, not ssd; pass architecture='fcos'",
        ),
    ],
)
def test_weights_and_networks_that_do_not_belong_together_are_refused(
    architecture: Any, backbone: str, weights: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        if weights is None:
            ObjectDetector(architecture, backbone, num_classes=2)
        else:
            published_weights(weights, backbone)


def test_options_of_torchvisions_networks_are_its_own() -> None:
    with pytest.raises(ValueError, match="leave strides and pretrained out, and name its published weights in weights"):
        ObjectDetector("ssdlite", "ssdlite320_mobilenet_v3_large", num_classes=2, strides=[8])
    with pytest.raises(
        ValueError, match="ssdlite320_mobilenet_v3_large has no option 'iou_tresh'; did you mean iou_thresh"
    ):
        ObjectDetector("ssdlite", "ssdlite320_mobilenet_v3_large", num_classes=2, options={"iou_tresh": 0.4})


def test_all_of_torchvisions_detectors_of_boxes_and_masks_are_known() -> None:
    known = {
        it: published_architecture(it) for it in ("maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn", "vgg16")
    }

    assert known == {"maskrcnn_resnet50_fpn_v2": "mask_rcnn", "keypointrcnn_resnet50_fpn": None, "vgg16": None}

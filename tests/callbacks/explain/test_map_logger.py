"""A logger of maps explains the class it is asked for, says what was said and what it is, and draws for detectors, too.

The maps themselves are proved by each method's own test.
"""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from lightning_vision.callbacks import GradCAMLogger, grad_cam
from lightning_vision.callbacks.explain._captions import answers, truth_of
from lightning_vision.callbacks.explain._map_logger import MapLogger
from lightning_vision.callbacks.explain.sheet import contact_sheet, overlay
from lightning_vision.callbacks.hooks._samples import Samples
from lightning_vision.inspection.layers import read_layer
from lightning_vision.inspection.scores import class_scores
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Brightness(MapLogger):
    """The images themselves as maps; notes what it is asked."""

    title = "brightness"

    def __init__(self, **settings):
        super().__init__(**settings)
        self.asked = []

    def explain(self, pl_module, images, class_index):
        self.asked.append(class_index)
        return images[:, 0], pl_module(images)


class Unscored(Plain):
    def validation_step(self, batch, batch_idx):
        return None


def validate(callback, module, loader, **options):
    quiet_trainer(callbacks=[callback], **options).validate(module, loader, verbose=False)


def written(folder):
    (file,) = folder.rglob("*.png")
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("target", ["predicted", "label", 4])
def test_the_class_that_is_asked_for_is_explained_and_both_are_named(target, tmp_path):
    torch.manual_seed(0)
    callback, module, loader = Brightness(target=target, samples=4), Plain(), plain_loader(30)
    loader.dataset.tensors[1].copy_(torch.arange(30) % 4)
    validate(callback, module, loader, default_root_dir=tmp_path)
    images, labels = loader.dataset.tensors
    chosen = [int((labels == label).nonzero()[0]) for label in range(4)]
    sure, said = module.eval()(images[chosen]).softmax(1).max(1)
    shown = Samples(images[chosen], [None]).shown()
    maps = images[chosen, 0].numpy()
    explained = {"predicted": [""] * 4, "label": [f"\nmap of {it}" for it in range(4)], 4: ["\nmap of 4"] * 4}[target]
    words = [f"said {int(said[it])} ({float(sure[it]):.2f})\nis {it}{explained[it]}" for it in range(4)]
    expected = contact_sheet([([shown[it], overlay(shown[it], maps[it])], words[it]) for it in range(4)])
    (asked,) = callback.asked

    assert (asked.tolist() if isinstance(asked, torch.Tensor) else asked) == {
        "predicted": None,
        "label": [0, 1, 2, 3],
        4: 4,
    }[target]
    assert np.array_equal(written(tmp_path), expected)


@pytest.mark.parametrize("target", ["truth", -1, 1.5, True, None])
def test_a_class_that_is_none_is_refused(target):
    with pytest.raises(ValueError) as refusal:
        Brightness(target=target)

    assert str(refusal.value) == (f"Brightness: target is {target!r}; give 'predicted', 'label' or a class >= 0.")


@pytest.mark.parametrize("unknown", [-1, -100])
def test_labels_are_asked_for_where_there_are_none_before_training(unknown):
    loader = plain_loader(12)
    loader.dataset.tensors[1].fill_(unknown)
    trainer = quiet_trainer(callbacks=[Brightness(target="label")], max_epochs=1)
    with pytest.raises(ValueError) as refusal:
        trainer.fit(Unscored(), plain_loader(), loader)

    assert trainer.global_step == 0
    assert str(refusal.value) == (
        "Brightness: target='label' needs a class for each image, and the batch has none; say with target_key= where "
        "they stand, or take target='predicted'."
    )


SAMPLES = Samples(torch.zeros(2, 3, 4, 4), [torch.tensor(1), torch.tensor(0)], ["cat", "dog", "cow"])
MANY = Samples(torch.zeros(2, 3, 4, 4), [torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])], SAMPLES.names)


def test_captions_say_what_was_said_with_its_probability():
    logits = torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]])

    assert answers(logits, SAMPLES) == ["said dog (0.91)", "said cat (0.79)"]
    # With several labels an image each has a probability of its own.
    assert answers(logits, MANY) == ["said dog (0.95)", "said cat (0.88)"]


def test_captions_do_not_depend_on_which_samples_were_drawn_and_the_module_has_the_last_word():
    logits = torch.tensor([[3.0, 3.0, -9.0]])
    one, both = (Samples(torch.zeros(1, 3, 4, 4), [torch.tensor(it)], SAMPLES.names) for it in ([1, 0, 0], [1, 1, 0]))

    assert answers(logits, one) == answers(logits, both) == ["said cat (0.95)"]
    assert answers(logits, both, False) == answers(logits, SAMPLES) == ["said cat (0.50)"]
    assert answers(logits, SAMPLES, True) == ["said cat (0.95)"]


@pytest.mark.parametrize("multilabel", [None, True, False])
def test_a_single_logit_says_one_of_two_classes(multilabel):
    logits = torch.tensor([[-3.0], [0.5]])

    assert answers(logits, SAMPLES, multilabel) == ["said cat (0.95)", "said dog (0.62)"]


def test_captions_say_what_was_detected():
    scores, labels = torch.tensor([0.4, 0.9, 0.2, 0.95]), torch.tensor([3, 1, 1, 2])
    found = [{"scores": scores, "labels": labels}, {"scores": scores[:0], "labels": labels[:0]}]

    assert answers(found, SAMPLES) == ["found dog (0.95), cat x2 (0.90), cow (0.40)", "found nothing"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor(2), "is cow"),
        (torch.tensor(7), "is 7"),
        (torch.tensor(-100), ""),
        (None, ""),
        (torch.tensor([1, 0, 1]), "is cat, cow"),
        ({"labels": torch.tensor([2, 2, 1])}, "holds dog x2, cat"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, "holds nothing"),
    ],
)
def test_captions_say_what_it_is(target, expected):
    assert truth_of(target, SAMPLES) == expected


class Kept(GradCAMLogger):
    """Keeps maps and samples."""

    def draw(self, pl_module, samples):
        self.seen, self.found = samples, []
        return super().draw(pl_module, samples)

    def explain(self, pl_module, images, class_index):
        maps, answer = super().explain(pl_module, images, class_index)
        self.found += [it.clone() for it in maps]
        self.answer = answer
        return maps, answer


@pytest.mark.parametrize("how", ["plain", "frozen", "compiled", "module compiled", "bf16-mixed", "bf16-true"])
def test_maps_are_those_of_the_function_however_the_module_runs(how, compiler):
    torch.manual_seed(0)
    module, callback = Plain(), Kept(layer="network.2", samples=6)
    given = module
    if how == "frozen":
        module.network[:3].requires_grad_(False)
    elif how == "compiled":
        module.network.compile(backend="eager")
    elif how == "module compiled":
        given = torch.compile(module, backend="eager")
    precision = how if how.startswith("bf16") else "32-true"
    options = {"max_epochs": 1, "limit_train_batches": 2, "precision": precision}
    quiet_trainer(callbacks=[callback], **options).fit(given, plain_loader(), plain_loader(24))
    maps = torch.stack(callback.found[-6:])
    expected = grad_cam(module.float(), callback.seen.images.float(), "network.2")

    assert maps.dtype == torch.float32
    assert expected.amax() > 0
    assert (maps - expected).abs().max() <= (0.05 if precision != "32-true" else 1e-6) * expected.amax()


def test_a_network_that_diverged_is_drawn(tmp_path):
    module = Plain()
    nn.init.constant_(module.network[-1].weight, float("nan"))
    validate(GradCAMLogger(layer="network.2"), module, plain_loader(12), default_root_dir=tmp_path)

    assert written(tmp_path).shape[2] == 3


class Pooled(LightningModule):
    """A classifier of images of any size, in batches or in lists."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        if isinstance(images, list):
            return torch.cat([self.logits(it[None]) for it in images])
        return self.logits(images)

    def logits(self, images):
        return self.head(self.features(images).relu().mean((2, 3)))

    def validation_step(self, batch, batch_idx):
        assert self(batch[0]).shape == (2, 3)


@pytest.mark.parametrize("kind", [torch.stack, list])
def test_images_of_several_sizes_are_explained_one_by_one(kind):
    torch.manual_seed(0)
    images = [torch.rand(3, *size) for size in ((24, 32), (24, 32), (40, 24), (40, 24))]
    batches = [(kind(images[at : at + 2]), torch.tensor([at, at + 1])) for at in (0, 2)]
    module, callback = Pooled(), Kept(samples=4, target="label", layer="features")
    batches[1][1][1] = 2
    batches[1][1][0] = 2
    validate(callback, module, DataLoader(batches, batch_size=None))
    expected = [grad_cam(module, it[None], "features", c)[0] for it, c in zip(images, (0, 1, 2, 2), strict=True)]

    assert [tuple(it.shape) for it in callback.found] == [(24, 32), (24, 32), (40, 24), (40, 24)]
    assert all(torch.allclose(own, theirs, atol=1e-7) for own, theirs in zip(callback.found, expected, strict=True))
    assert "forward" not in vars(module)


def test_the_score_of_a_class_is_the_sum_over_its_detections():
    scores = torch.tensor([0.5, 0.25, 0.75, 0.125], requires_grad=True)
    answer = [
        {"scores": scores, "labels": torch.tensor([2, 1, 1, 3])},
        {"scores": scores[:0], "labels": torch.tensor([], dtype=torch.int64)},
    ]
    best, classes = class_scores(answer, None)

    assert (best.tolist(), classes.tolist()) == ([1.0, 0.0], [1, -1])
    assert class_scores(answer, 2)[0].tolist() == [0.5, 0.0]
    assert class_scores(answer, torch.tensor([3, 0]))[0].tolist() == [0.125, 0.0]
    assert torch.autograd.grad(best.sum(), scores)[0].tolist() == [0.0, 1.0, 1.0, 0.0]


class Detector(LightningModule):
    """torchvision's, on batches of lists."""

    def __init__(self, threshold=0.05):
        super().__init__()
        self.model = fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96, box_score_thresh=threshold
        )

    def forward(self, images):
        return self.model(images)

    def validation_step(self, batch, batch_idx):
        assert len(self(batch[0])) == len(batch[0])


def detection_loader():
    generator = torch.Generator().manual_seed(0)
    data = [
        (
            torch.rand(3, height, width, generator=generator),
            {"boxes": torch.tensor([[2.0, 3.0, 40.0, 50.0]]), "labels": torch.tensor([1 + index % 2])},
        )
        for index, (height, width) in enumerate(((64, 96), (70, 60), (64, 64)))
    ]
    return DataLoader(data, batch_size=2, collate_fn=lambda samples: tuple(map(list, zip(*samples, strict=True))))


LAYER = "model.backbone.body.13"


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_a_detector_is_drawn_as_the_sum_of_its_detections_asks(target, tmp_path):
    torch.manual_seed(0)
    module, callback = Detector(), Kept(layer=LAYER, samples=3, target=target)
    validate(callback, module, detection_loader(), default_root_dir=tmp_path)
    own = {}
    handle = module.model.backbone.body["13"].register_forward_hook(lambda *it: own.update(maps=it[2]))
    image, label = callback.seen.images[0], int(callback.seen.targets[0]["labels"][0])
    (found,) = module.eval()([image])
    handle.remove()
    label = label if target == "label" else int(found["labels"][found["scores"].argmax()])
    score = found["scores"][found["labels"] == label].sum()
    gradient = torch.autograd.grad(score, own["maps"])[0]
    cam = (own["maps"] * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    expected = nn.functional.interpolate(cam, image.shape[1:], mode="bilinear")[0, 0].detach()

    assert expected.amax() > 0
    assert (callback.found[0] - expected).abs().max() < 1e-4 * expected.amax()
    assert [tuple(it.shape) for it in callback.found] == [tuple(it.shape[1:]) for it in callback.seen.images]
    assert written(tmp_path).std() > 10


def test_the_map_is_zero_where_nothing_is_detected():
    callback = Kept(layer=LAYER, samples=3)
    validate(callback, Detector(threshold=0.99), detection_loader())

    assert callback.answer[0]["scores"].numel() == 0
    assert len(callback.found) == 3
    assert not any(it.any() for it in callback.found)


def test_a_detector_that_answers_without_gradients_has_maps_of_zeros_where_it_detects_nothing():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 2, 3)

        def forward(self, images):
            self.features(images)
            return [{"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]

    reading = read_layer(Empty(), torch.rand(2, 3, 8, 8), "features")

    assert reading.gradient.shape == (2, 2, 6, 6)
    assert not reading.gradient.any()


def test_a_detector_needs_the_name_of_a_layer():
    with pytest.raises(ValueError) as refusal:
        validate(GradCAMLogger(), Detector(), detection_loader())

    assert str(refusal.value) == (
        "GradCAMLogger: Detector answers a list, as detectors do, which look at maps of many sizes; name the one that "
        "is wanted with layer=, as 'backbone.body.layer4'."
    )


def test_a_layer_that_is_not_there_is_told_with_the_callbacks_name():
    with pytest.raises(ValueError, match=r"^GradCAMLogger: Plain has no layer 'network\.22'; did you mean network\.2"):
        validate(GradCAMLogger(layer="network.22"), Plain(), plain_loader(12))

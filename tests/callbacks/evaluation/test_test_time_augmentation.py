"""Test-time augmentation: its views against torchvision's, its means by hand, where it acts and where it does not."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import functional as vision

from lightning_vision import ImageClassifier
from lightning_vision.callbacks import TestTimeAugmentation
from lightning_vision.callbacks.evaluation.test_time_augmentation import evaluation_views, logit_mean_probability
from lightning_vision.datamodules import Digits
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class AnySize(Plain):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )


class PastForward(Plain):
    """Its steps go past forward."""

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network(batch[0])


class Features(Plain):
    """Its forward returns maps of features."""

    def forward(self, image: Tensor) -> Tensor:
        return self.network[0](image)


class Labels(Plain):
    """Says that an image may have several labels."""

    multilabel = True


class Failing(Plain):
    """Fails in its second test batch."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        if batch_idx == 1:
            raise RuntimeError("the second batch")


def module(kind: type[Plain] = AnySize) -> Plain:
    torch.manual_seed(0)
    return kind().eval()


def predicted(model: Plain, callback: TestTimeAugmentation | None, **options: Any) -> Tensor:
    trainer = quiet_trainer(callbacks=[] if callback is None else [callback], **options)
    return torch.cat(trainer.predict(model, plain_loader(12)))


def images() -> Tensor:
    return torch.cat([image for image, _ in plain_loader(12)])


def test_the_views_are_those_of_torchvision() -> None:
    image = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    cropped = evaluation_views(image, "ten_crop", (5, 6))
    scaled = evaluation_views(image, "five_crop", (5, 6), scale_back=True)

    assert [tuple(view.shape) for view in cropped] == [(2, 3, 5, 6)] * 10
    assert all(torch.equal(*pair) for pair in zip(cropped, vision.ten_crop(image, [5, 6]), strict=True))
    assert torch.equal(cropped[0], image[:, :, :5, :6])
    assert torch.equal(cropped[3], image[:, :, -5:, -6:])
    assert torch.equal(cropped[5], image.flip(3)[:, :, :5, :6])
    assert [tuple(view.shape) for view in scaled] == [(2, 3, 9, 12)] * 5
    assert torch.equal(scaled[1], vision.resize(image[:, :, :5, -6:], [9, 12], antialias=True))
    assert torch.equal(evaluation_views(image, "flip", (1, 1))[1], image.flip(3))


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({}, lambda image: [image, image.flip(3)]),
        ({"views": "five_crop", "crop": 6}, lambda image: vision.five_crop(image, [6, 6])),
        ({"views": "ten_crop", "crop": 0.8}, lambda image: vision.ten_crop(image, [6, 6])),
        (
            {"views": "five_crop", "crop": 6, "resize": True},
            lambda image: [vision.resize(it, [8, 8], antialias=True) for it in vision.five_crop(image, [6, 6])],
        ),
    ],
)
def test_a_prediction_is_the_log_of_the_mean_of_the_views_probabilities(settings: dict[str, Any], views: Any) -> None:
    model = module()
    with torch.no_grad():
        mean = torch.stack([model(view).softmax(1) for view in views(images())]).mean(0)
        logits = torch.stack([model(view) for view in views(images())]).mean(0)
    found = predicted(model, TestTimeAugmentation(**settings))

    assert torch.allclose(found.exp(), mean, atol=1e-6)
    assert not torch.allclose(found.softmax(1), logits.softmax(1), atol=1e-6)
    assert not torch.allclose(found.softmax(1), predicted(model, None).softmax(1), atol=1e-4)


def test_several_labels_are_the_logit_of_the_mean_sigmoid() -> None:
    model = module(Labels)
    with torch.no_grad():
        mean = torch.stack([model(view).sigmoid() for view in (images(), images().flip(3))]).mean(0)

    for probabilities in ("auto", "sigmoid"):
        found = predicted(model, TestTimeAugmentation(probabilities=probabilities))
        assert torch.allclose(found.sigmoid(), mean, atol=1e-6)


def test_the_logit_of_a_mean_by_hand_and_for_huge_logits() -> None:
    """Probabilities 3/4 and 1/4 of the first label, whose mean is a half."""
    logits = torch.tensor([[[math.log(3), 60000.0, 5.0]], [[-math.log(3), 60000.0, 5.0]]])

    assert logit_mean_probability(logits).tolist()[0] == pytest.approx([0.0, 60000.0, 5.0], abs=1e-5)
    assert logit_mean_probability(logits.half()).dtype == torch.float32


def test_a_test_scores_the_mean_and_a_validation_only_if_asked() -> None:
    model = module()
    with torch.no_grad():
        mean = torch.stack([model(view).softmax(1) for view in (images(), images().flip(3))]).mean(0)
    expected = float(F.nll_loss(mean.log(), torch.cat([target for _, target in plain_loader(12)])))
    losses = {}
    for name, callbacks in (
        ("plain", []),
        ("tested", [TestTimeAugmentation()]),
        ("asked", [TestTimeAugmentation(validate=True)]),
    ):
        trainer = quiet_trainer(callbacks=callbacks)
        (tested,) = trainer.test(model, plain_loader(12), verbose=False)
        (validated,) = trainer.validate(model, plain_loader(12), verbose=False)
        losses[name] = tested["test/loss"], validated["val/loss"]

    assert losses["tested"] == pytest.approx((expected, losses["plain"][1]), rel=1e-6)
    assert losses["asked"] == pytest.approx((expected, expected), rel=1e-6)
    assert expected != pytest.approx(losses["plain"][0], rel=1e-5)


def test_training_is_untouched_where_validations_of_the_fit_see_views() -> None:
    weights, losses = [], []
    for callbacks in ([], [TestTimeAugmentation(validate=True)]):
        torch.manual_seed(0)
        model = AnySize()
        trainer = quiet_trainer(callbacks=callbacks, max_epochs=2)
        trainer.fit(model, plain_loader(30), plain_loader(12))
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
        losses.append(float(trainer.callback_metrics["val/loss"]))
        assert "forward" not in vars(model)

    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    assert losses[0] != losses[1]


def test_forward_is_the_modules_own_again_after_an_interruption() -> None:
    model = module(Failing)
    trainer = quiet_trainer(callbacks=[TestTimeAugmentation()])
    with pytest.raises(RuntimeError, match=r"^the second batch$"):
        trainer.test(model, plain_loader(12), verbose=False)

    assert "forward" not in vars(model)


def test_switched_off_it_is_a_plain_run() -> None:
    model = module()

    assert torch.equal(predicted(model, TestTimeAugmentation("none")), predicted(model, None))


def test_under_autocast_the_mean_is_float32() -> None:
    found = predicted(module(), TestTimeAugmentation(), precision="bf16-mixed")

    assert found.dtype == torch.float32
    assert torch.allclose(found.exp().sum(1), torch.ones(12), atol=1e-5)


def test_a_compiled_module_gives_the_same(compiler: None) -> None:
    model = module()
    expected = predicted(model, TestTimeAugmentation())
    compiled: Any = torch.compile(model, backend="eager")
    found = predicted(compiled, TestTimeAugmentation())

    assert torch.allclose(found, expected, atol=1e-6)


def test_the_classifier_tests_and_predicts_by_the_views() -> None:
    torch.manual_seed(0)
    model, data = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1), Digits(batch_size=400)
    trainer = quiet_trainer(callbacks=[TestTimeAugmentation()])
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    (batch,) = trainer.predict(model, datamodule=data)
    image, target = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    with torch.no_grad():
        mean = (model.eval()(image).softmax(1) + model(image.flip(3)).softmax(1)) / 2

    assert torch.allclose(batch["probabilities"], mean, atol=1e-6)
    assert scores["test/acc"] == pytest.approx(float((mean.argmax(1) == target).float().mean()))
    assert scores["test/loss"] == pytest.approx(float(F.nll_loss(mean.log(), target)), rel=1e-5)


def tested_and_predicted(rank: int = 0, world: int = 1) -> tuple[float, Tensor]:
    """The loss and the predictions of 24 images, of which each process sees its share."""
    options: dict[str, Any] = {"devices": world, "strategy": "ddp"} if world > 1 else {}
    trainer = quiet_trainer(callbacks=[TestTimeAugmentation()], use_distributed_sampler=False, **options)
    model, loader = module(), ResumableLoader(labelled_images(24), 6, rank, world)
    (scores,) = trainer.test(model, loader, verbose=False)
    return scores["test/loss"], torch.cat(trainer.predict(model, loader))


def test_two_processes_together_give_what_one_gives(two_ranks: Callable[..., Any]) -> None:
    loss, predictions = tested_and_predicted()
    answers = two_ranks(lambda: tested_and_predicted(dist.get_rank(), 2))

    assert [found for found, _ in answers] == pytest.approx([loss] * 2, abs=1e-6)
    for rank, (_, found) in enumerate(answers):
        torch.testing.assert_close(found, predictions[rank::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"views": "twelve"}, "views is 'twelve'; give one of 'none', 'flip', 'five_crop', 'ten_crop'"),
        ({"probabilities": "both"}, "probabilities is 'both'; give one of 'auto', 'softmax', 'sigmoid'"),
        ({"crop": 1.0}, "crop is 1.0; give a fraction between 0 and 1, or whole pixels from 1 on"),
        ({"crop": 0}, "crop is 0; give a fraction between 0 and 1, or whole pixels from 1 on"),
        ({"crop": True}, "crop is True; give a fraction between 0 and 1, or whole pixels from 1 on"),
        ({"resize": 1}, "resize is 1; give True or False"),
        ({"validate": "yes"}, "validate is 'yes'; give True or False"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^TestTimeAugmentation: {sentence}.$"):
        TestTimeAugmentation(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (
            PastForward,
            {},
            r"predict_step of PastForward did not call the module's forward, so the mean of the views .*",
        ),
        (
            Features,
            {},
            r"the mean of the views averages logits \(B, K\), and forward returned \(6, 4, 3, 3\) torch.flo",
        ),
        (
            Labels,
            {"probabilities": "softmax"},
            "probabilities is 'softmax', and Labels says multilabel=True; give 'sig",
        ),
        (
            AnySize,
            {"views": "five_crop", "crop": 9},
            "crops of 9 pixels do not fit into images of 8x8; give a smaller ",
        ),
    ],
)
def test_what_it_cannot_average_is_refused(kind: type[Plain], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^TestTimeAugmentation: {sentence}"):
        predicted(module(kind), TestTimeAugmentation(**settings))


def test_images_that_are_no_images_are_refused() -> None:
    flat = DataLoader([(torch.zeros(64), 0)] * 2, batch_size=2)

    with pytest.raises(ValueError, match=r"^TestTimeAugmentation: forward's first argument is \(2, 64\) and no images"):
        quiet_trainer(callbacks=[TestTimeAugmentation()]).predict(module(), flat)

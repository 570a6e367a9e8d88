"""A calibration stands between network and probabilities, travels in the checkpoint, and ends where weights change."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.calibration import Calibration
from lightning_vision.datamodules import Digits
from support.compare import seeded
from support.trainers import quiet_trainer

SGD = partial(torch.optim.SGD, lr=0.1)


def small(calibration=None):
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, optimizer=SGD)
    module.calibration = calibration
    return module.eval()


def shifted():
    return Calibration(2.0, torch.linspace(-0.5, 0.5, 64).view(1, 8, 8))


def whole_split(split="test"):
    data = Digits(batch_size=359)
    image, target, _ = next(iter(getattr(data, f"{split}_dataloader")()))
    return data.normalise(image), target


def test_evaluation_is_that_of_shifted_images_and_divided_logits():
    module, (image, target) = seeded(small, shifted()), whole_split()
    (logged,) = quiet_trainer().test(module, datamodule=Digits(batch_size=359), verbose=False)
    (validated,) = quiet_trainer().validate(module, datamodule=Digits(batch_size=359), verbose=False)
    with torch.no_grad():
        plain = F.cross_entropy(module(image), target)
        test = F.cross_entropy(module(image + module.calibration.delta) / 2, target)
        image, target = whole_split("val")
        plain_val = F.cross_entropy(module(image), target)
        val = F.cross_entropy(module(image + module.calibration.delta) / 2, target)

    assert logged["test/loss"] == pytest.approx(float(test), rel=1e-5)
    assert logged["test/loss"] != pytest.approx(float(plain), rel=1e-3)
    assert validated["val/loss"] == pytest.approx(float(val), rel=1e-5)
    assert validated["val/loss"] != pytest.approx(float(plain_val), rel=1e-3)


def test_predictions_of_batches_and_files_are_calibrated():
    module, (image, _) = seeded(small, shifted()), whole_split()
    module.preprocessing = Digits().preprocessing
    with torch.no_grad():
        expected = (module(image[:4] + module.calibration.delta) / 2).softmax(1)
        batch = module.predict_step((image[:4],), 0)["probabilities"]
    data = Digits()
    data.setup()
    for number, pixels in enumerate(data.test_set.images[:4]):
        Image.fromarray(pixels[0].numpy()).save(f"{number}.png")
    files = module.predict([f"{number}.png" for number in range(4)])

    assert torch.equal(batch, expected)
    torch.testing.assert_close(torch.tensor([record["probabilities"] for record in files]), expected)


def test_a_checkpoint_brings_it_back_and_its_weights_have_the_keys_of_a_plain_one():
    module = seeded(small, shifted())
    run = quiet_trainer()
    run.strategy.connect(module)
    run.save_checkpoint("a.ckpt", weights_only=True)
    loaded = ImageClassifier.load_from_checkpoint("a.ckpt", weights_only=True).eval()
    image, _ = whole_split()

    assert module.state_dict().keys() == small().state_dict().keys()
    with torch.no_grad():
        assert torch.equal(loaded.probabilities(image), module.probabilities(image))


def test_weights_of_a_checkpoint_without_one_end_it():
    run, module = quiet_trainer(), small()
    run.strategy.connect(module)
    run.save_checkpoint("plain.ckpt", weights_only=True)
    calibrated = small(shifted())
    quiet_trainer().test(calibrated, datamodule=Digits(), ckpt_path="plain.ckpt", weights_only=True, verbose=False)

    assert calibrated.calibration is None


def test_a_fit_drops_it_with_a_warning():
    module = small(shifted())
    with pytest.warns(UserWarning, match="^the calibration belongs to weights that this fit changes, so it is dropped"):
        quiet_trainer(max_steps=1, max_epochs=-1, limit_val_batches=0).fit(module, datamodule=Digits())

    assert module.calibration is None

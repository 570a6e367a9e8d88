"""Colours are learned as the paper says, lightness is kept exactly, conversions are scikit-image's.

How two optimizers live under Lightning, halved rates among it, is proved in `test_adversarial.py`.
"""

import copy
import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import ReduceLROnPlateau
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from torch.utils.data import DataLoader

from lightning_vision.datamodules import Digits, ImageFolder
from lightning_vision.generation import ColourisationGAN
from lightning_vision.generation.adversarial import gan_discriminator_loss, gan_generator_loss
from lightning_vision.generation.lab import from_lab, to_lab
from lightning_vision.generation.networks.colour_unet import ColourUNet
from support.photos import photo_folder, sample_photo
from support.trainers import quiet_trainer

ADAM = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))


def tiny(size=16, **settings):
    torch.manual_seed(0)
    return ColourisationGAN(image_size=size, **{"channels": 4, "optimizer": ADAM} | settings)


def photographs(size=16):
    """Both of scikit-learn's, `(2, 3, size, size)` in -1..1."""
    return torch.stack([sample_photo(number, size, size) for number in (0, 1)]).float() / 127.5 - 1


def batches(count, size=16):
    return DataLoader([(image,) for image in photographs(size)] * count, batch_size=2)


def fitted(steps=3, **settings):
    model = tiny(**settings)
    quiet_trainer(max_steps=steps).fit(model, batches(steps))
    return model


def scikit_image(function, images):
    return torch.from_numpy(function(images.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)


def test_row_258_the_round_trip_through_lab_is_scikit_images():
    pixels = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    lab = to_lab(pixels)
    far = lab + 60 * torch.randn_like(lab)

    torch.testing.assert_close(lab, scikit_image(rgb2lab, pixels), atol=1e-10, rtol=0)
    torch.testing.assert_close(from_lab(lab), scikit_image(lab2rgb, lab), atol=1e-10, rtol=0)
    torch.testing.assert_close(from_lab(lab), pixels, atol=1e-10, rtol=0)
    torch.testing.assert_close(to_lab(pixels.float()), lab.float(), atol=1e-3, rtol=0)
    assert from_lab(far.clamp(0, 90)).isfinite().all() and 0 <= from_lab(far).min() <= from_lab(far).max() <= 1


def test_lab_is_told_in_float32_within_autocast():
    pixels = torch.rand(1, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = from_lab(to_lab(pixels))

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (20, 30)], ids=["learned", "another"])
def test_row_258_the_output_keeps_lightness_exactly(size):
    model, image = fitted(30), F.interpolate(photographs(), size)
    light = to_lab((image + 1) / 2)[:, :1]
    lab = model.lab(image)
    grey = from_lab(torch.cat([light, torch.zeros_like(lab[:, 1:])], dim=1)) * 2 - 1

    assert torch.equal(lab[:, :1], light)
    assert lab[:, 1:].abs().max() > 5
    if size == (16, 16):
        torch.testing.assert_close(lab[:, 1:], 110 * model.network.generator.eval()(light / 50 - 1))
    # Also in pixels, but for rounding, where no channel was cut.
    pixels = from_lab(lab)
    kept = ((pixels > 0) & (pixels < 1)).all(1, keepdim=True)
    assert kept.float().mean() > 0.5 and (to_lab(pixels)[:, :1] - light)[kept].abs().max() < 1e-2
    # Of the images' own colours nothing is used: up to rounding, a grey copy gets the same ones.
    torch.testing.assert_close(model.lab(grey), lab, atol=2e-2, rtol=0)
    torch.testing.assert_close(model.colourise(image), pixels * 2 - 1)


def regression(steps, weight):
    """A U-Net that minimises L1 alone, in plain torch."""
    network = tiny().network.generator
    optimizer = ADAM(network.parameters())
    lab = to_lab((photographs() * 0.5 + 0.5).clamp(0, 1))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = weight * F.l1_loss(network(lab[:, :1] / 50 - 1), lab[:, 1:] / 110)
        loss.backward()
        optimizer.step()
    return network


def apart(ours, theirs):
    """The largest difference of a parameter."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(float((own - other).abs().max()) for own, other in pairs)


def test_row_258_without_the_adversarial_loss_it_is_l1_regression():
    ours = fitted(adversarial_weight=0.0, lambda_l1=7.0)

    assert apart(ours.network.generator, regression(3, 7.0)) == 0
    assert apart(ours.network.discriminator, tiny().network.discriminator) == 0
    # Adam hides a factor on the loss, but not another loss beside it.
    assert apart(fitted(lambda_l1=7.0).network.generator, regression(3, 7.0)) > 1e-4


def by_hand(steps=3, mutant=""):
    """The paper's loop in plain torch; a `mutant` is wrong in one place."""
    network = tiny().network
    generator, discriminator = network.generator, network.discriminator
    optimizers = [ADAM(part.parameters()) for part in (generator, discriminator)]
    lab = to_lab((photographs() * 0.5 + 0.5).clamp(0, 1))
    light, true = lab[:, :1] / 50 - 1, lab[:, 1:] / 110
    for _ in range(steps):
        made = generator(light)
        told = torch.zeros_like(light) if mutant == "judges colours without lightness" else light
        real, fake = (discriminator(torch.cat([told, it], 1)) for it in (true, made.detach()))
        discriminator.zero_grad()
        gan_discriminator_loss(real, fake, 0.0 if mutant == "smooths nothing" else 0.1).backward()
        critic = copy.deepcopy(discriminator) if mutant == "asks the discriminator of before" else discriminator
        optimizers[1].step()
        distance = F.mse_loss(made, true) if mutant == "squares differences" else F.l1_loss(made, true)
        generator.zero_grad()
        (gan_generator_loss(critic(torch.cat([told, made], 1))) + 100 * distance).backward()
        optimizers[0].step()
    return network


def test_three_steps_are_a_loop_by_hand():
    ours, hand = fitted().network.state_dict(), by_hand().state_dict()

    assert [name for name, value in hand.items() if not torch.equal(ours[name], value)] == []


@pytest.mark.parametrize(
    "mutant",
    [
        "judges colours without lightness",
        "smooths nothing",
        "asks the discriminator of before",
        "squares differences",
    ],
)
def test_a_wrong_loop_is_noticed(mutant):
    assert apart(fitted().network, by_hand(mutant=mutant)) > 1e-5


@pytest.mark.parametrize(
    ("size", "channels", "steps"),
    [pytest.param(32, 8, 120, id="small"), pytest.param(96, 16, 300, id="larger", marks=pytest.mark.slow)],
)
def test_row_258_it_learns_the_colours_of_photographs(size, channels, steps):
    torch.manual_seed(0)
    model = ColourisationGAN(channels=channels, image_size=size, optimizer=ADAM)
    trainer = quiet_trainer(max_steps=steps)
    trainer.fit(model, batches(steps, size))
    (found,) = trainer.validate(model, batches(1, size), verbose=False)
    lab = model.lab(photographs(size))
    cut = (to_lab(from_lab(lab)) - lab)[:, 0].abs()

    assert found["val/l1"] < 0.25 * found["val/grey_l1"]
    assert found["val/psnr"] > 30
    # Few made colours are such that no screen has them, and cutting those moves lightness, 0..100, by little.
    assert cut.mean() < 0.1 and cut.max() < 5


def test_cutting_colours_that_no_screen_has_can_move_lightness_far():
    light = torch.linspace(0, 100, 11)
    lab = torch.cartesian_prod(light, *[torch.tensor([-110.0, 0.0, 110.0])] * 2)[:, :, None, None]
    cut = (to_lab(from_lab(lab)) - lab)[:, 0].abs()

    assert 30 < cut.max() < 40 and cut[lab[:, 1:].abs().sum(1) == 0].max() < 1e-2


def test_validation_measures_what_a_grey_image_would_miss():
    model, image = tiny(), photographs()
    for last in (model.network.generator.end[0].weight, model.network.generator.end[0].bias):
        torch.nn.init.zeros_(last)  # so that nothing gets a colour
    (found,) = quiet_trainer().validate(model, DataLoader(list(photographs()[:, None])), verbose=False)
    pixels = scikit_image(rgb2lab, (image.double() + 1) / 2)
    grey = scikit_image(lab2rgb, torch.cat([pixels[:, :1], torch.zeros_like(pixels[:, 1:])], 1))
    error = (grey - (image.double() + 1) / 2).square().mean()

    assert found["val/l1"] == found["val/grey_l1"] == pytest.approx(float(pixels[:, 1:].abs().mean() / 110), abs=1e-5)
    assert found["val/psnr"] == pytest.approx(float(-10 * error.log10()), abs=1e-3)


def test_a_schedule_can_watch_how_close_pixels_are():
    watch = partial(ReduceLROnPlateau, monitor="val/psnr", mode="max", factor=0.5, patience=0, threshold=1.0)
    model = tiny(lr_scheduler=watch)
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(model, batches(1), batches(1))

    # Decibels of the first validation, which nothing doubles.
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [5e-4] * 2


def test_a_folder_of_photographs_teaches_it_and_files_get_colours(tmp_path):
    data = ImageFolder(photo_folder(tmp_path / "photos", ("cat", "flower"), 6), image_size=16, batch_size=4)
    model = tiny()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    predicted = trainer.predict(model, datamodule=data)[0]
    Image.fromarray(np.tile(np.arange(0, 250, 10, dtype=np.uint8), (12, 1))).save(tmp_path / "grey.png")
    (made,) = model.predict(tmp_path / "grey.png")

    assert predicted["image"].dtype == torch.uint8 and predicted["image"].shape[1:] == (3, 16, 16)
    assert len(predicted["index"]) == len(predicted["image"])
    assert made.shape == (3, 12, 25) and made.float().std(0).max() > 0


def test_it_rebuilds_from_its_checkpoint(tmp_path):
    model = tiny()
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(model, batches(2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = ColourisationGAN.load_from_checkpoint(tmp_path / "last.ckpt")

    assert again.weights == {"adversarial": 1.0, "l1": 100.0}
    assert torch.equal(again.lab(photographs()), model.lab(photographs()))
    assert model.training and again.lab(photographs()).requires_grad is False


def test_colours_depend_on_what_is_far_away():
    torch.manual_seed(0)
    network = ColourUNet((32, 32), channels=16)  # in training, where norms keep numbers from vanishing
    image = torch.randn(1, 1, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(network(image)[0, 0, 3, 3], image)

    assert (slope != 0).all()
    assert network(torch.randn(2, 1, 64, 32)).shape == (2, 2, 64, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_l1": -1.0}, r"^ColourisationGAN: lambda_l1 is -1.0 and adversarial_weight 1.0; give numbers of at"),
        ({"lambda_l1": 0.0, "adversarial_weight": 0.0}, r"^ColourisationGAN: lambda_l1 is 0.0 and adversarial_wei"),
        (
            {"label_smoothing": 1.0},
            r"^ColourisationGAN: label_smoothing is 1.0 and channels 4; give a number from 0 to",
        ),
        ({"channels": 0}, r"^ColourisationGAN: label_smoothing is 0.1 and channels 0; give a number from 0 to"),
        ({"size": 15}, r"^images of 15 x 15 pixels can be halved 0 times, and 1 halvings are wanted; give sides that"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_data_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^ColourisationGAN has in_channels=3 but Digits has in_channels=1; make them agree$"
    ):
        quiet_trainer(max_steps=1).fit(tiny(8), datamodule=Digits())
    data = ImageFolder(photo_folder(tmp_path / "photos", ("cat",), 4), image_size=32)
    with pytest.raises(ValueError, match=r"^ColourisationGAN has image_size=\(16, 16\) but ImageFolder has \(32, 32\)"):
        quiet_trainer(max_steps=1).fit(tiny(), datamodule=data)


def test_without_kornia_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match=r'^ColourisationGAN needs kornia; pip install "lightning_vision\[c'):
        tiny()

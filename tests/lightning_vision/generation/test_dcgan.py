"""DCGAN's step is the paper's, its networks fit any size that can be halved, its images follow from their numbers.

How two optimizers live under Lightning is proved in `test_adversarial.py`.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from lightning_vision.base.draws import seeded
from lightning_vision.datamodules import Digits
from lightning_vision.generation import DCGAN
from lightning_vision.generation.adversarial import gan_discriminator_loss, gan_generator_loss
from lightning_vision.generation.draws import Draws
from lightning_vision.generation.networks.dcgan import DCGANDiscriminator, DCGANGenerator, halvings, normal_weights
from support.data import ResumableLoader, labelled_images
from support.trainers import quiet_trainer


def tiny(**settings):
    torch.manual_seed(0)
    given = {"latent_dim": 4, "channels": 4, "num_classes": 10, "in_channels": 1, "image_size": 8} | settings
    return DCGAN(label_smoothing=0.2, **given)


def images():
    return ResumableLoader(labelled_images(48), 6)


def fitted(steps=3, **options):
    model = tiny()
    quiet_trainer(max_steps=steps, **options).fit(model, images())
    return model.state_dict()


def by_hand(steps=3, dtype=None, mutant=""):
    """Radford et al.'s loop in plain torch; a `mutant` is wrong in one place."""
    network = tiny().network
    generator, discriminator = network.generator, network.discriminator
    optimizers = [torch.optim.Adam(it.parameters(), lr=2e-4, betas=(0.5, 0.999)) for it in (generator, discriminator)]
    passes = partial(torch.autocast, "cpu", enabled=dtype is not None, dtype=dtype, cache_enabled=False)
    for number, (image, label) in zip(range(steps), images(), strict=False):
        random = seeded(0, 0, 1, number)
        with passes():
            made = generator(torch.randn(6, 4, generator=random), label)
            real, fake = (discriminator(it, label).float() for it in (image, made.detach()))
        loss = gan_discriminator_loss(real, fake, 0.2)
        if mutant == "smooths targets of made images":
            loss = cross_entropy(real, torch.full_like(real, 0.8)) + cross_entropy(fake, torch.full_like(fake, 0.2))
        if mutant != "keeps gradients of the generator's step":
            discriminator.zero_grad()
        loss.backward()
        critic = copy.deepcopy(discriminator) if mutant == "asks the discriminator of before" else discriminator
        optimizers[1].step()
        if mutant == "makes other images for the generator":
            made = generator(torch.randn(6, 4, generator=random), label)
        with passes():
            deceived = critic(made, label).float()
        loss = gan_generator_loss(deceived)
        if mutant == "saturates":
            loss = -cross_entropy(deceived, torch.zeros_like(deceived))
        generator.zero_grad()
        loss.backward()
        optimizers[0].step()
    return {f"network.{name}": value for name, value in network.state_dict().items()}


def difference(ours, theirs, ending=""):
    return max(float((ours[name] - value).abs().max()) for name, value in theirs.items() if name.endswith(ending))


def test_three_steps_are_a_loop_by_hand():
    assert difference(fitted(), by_hand()) == 0


def test_in_bfloat16_the_losses_are_told_in_float32():
    assert difference(fitted(precision="bf16-mixed"), by_hand(dtype=torch.bfloat16)) == 0


@pytest.mark.parametrize(
    "mutant",
    [
        "smooths targets of made images",
        "keeps gradients of the generator's step",
        "asks the discriminator of before",
        "makes other images for the generator",
        "saturates",
    ],
)
def test_a_wrong_loop_is_noticed(mutant):
    assert difference(fitted(), by_hand(mutant=mutant), "weight") > 1e-5


def test_the_label_reaches_both_networks():
    model, latent, labels = tiny(), torch.randn(2, 4), torch.tensor([3, 3])
    network = model.network.eval()
    nn.init.normal_(network.discriminator.label.weight)
    made = network.generator(latent, labels)
    others = labels + 1

    assert (made - network.generator(latent, others)).abs().max() > 1e-4
    assert (network.discriminator(made, labels) - network.discriminator(made, others)).abs().min() > 1e-4
    unread = tiny(conditional=False)
    assert unread.num_classes == 0 and unread.sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (28, 28), (12, 20)], ids=str)
def test_networks_fit_any_size_that_can_be_halved(size):
    generator, discriminator = DCGANGenerator(size, 3, 5, channels=2), DCGANDiscriminator(size, 3, channels=2)
    made = generator(torch.randn(2, 5))

    assert made.shape == (2, 3, *size) and made.abs().max() <= 1
    assert discriminator(made).shape == (2,)


def test_channels_are_the_papers_at_64_pixels():
    layers = [it for it in DCGANGenerator((64, 64), channels=128).layers if isinstance(it, nn.ConvTranspose2d)]

    assert [it.in_channels for it in layers] == [100, 1024, 512, 256, 128]
    assert [it.stride for it in layers] == [(1, 1)] + [(2, 2)] * 4


def test_weights_begin_as_the_papers():
    network = DCGANDiscriminator((32, 32), channels=32, num_classes=4)
    weights = torch.cat([it.weight.flatten() for it in network.modules() if isinstance(it, nn.Conv2d | nn.Linear)])
    scales = torch.cat([it.weight for it in network.modules() if isinstance(it, nn.BatchNorm2d)])
    biases = [value for name, value in network.named_parameters() if name.endswith("bias")]

    # Four standard errors of mean and deviation.
    assert abs(weights.mean()) < 4 * 0.02 / len(weights) ** 0.5
    assert abs(weights.std() - 0.02) < 4 * 0.02 / (2 * len(weights)) ** 0.5
    assert abs(scales.mean() - 1) < 4 * 0.02 / len(scales) ** 0.5 and 0.01 < scales.std() < 0.03
    assert not torch.cat([it.flatten() for it in biases]).any()


def test_other_deviations_can_be_asked_for():
    layer = nn.Linear(100, 100)
    normal_weights(layer, deviation=3.0)

    assert 2.9 < layer.weight.std() < 3.1


def test_an_image_follows_from_its_number():
    model = tiny()
    quiet_trainer(max_steps=2).fit(model, images())
    ten = model.sample(10, seed=5)

    torch.testing.assert_close(model.sample(6, seed=5, first=4), ten[4:])
    assert (model.sample(2, seed=6) - ten[:2]).abs().max() > 1e-4
    # Trained on: made in evaluation, whoever stands beside it.
    assert model.training is False or model.train().sample(1, seed=5).equal(ten[:1])


def test_black_and_white_of_the_data_are_the_generators_limits():
    model, digits = tiny(), Digits(batch_size=1258)
    quiet_trainer(max_steps=1).fit(model, datamodule=digits)
    batch = digits.on_after_batch_transfer(next(iter(digits.train_dataloader())), 0)
    real = model.forge(batch, 0).real
    with torch.no_grad():
        model.network.generator.layers[-2].bias.fill_(50.0)

    torch.testing.assert_close(torch.stack([real.min(), real.max()]), torch.tensor([-1.0, 1.0]))
    assert (model.pixels(model.sample(2)) == 255).all()


def test_the_validation_draws_the_same_noise_each_time():
    model = tiny()
    trainer = quiet_trainer()
    found = [trainer.validate(model, images(), verbose=False)[0] for _ in range(2)]

    assert found[0] == found[1] and found[0].keys() == {"val/loss", "val/discriminator"}


def test_it_rebuilds_from_its_checkpoint(tmp_path):
    model = tiny()
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(model, images())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DCGAN.load_from_checkpoint(tmp_path / "last.ckpt")

    assert [optimizer.defaults["betas"] for optimizer in again.configure_optimizers()] == [(0.5, 0.999)] * 2
    assert torch.equal(again.sample(2), model.sample(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 0}, r"^DCGAN: latent_dim is 0 and channels 4; give at least 1 of each$"),
        ({"image_size": 9}, r"^images of 9 x 9 pixels can be halved 0 times, and 1 halvings are wanted; give sides"),
        ({"levels": 4}, r"^images of 8 x 8 pixels can be halved 3 times, and 4 halvings are wanted; give sides"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)
    with pytest.raises(ValueError, match=r"^DCGAN: label_smoothing is 1; give a number from 0 to below 1$"):
        DCGAN(label_smoothing=1)


def test_settings_of_other_methods_are_refused():
    with pytest.raises(ValueError, match=r"^DCGAN makes images in one pass, without steps; leave that out$"):
        tiny().sample(1, steps=5)


def test_halvings_leave_four_pixels():
    assert [halvings((side, side), None) for side in (6, 8, 24, 64, 256)] == [1, 1, 2, 4, 6]
    assert halvings((256, 256), None, smallest=2) == 7


def test_made_images_take_the_models_precision():
    model = tiny().bfloat16()

    assert model.make(Draws(0, [0]), torch.tensor([1])).dtype == torch.bfloat16

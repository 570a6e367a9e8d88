"""VAEs: balances that agree with one another, a loop by hand, gamma on ranks and in replays, two stages, resumption.

Divergence and gamma alone are proved in `test_losses.py`, encoders and decoders in `test_autoencoder.py`.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch.distributions import Normal, kl_divergence

from lightning_vision.base.draws import seeded
from lightning_vision.callbacks import EMA, SAM, ExactResume
from lightning_vision.datamodules import Digits
from lightning_vision.generation import VAE, ActiveUnits, BalancedGamma, DiffusionModel
from lightning_vision.generation.losses import latent
from lightning_vision.generation.losses.ms_ssim import ms_ssim_l1_loss, ms_ssim_loss
from support.data import ResumableLoader, labelled_images
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

SGD = partial(torch.optim.SGD, lr=0.1)


def tiny(**settings):
    """Always of the same first weights; gamma^2 starts at 9, above the error of images that are not normalised."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 3, "channels": 4, "multiples": (1, 2), "second_dim": 8, "in_channels": 1, "image_size": 8}
    return VAE(**{"optimizer": SGD, "gamma_init": 3.0} | sizes | settings)


def images():
    """Eight batches of six an epoch."""
    return ResumableLoader(labelled_images(48), 6)


def batch(count=6):
    torch.manual_seed(3)
    return torch.randn(count, 1, 8, 8)


def terms(vae, image):
    return vae.losses(image, None, seeded(1))


def slopes(vae, image, factor=1.0):
    parameters = [it for it in vae.parameters() if it.requires_grad]
    return [factor * it for it in torch.autograd.grad(terms(vae, image)["loss"], parameters)]


@pytest.mark.parametrize("squared", [0.5, 0.1])
def test_row_241_a_fixed_gamma_is_a_beta(squared):
    """gamma^2 of a half is beta 1; any other is beta 2 gamma^2, with a loss 2 gamma^2 times as large."""
    fixed = tiny(gamma_init=squared**0.5, gamma_decay=1.0)
    own = slopes(fixed, batch(), 2 * squared)
    fixed.gamma.follow()  # which a decay of 1 makes nothing of

    torch.testing.assert_close(slopes(fixed, batch(), 2 * squared), own)
    torch.testing.assert_close(slopes(tiny(balance="beta", beta=2 * squared), batch()), own)
    mutant = slopes(tiny(balance="beta", beta=4 * squared), batch())
    assert max((a - b).abs().max() for a, b in zip(mutant, own, strict=True)) > 1e-3


def test_row_241_the_loss_of_gamma_of_a_half_is_that_of_beta_1_and_the_logarithm():
    fixed, plain = tiny(gamma_init=0.5**0.5), tiny(balance="beta", beta=1.0)

    loss = terms(fixed, batch())["loss"] - fixed.gamma.squared.sqrt().log()
    torch.testing.assert_close(loss, terms(plain, batch())["loss"])


def test_row_241_the_computed_gamma_is_where_a_learned_one_would_stand():
    vae = tiny()
    error = terms(vae, batch())["reconstruction"].detach()

    def slope(squared):
        vae.gamma.squared = squared.clone().requires_grad_()
        return torch.autograd.grad(terms(vae, batch())["loss"], vae.gamma.squared)[0]

    assert slope(error).item() == pytest.approx(0, abs=1e-5)
    assert slope(0.8 * error) < -0.05 and slope(1.25 * error) > 0.05


def test_row_241_the_divergence_is_torchs():
    vae = tiny()
    mean, log_variance = vae.encode(batch())
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()

    torch.testing.assert_close(terms(vae, batch())["kl"], theirs)


def test_row_241_gamma_never_rises_and_falls_with_the_error():
    seen = []

    class Watched(BalancedGamma):
        def follow(self):
            super().follow()
            seen.append(float(self.squared))

    vae = tiny()
    vae.gamma = Watched(3.0, 0.5)
    quiet_trainer(max_epochs=3).fit(vae, images())

    assert len(seen) == 24 and seen == sorted(seen, reverse=True) and seen[-1] < 4


def measured(epochs, **settings):
    """Mean squared error of digits that were not trained on."""
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=4e-3)
    sizes = {"latent_dim": 16, "channels": 8, "multiples": (1, 2), "in_channels": 1, "image_size": 8}
    vae, data = VAE(optimizer=optimizer, **sizes, **settings), Digits(batch_size=64)
    trainer = quiet_trainer(max_epochs=epochs, limit_val_batches=0)
    trainer.fit(vae, datamodule=data)
    return trainer.test(vae, datamodule=data, verbose=False)[0]["test/reconstruction"]


def test_row_241_on_digits_it_tells_more_than_gamma_of_1_soon():
    assert measured(3) < 0.97 * measured(3, gamma_decay=1.0)


@pytest.mark.slow
def test_row_241_on_digits_it_tells_more_than_gamma_of_1():
    """0.08 and 0.24 when last seen."""
    assert measured(30) < 0.6 * measured(30, gamma_decay=1.0)


def by_hand(steps, early=False, deviation=0.5, share=1.0):
    """Equations 3 and 5 of the paper; mutants: gamma moves before the loss, noise is too large, KL is a mean."""
    vae, squared, found = tiny(), torch.tensor(9.0), []
    optimizer = torch.optim.SGD(vae.parameters(), 0.1)
    for number, (image, _) in zip(range(steps), images(), strict=False):
        mean, log_variance = vae.encode(image)
        noise = torch.randn(mean.shape, generator=seeded(0, 0, 1, number))
        answer = vae.decode(mean + (deviation * log_variance).exp() * noise)
        error = (answer - image).square().flatten(1).mean(1)
        divergence = share * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1) / 2
        if early:
            squared = torch.minimum(squared, 0.99 * squared + 0.01 * error.mean().detach())
        loss = error.mean() / (2 * squared) + divergence.mean() / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not early:
            squared = torch.minimum(squared, squared.lerp(error.mean().detach(), 1 - 0.99))
        found = [*vae.network.state_dict().values(), squared]
    return found


def trained(steps, **options):
    vae = tiny()
    quiet_trainer(max_steps=steps, **options).fit(vae, images())
    return [*vae.network.state_dict().values(), vae.gamma.squared]


def apart(ours, theirs):
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def test_three_steps_are_those_of_a_loop_by_hand():
    assert apart(trained(3), by_hand(3)) == 0


@pytest.mark.parametrize("wrong", [{"early": True}, {"deviation": 1.0}, {"share": 1 / 3}])
def test_a_wrong_loop_is_noticed(wrong):
    assert apart(trained(3), by_hand(3, **wrong)) > 1e-6


def test_gamma_follows_once_a_step_and_replays_do_not_count():
    """At a learning rate of 0 the errors of a window are those of its images, however often they are computed."""
    options = {"max_steps": 2, "accumulate_grad_batches": 2}
    found = []
    for callbacks in ([], [SAM(rho=0.5)]):
        vae = tiny(gamma_decay=0.5, optimizer=partial(torch.optim.SGD, lr=0.0))
        quiet_trainer(callbacks=callbacks, **options).fit(vae, images())
        found.append(vae.gamma.squared)
    windows = [
        [
            terms_of(number, image)["reconstruction"]
            for number, (image, _) in list(enumerate(images()))[start : start + 2]
        ]
        for start in (0, 2)
    ]
    gamma = BalancedGamma(3.0, 0.5)
    for window in windows:
        gamma.update(torch.stack(window).mean())

    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], gamma.squared)


def terms_of(number, image):
    return tiny().losses(image, None, seeded(0, 0, 1, number))


def test_neither_validation_nor_passes_without_gradients_move_gamma():
    vae = tiny()
    trainer = quiet_trainer(max_steps=2)
    trainer.validate(vae, images(), verbose=False)
    vae.train()
    with torch.no_grad():
        terms(vae, batch())
    vae.gamma.follow()

    assert vae.gamma.squared == 9
    vae.losses(0.1 * batch(), None, seeded(1))
    vae.gamma.follow()
    assert vae.gamma.squared < 9


def test_what_an_aborted_fit_collected_does_not_count():
    vae, other = tiny(), tiny()
    terms(vae, 0 * batch())
    for it in (vae, other):
        quiet_trainer(max_steps=1).fit(it, images())

    assert torch.equal(vae.gamma.squared, other.gamma.squared)


def followed(rows, gather=True):
    """gamma^2 after one batch of errors, of which each rank has its rows."""
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_initialized() else None
    errors = torch.arange(8.0) / 10
    own = errors if rank is None else errors.split(rows)[rank]
    gamma = BalancedGamma(1.0, 0.5)
    if not gather:
        latent.mean_of_all, kept = torch.mean, latent.mean_of_all
    gamma.collect(0, own)
    gamma.follow()
    if not gather:
        latent.mean_of_all = kept
    return gamma.squared


def test_ranks_with_unequal_rows_keep_the_gamma_of_one_process(two_ranks):
    expected = followed((5, 3))

    assert [float(it) for it in two_ranks(followed, (5, 3))] == pytest.approx([float(expected)] * 2)
    # The mutant looks at its own process's errors.
    assert min(abs(it - expected) for it in two_ranks(followed, (5, 3), False)) > 0.01


def fitted():
    vae = tiny(two_stage=True, gamma_decay=0.5)
    data = ResumableLoader(labelled_images(48), 6)
    quiet_trainer(max_epochs=1, limit_train_batches=3, strategy="ddp", devices=2).fit(vae, data)
    return dict(vae.state_dict())


def test_two_processes_end_with_equal_networks_and_gammas(two_ranks):
    own, other = two_ranks(fitted)

    assert {"gamma.squared", "second_gamma.squared"} < own.keys()
    assert [name for name in own if not torch.equal(own[name], other[name])] == []
    assert own["gamma.squared"] < 9


def test_a_resumed_run_is_the_straight_one(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def go(name, **how):
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=5)
        loaders = lambda: (images(), images())  # noqa: E731
        vae = tiny(two_stage=True)
        return record(vae, loaders, [ExactResume(), writer], max_epochs=2, default_root_dir=tmp_path, **how)

    straight, killed = go("straight"), go("killed", kill_at=12)
    assert differences(straight, killed, go("killed", ckpt_path=newest(tmp_path / "killed"))) == []
    assert straight.state["weights"]["gamma.squared"] < 9


def test_it_rebuilds_from_its_checkpoint(tmp_path):
    vae = tiny(two_stage=True, gamma_decay=0.5)
    trainer = quiet_trainer(max_steps=3)
    trainer.fit(vae, images())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = VAE.load_from_checkpoint(tmp_path / "last.ckpt")

    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["latent_dim"] == 3
    assert again.gamma.decay == 0.5 and again.gamma.squared == vae.gamma.squared < 9
    assert torch.equal(again.sample(3), vae.sample(3))
    assert torch.equal(again.eval().reconstruct(batch()), vae.eval().reconstruct(batch()))


@pytest.mark.parametrize("settings", [{}, {"two_stage": True}, {"latent_dim": None, "latent_channels": 2}])
def test_an_image_is_a_function_of_seed_and_number(settings):
    vae = tiny(**settings)
    torch.nn.init.normal_(vae.network.first.decoder[-1].weight)
    found = vae.sample(5)

    torch.testing.assert_close(torch.cat([vae.sample(2), vae.sample(3, first=2)]), found)
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert (vae.sample(5, seed=1) - found).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"^VAE was trained without labels; leave label out$"):
        vae.sample(2, label=1)


def test_the_second_stage_makes_codes_with_the_noise_of_its_gamma_and_leaves_the_first_alone():
    one, two = tiny(), tiny(two_stage=True)
    first, second = terms(one, batch()), terms(two, batch())

    assert all(torch.equal(first[name], second[name]) for name in ("reconstruction", "kl", "gamma"))
    torch.testing.assert_close(second["loss"], first["loss"] + second["second_loss"])
    own = torch.autograd.grad(second["second_loss"], list(two.network.parameters()), allow_unused=True)
    moved = {name for (name, _), it in zip(two.network.named_parameters(), own, strict=True) if it is not None}
    assert moved == {name for name, _ in two.network.named_parameters() if name.startswith("second.")}
    before = two.sample(3)
    two.second_gamma.squared.fill_(4.0)
    assert (two.sample(3) - before).abs().max() > 1e-3


def pixels(image, vae):
    mean, std = vae.statistics()
    return image * std[0] + mean[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ms_ssim_looks_at_pixels_and_a_share_of_the_absolute_difference_is_mixed_in(share):
    vae = tiny(balance="beta", beta=0.0, reconstruction="ms_ssim", ssim_sigma=0.5, l1_share=share)
    vae.preprocessing = {"mean": [0.3], "std": [0.2]}
    found = terms(vae, batch())
    torch.nn.init.zeros_(vae.network.first.from_code[0].weight)  # so that the answer is that of any code
    vae.network.first.from_code[0].bias.data.fill_(0.1)
    found = terms(vae, batch())
    ours = [pixels(it, vae) for it in (batch(), vae.reconstruct(batch()))]

    expected = (1 - share) * ms_ssim_loss(*ours, sigma=0.5) + share * F.l1_loss(*ours)
    torch.testing.assert_close(found["reconstruction"], expected)
    assert found["loss"] == found["reconstruction"]


def test_the_mix_knows_its_range_and_stays_exact_under_autocast():
    first, second = torch.rand(2, 2, 1, 32, 32, generator=seeded(0)).unbind()
    loss = ms_ssim_l1_loss(first, second, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = ms_ssim_l1_loss(first, second, 0.4)

    torch.testing.assert_close(ms_ssim_l1_loss(3 * first, 3 * second, 0.4, data_range=3.0), loss)
    assert torch.equal(narrow, loss)


def crops(count, columns, side, random):
    """Of these columns of scikit-learn's two photographs, halved and normalised, in turns."""
    photos = torch.stack([torch.from_numpy(it.copy()).permute(2, 0, 1) for it in load_sample_images().images])
    photos = F.avg_pool2d(photos.float() / 127.5 - 1, 2)[..., columns]
    places = torch.rand(count, 2, generator=random) * (torch.tensor(photos.shape[2:]) - side)
    corners = enumerate(places.long().tolist())
    return torch.stack([photos[number % 2, :, y : y + side, x : x + side] for number, (y, x) in corners])


def alike(steps, side, batch_size, **settings):
    """MS-SSIM of crops of the right of the photographs and what is made of them after training on the left."""
    torch.manual_seed(0)
    vae = VAE("beta", beta=0.0, image_size=side, latent_dim=None, ssim_sigma=1.0, **settings)
    optimizer = torch.optim.AdamW(vae.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    train, test = crops(steps * batch_size, slice(200), side, seeded(0)), crops(64, slice(200, None), side, seeded(1))
    for step, image in enumerate(train.split(batch_size)):
        optimizer.zero_grad()
        vae.losses(image, None, seeded(1, step))["loss"].backward()
        optimizer.step()
        schedule.step()
    return 1 - ms_ssim_loss((test + 1) / 2, (vae.eval().reconstruct(test) + 1) / 2, sigma=1.0).item()


def test_row_73_on_photographs_it_ends_more_alike_than_the_twin_of_squared_errors_soon():
    small = {"steps": 40, "side": 20, "batch_size": 8, "channels": 8}

    assert alike(**small, reconstruction="ms_ssim") > alike(**small) + 0.05


@pytest.mark.slow
def test_row_73_on_photographs_it_ends_more_alike_than_the_twin_of_squared_errors():
    """0.77 and 0.65 when last seen."""
    large = {"steps": 150, "side": 24, "batch_size": 16, "channels": 16}

    assert alike(**large, reconstruction="ms_ssim") > alike(**large) + 0.06


def test_active_units_vary_over_the_images_of_all_batches():
    torch.manual_seed(0)
    means = torch.randn(50, 2, 3) * torch.tensor([[1.0, 0.2, 0.05], [0.0, 0.5, 0.08]]) + 2
    metric, each = ActiveUnits((2, 3)), []
    for part in means.split([20, 1, 29]):
        metric.update(part)
        each.append((part.var(0, correction=0) > 0.01).sum())
    expected = (means.var(0, correction=0) > 0.01).sum()

    assert metric.compute() == expected == 3
    assert torch.stack(each).float().mean() != expected


def test_validation_tells_how_many_numbers_of_the_code_are_active():
    vae = tiny(latent_dim=4)
    head = vae.network.first.to_code[1]
    with torch.no_grad():
        head.weight[2:4] = 0  # the last two means are those of all images
        head.weight[:2] *= 10
    trainer = quiet_trainer(max_epochs=1)
    trainer.validate(vae, images(), verbose=False)
    (metrics,) = trainer.test(vae, images(), verbose=False)

    assert metrics["test/active_units"] == trainer.callback_metrics["test/active_units"] == 2
    assert {"test/loss", "test/reconstruction", "test/kl", "test/gamma"} <= metrics.keys()


def test_in_half_precision_gamma_stays_exact():
    vae = tiny(two_stage=True, gamma_decay=0.999)
    quiet_trainer(max_steps=3, precision="bf16-true").fit(vae, images())

    assert next(vae.network.parameters()).dtype == torch.bfloat16 and vae.gamma.squared.dtype == torch.float32
    assert 8.9 < vae.gamma.squared < 9
    assert all(value.isfinite().all() for value in vae.state_dict().values())
    assert vae.sample(2).dtype == torch.float32
    assert vae.encode(batch().bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": "sum"}, r"^VAE: balance is 'sum'; give 'gamma' or 'beta'$"),
        ({"reconstruction": "l2"}, r"^VAE: reconstruction is 'l2'; give 'mse' or 'ms_ssim'$"),
        ({"beta": -1.0}, r"^VAE: beta is -1.0; give a number of at least 0$"),
        ({"l1_share": 2.0}, r"^VAE: l1_share is 2.0; give the share of the absolute difference, 0 to 1$"),
        (
            {"reconstruction": "ms_ssim"},
            r"^VAE: a gamma is computed of squared errors; with 'ms_ssim' give balance='beta'$",
        ),
        (
            {"two_stage": True, "latent_dim": None},
            r"^VAE: two_stage needs flat codes; give latent_dim, or diffusion for maps$",
        ),
        ({"ssim_sigma": 0.0}, r"^VAE: ssim_sigma is 0.0; give a number of pixels above 0$"),
        (
            {"reconstruction": "ms_ssim", "balance": "beta"},
            r"^VAE: windows of ssim_sigma=1.5 do not fit into 8 pixels; lower it$",
        ),
        ({"gamma_init": 0.0}, r"^BalancedGamma: start is 0.0; give a number above 0$"),
        ({"image_size": 9}, r"^images of 9 x 9 pixels cannot be halved to a 2th; give sides that are multiples of 2"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_a_diffusion_model_works_in_the_codes_of_its_checkpoint(tmp_path):
    vae = tiny(latent_dim=None, latent_channels=2)
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(vae, images())
    trainer.save_checkpoint(tmp_path / "vae.ckpt")
    network = {"channels": 8, "multiples": (1, 2), "blocks": 1, "head_dim": 8}
    sizes = {"in_channels": 1, "image_size": 8, "conditional": False, "optimizer": SGD}
    model = DiffusionModel(latent_vae=str(tmp_path / "vae.ckpt"), network_settings=network, **sizes)
    before = {name: it.clone() for name, it in model.latent.vae.state_dict().items()}
    quiet_trainer(max_steps=2).fit(model, images())

    assert model.code_shape == vae.code_shape == (2, 4, 4) and model.sample(2, steps=2).shape == (2, 1, 8, 8)
    assert all(torch.equal(it, before[name]) for name, it in model.latent.vae.state_dict().items())
    assert torch.equal(before["gamma.squared"], vae.gamma.squared)


def test_what_an_average_keeps_of_gamma_is_an_average_too(tmp_path):
    vae = tiny(gamma_decay=0.5)
    trainer = quiet_trainer(max_steps=3, callbacks=[EMA(decay=0.5)])
    trainer.fit(vae, images())
    plain = tiny(gamma_decay=0.5)
    quiet_trainer(max_steps=3).fit(plain, images())

    assert plain.gamma.squared < vae.gamma.squared < 9

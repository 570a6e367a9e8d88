"""Losses of reconstructions and codes: their identities, and the libraries that have the same."""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch.distributions import Normal, kl_divergence
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from lightning_vision.generation.losses.latent import BalancedGamma, kl_to_standard
from lightning_vision.generation.losses.ms_ssim import BETAS, ms_ssim_loss


def photographs(side=192):
    images = torch.stack([torch.from_numpy(it.copy()).permute(2, 0, 1) for it in load_sample_images().images])
    return images[:, :, :side, :side].double() / 255


def test_row_73_of_equal_images_loss_and_gradient_are_nought():
    image = photographs().requires_grad_()
    loss = ms_ssim_loss(image, photographs())
    (slope,) = torch.autograd.grad(loss, image)

    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert slope.abs().max() < 1e-6


def test_row_73_on_photographs_it_is_torchmetrics_and_symmetric():
    first = photographs()
    second = (
        first + 0.1 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).clamp(0, 1)
    theirs = 1 - multiscale_structural_similarity_index_measure(first, second, data_range=1.0, normalize="relu")

    torch.testing.assert_close(ms_ssim_loss(first, second), theirs)
    torch.testing.assert_close(ms_ssim_loss(second, first), theirs)
    # With another range, or fewer scales, it is another number.
    assert (ms_ssim_loss(first, second, data_range=2.0) - theirs).abs() > 1e-3
    assert (ms_ssim_loss(first[..., :64, :64], second[..., :64, :64]) - theirs).abs() > 1e-3


def test_row_73_its_gradient_is_right_also_on_few_pixels():
    torch.manual_seed(0)
    pair = [torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    assert torch.autograd.gradcheck(lambda *images: ms_ssim_loss(*images, sigma=0.5), pair)


def test_row_73_fewer_scales_have_weights_of_one_in_all():
    """An image that differs by its luminance alone: that of the last scale, raised to its share."""
    first, second = torch.full((1, 1, 32, 32), 0.3), torch.full((1, 1, 32, 32), 0.6)
    luminance = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)

    assert ms_ssim_loss(first, second).item() == pytest.approx(
        1 - luminance ** (BETAS[1] / (BETAS[0] + BETAS[1])), rel=1e-3
    )


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="windows of 11 pixels and the image's side is 8; lower sigma"):
        ms_ssim_loss(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))


def test_row_241_the_divergence_is_torchs():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2))

    torch.testing.assert_close(kl_to_standard(mean, log_variance), theirs)
    assert not kl_to_standard(torch.zeros(2, 3), torch.zeros(2, 3)).any()


def test_row_241_gamma_at_the_error_is_where_the_learned_one_would_stand():
    error = torch.tensor(0.07, dtype=torch.float64)
    gamma = error.sqrt().requires_grad_()
    (slope,) = torch.autograd.grad(gamma.log() + error / (2 * gamma.square()), gamma)
    other = (0.9 * error.sqrt()).detach().requires_grad_()
    (elsewhere,) = torch.autograd.grad(other.log() + error / (2 * other.square()), other)

    assert slope.item() == pytest.approx(0, abs=1e-9) and abs(elsewhere) > 0.1


def test_row_241_gamma_never_rises_and_follows_falling_errors():
    gamma, seen = BalancedGamma(start=1.0, decay=0.5), []
    for error in (0.5, 2.0, 0.1, 0.4):
        gamma.update(torch.tensor(error))
        seen.append(float(gamma.squared))

    assert seen == pytest.approx([0.75, 0.75, 0.425, 0.4125])


def test_row_241_a_fixed_gamma_is_a_beta():
    """gamma^2 of a half is the plain loss with beta 1; of gamma^2 the loss is that with beta 2 gamma^2, over it."""
    error, divergence = torch.tensor(0.3), torch.tensor([2.0, 4.0])
    for squared in (0.5, 0.1):
        gamma = BalancedGamma(start=squared**0.5, decay=1.0)
        gamma.update(torch.tensor(0.01))
        beta = 2 * squared

        found = gamma.loss(error, divergence, numbers=64)
        torch.testing.assert_close(found, (error + beta * divergence.mean() / 64) / beta)


@pytest.mark.parametrize(("settings", "name"), [({"start": 0}, "start"), ({"decay": 1.5}, "decay")])
def test_settings_that_cannot_be_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"^BalancedGamma: {name} is"):
        BalancedGamma(**settings)

"""Paths of diffusion have the moments they should, and every sampler follows analytic estimates to the right images."""

import math

import pytest
import torch

from lightning_vision.generation.processes.diffusion import Diffusion, shares_left
from lightning_vision.generation.processes.gaussian import data_and_noise, target_of
from lightning_vision.generation.samplers.gaussian import ddim, ddpm, dpm_solver_2m, posterior_variance

MEAN, STD = 0.7, 0.4


def gaussian(x, alpha, sigma):
    """Data and noise that are expected at x where images are normal with `MEAN` and `STD`."""
    variance = (alpha * STD) ** 2 + sigma**2
    data = MEAN + alpha * STD**2 / variance * (x - alpha * MEAN)
    return data, (x - alpha * data) / sigma


def path(steps):
    process = Diffusion("cosine", 1000)
    taken = process.sampling_steps(steps)
    alphas, sigmas = process.alpha_and_sigma(taken)
    return alphas, sigmas


def sampled(sampler, steps, rows=20_000, **options):
    torch.manual_seed(0)
    alphas, sigmas = path(steps)
    x = sigmas[0] * torch.randn(rows, 1, dtype=torch.float64) + alphas[0] * MEAN
    return sampler(lambda x, number: gaussian(x, alphas[number], sigmas[number]), x, alphas, sigmas, **options)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [50, 1000])
def test_little_is_left_after_all_steps_and_nearly_all_after_the_first(schedule, steps):
    shares = shares_left(schedule, steps)

    assert shares.shape == (steps,) and (shares.diff() < 0).all()
    assert shares[0] > 0.99 and shares[-1] < 1e-3


def test_the_authors_linear_schedule():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)

    torch.testing.assert_close(shares_left("linear", 1000), (1 - betas).cumprod(0))


def test_row_201_images_on_the_way_have_the_right_moments():
    process = Diffusion("linear", 100)
    torch.manual_seed(0)
    data, noise = 2 * torch.ones(50_000, 1, 1, 1), torch.randn(50_000, 1, 1, 1)
    seen = []

    def network(x, t, y):
        seen.append((x, t))
        return torch.zeros_like(x)

    process.loss(network, data, noise, torch.full((50_000,), 0.305))
    ((x, t),) = seen
    share = float(process.shares[30])

    assert t.unique().tolist() == pytest.approx([0.3])
    assert x.mean().item() == pytest.approx(2 * math.sqrt(share), abs=0.01)
    assert x.var().item() == pytest.approx(1 - share, rel=0.02)


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
def test_data_and_noise_follow_from_any_prediction(kind):
    torch.manual_seed(0)
    data, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    said = target_of(kind, data, noise, alpha, sigma)
    found = data_and_noise(kind, said, alpha * data + sigma * noise, alpha, sigma)

    torch.testing.assert_close(found[0], data)
    torch.testing.assert_close(found[1], noise)


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
def test_a_network_that_knows_costs_nothing(kind):
    process = Diffusion("cosine", 20, kind)
    torch.manual_seed(0)
    data, noise, uniform = torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2), torch.rand(6)
    alpha, sigma = (it.float()[:, None, None, None] for it in process.alpha_and_sigma((uniform * 20).long()))
    right, wrong = (target_of(it, data, noise, alpha, sigma) for it in (kind, "noise" if kind != "noise" else "v"))

    assert process.loss(lambda x, t, y: right, data, noise, uniform) == 0
    assert process.loss(lambda x, t, y: wrong, data, noise, uniform) > 0.1


@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [
        (ddim, 100, {}),
        (ddim, 100, {"eta": 1.0}),
        (ddpm, 200, {}),
        (ddpm, 200, {"variance": "large"}),
        (dpm_solver_2m, 25, {}),
    ],
)
def test_row_201_samplers_have_the_images_moments(sampler, steps, options):
    found = sampled(sampler, steps, **options)

    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.04)


def test_the_solver_is_of_second_order():
    """Where DDIM halves its error with twice the steps, it quarters it; times are even in log(alpha / sigma)."""
    error = {}
    for sampler in (ddim, dpm_solver_2m):
        for steps in (20, 40):
            lambdas = torch.linspace(-3, 3, steps + 1, dtype=torch.float64)
            alphas, sigmas = (2 * lambdas).sigmoid().sqrt(), (-2 * lambdas).sigmoid().sqrt()
            torch.manual_seed(0)
            x = sigmas[0] * torch.randn(1000, 1, dtype=torch.float64) + alphas[0] * MEAN
            # The exact way: the standardised place stays.
            place = (x - alphas[0] * MEAN) / ((alphas[0] * STD) ** 2 + sigmas[0] ** 2).sqrt()
            end = alphas[-1] * MEAN + place * ((alphas[-1] * STD) ** 2 + sigmas[-1] ** 2).sqrt()
            found = sampler(lambda x, n, a=alphas, s=sigmas: gaussian(x, a[n], s[n]), x, alphas, sigmas)
            error[sampler, steps] = (found - end).abs().mean().item()

    assert 1.7 < error[ddim, 20] / error[ddim, 40] < 2.6
    assert error[dpm_solver_2m, 20] / error[dpm_solver_2m, 40] > 3.2


def test_row_201_with_eta_one_the_variances_are_ddpms():
    alphas, sigmas = path(50)
    variances = [
        float(posterior_variance(*((alphas[number + part], sigmas[number + part]) for part in (0, 1))))
        for number in range(49)
    ]
    # Equation 7 in betas.
    share, kept = alphas.square(), (alphas[:-1] / alphas[1:]).square()
    betas = (1 - share[1:]) / (1 - share[:-1]) * (1 - kept)

    assert variances == pytest.approx(betas[:-1].tolist())
    torch.testing.assert_close(sampled(ddim, 50, eta=1.0), sampled(ddpm, 50))
    assert (sampled(ddim, 50, eta=0.9) - sampled(ddpm, 50)).abs().max() > 1e-3


def test_row_201_without_eta_nothing_is_drawn():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alphas, sigmas = path(10)
    x = torch.ones(2, 1, dtype=torch.float64)
    ends = [ddim(lambda x, n: gaussian(x, alphas[n], sigmas[n]), x, alphas, sigmas) for _ in range(2)]

    assert torch.equal(*ends) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
def test_row_201_a_network_that_knows_is_sampled_to_the_images_moments(kind):
    """The whole way: the process tells the network its time, and the sampler what the network meant."""
    process = Diffusion("cosine", 1000, kind)
    steps = process.sampling_steps(50)
    alphas, sigmas = process.alpha_and_sigma(steps)

    def network(x, time, y):
        alpha, sigma = (it[:, None] for it in process.alpha_and_sigma((time * 1000).round().long()))
        return target_of(kind, *gaussian(x, alpha, sigma), alpha, sigma)

    torch.manual_seed(0)
    x = torch.randn(20_000, 1, dtype=torch.float64)
    found = ddim(process.denoiser(network, steps), x, alphas, sigmas)

    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(STD, rel=0.06)


def test_sampling_steps_are_spread_and_end_clean():
    process = Diffusion(steps=1000)

    assert process.sampling_steps(5).tolist() == [999, 799, 599, 399, 199, -1]
    assert len(process.sampling_steps(1000).unique()) == 1001
    with pytest.raises(ValueError, match="the number of steps is 0; give 1 to 1000"):
        process.sampling_steps(0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"schedule": "sine"}, "schedule is 'sine'; give 'linear' or 'cosine'"),
        ({"steps": 1}, "steps is 1; give at least 2"),
        ({"prediction": "x"}, "prediction is 'x'; give one of noise, data, v"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=f"^Diffusion: {sentence}"):
        Diffusion(**settings)

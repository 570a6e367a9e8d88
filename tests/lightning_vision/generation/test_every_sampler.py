"""By exact answers every sampler reaches a mixture's weights and means, and fills in what goes with known pixels."""

import pytest
import torch

from lightning_vision.generation import EDM, NCSN, Consistency, Diffusion, Edit, FlowMatching

SHARES, MEANS, WIDTH = torch.tensor([0.2, 0.8], dtype=torch.float64), torch.tensor([-2.0, 1.0]).double(), 0.3
STEPS = {"langevin": 40, "ddpm": 300}
# A solver that draws nothing carries the noise of known pixels along, and sees less of them on the way.
DRAWS = ("langevin", "ddpm")


def posterior(x, alpha, sigma):
    """The expected data at x = alpha data + sigma noise, of the mixture."""
    variance = alpha**2 * WIDTH**2 + sigma**2
    apart = x[..., None] - alpha * MEANS
    weight = (SHARES.log() - apart.square() / (2 * variance)).softmax(-1)
    data = MEANS + alpha * WIDTH**2 / variance * apart
    return (weight * data).sum(-1)


def correlated(x, alpha, sigma):
    """The expected data of two standard normal pixels whose correlation is 0.9."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    whole = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    return (x.flatten(1) @ torch.linalg.solve(whole, alpha * covariance)).view_as(x)


def exact(process, expected):
    """The network that says what each process asks for."""

    def flow(x, time, label):
        t = time[0].clamp(max=1 - 1e-4)
        return (expected(x, t, 1 - t) - x) / (1 - t)

    def diffusion(x, time, label):
        alpha, sigma = (it[0] for it in process.alpha_and_sigma((time * process.steps).round().long()))
        return (x - alpha * expected(x, alpha, sigma)) / sigma

    def edm(x, time, label):
        sigma, own = (4 * time[0]).exp(), process.data_std**2
        whole = sigma**2 + own
        x = x * whole.sqrt()
        data = expected(x, torch.ones_like(sigma), sigma)
        return (data - own / whole * x) * whole.sqrt() / (sigma * process.data_std)

    def score(x, time, label):
        sigma = process.sigmas.double()[(time[0] * process.levels).round().long()]
        return (expected(x, torch.ones_like(sigma), sigma) - x) / sigma**2

    return {FlowMatching: flow, Diffusion: diffusion, EDM: edm, NCSN: score}[type(process)]


EACH = [
    *((FlowMatching(), name, {}) for name in FlowMatching.samplers),
    *((Diffusion("cosine"), name, {}) for name in Diffusion.samplers),
    (Diffusion("cosine"), "ddim", {"eta": 1.0}),
    (Diffusion("cosine"), "ddpm", {"variance": "large"}),
    *((EDM(data_std=1.0, sigma_max=20.0), name, {}) for name in EDM.samplers),
    (NCSN(8.0, 0.05, 16), "langevin", {"eps": 2.5e-4, "denoise": True}),
]
IDS = ["-".join([type(process).__name__, name, *map(str, knobs.values())]) for process, name, knobs in EACH]


@pytest.mark.parametrize(("process", "sampler", "settings"), EACH, ids=IDS)
def test_every_sampler_reaches_a_mixtures_weights_and_means(process, sampler, settings):
    """4,000 points: a share's standard error is 0.006, a mean's at most 0.01; solvers add a little of their own."""
    torch.manual_seed(0)
    noise = torch.randn(4000, 1, 1, 1, dtype=torch.float64)
    steps = STEPS.get(sampler, 60)
    x = process.sample(exact(process, posterior), noise, steps, sampler=sampler, **settings).flatten()
    upper = x > -0.5

    # Walks of a few steps a level stay a little where they are.
    assert upper.double().mean().item() == pytest.approx(0.8, abs=0.06 if sampler == "langevin" else 0.03)
    assert x[upper].mean().item() == pytest.approx(1.0, abs=0.05)
    assert x[~upper].mean().item() == pytest.approx(-2.0, abs=0.05)


@pytest.mark.parametrize(("process", "sampler", "settings"), EACH, ids=IDS)
def test_what_is_filled_in_goes_with_what_is_known(process, sampler, settings):
    """Of two pixels with correlation 0.9 one is known, the other then 0.9 of it on average; by itself its mean is 0."""
    torch.manual_seed(0)
    noise = torch.randn(1000, 1, 1, 2, dtype=torch.float64)
    mask = torch.tensor([True, False]).view(1, 1, 1, 2)
    network, steps = exact(process, correlated), STEPS.get(sampler, 60)
    for known in (-1.5, 1.5):
        edit = Edit(torch.full_like(noise, known), mask)
        x = process.sample(network, noise, steps, sampler=sampler, edit=edit, **settings)

        assert torch.equal(x[..., 0], edit.image[..., 0])
        share = x[..., 1].mean().item() / known
        assert (0.55 if sampler in DRAWS or settings.get("eta") else 0.4) < share < 0.95
    free = process.sample(network, noise, steps, sampler=sampler, **settings)
    assert free[..., 1].mean().abs() < 0.15


def test_consistency_fills_in_what_goes_with_what_is_known():
    """The exact one-step function of two pixels that are equal: both are the first's share of x, whatever the noise."""
    process = Consistency(coupling="independent", data_std=1.0)
    noise = torch.randn(500, 1, 1, 2, dtype=torch.float64)
    image, mask = torch.full_like(noise, 1.5), torch.tensor([True, False]).view(1, 1, 1, 2)

    def network(x, time, label):
        return x.flip(-1)

    kept = process.sample(network, noise, 8, edit=Edit(image, mask))

    assert torch.equal(kept[..., 0], image[..., 0])
    assert kept[..., 1].mean() > 0.2 > process.sample(network, noise, 8)[..., 1].mean()

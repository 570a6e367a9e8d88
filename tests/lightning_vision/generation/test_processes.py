"""Flow matching, EDM and NCSN: what they ask of a network, and where its answers lead."""

import math
from itertools import permutations

import pytest
import torch

from lightning_vision.generation.processes.edm import EDM
from lightning_vision.generation.processes.flow_matching import FlowMatching, coupled
from lightning_vision.generation.processes.ncsn import NCSN
from lightning_vision.generation.samplers.langevin import annealed_langevin
from lightning_vision.generation.samplers.ode import euler, heun, midpoint

MEAN, STD = 0.7, 0.4


def images(count=64):
    torch.manual_seed(0)
    return torch.randn(count, 1, 2, 2), torch.randn(count, 1, 2, 2), torch.rand(count)


def flow_velocity(x, t):
    """That of images which are normal with `MEAN` and `STD`: what data - noise is expected to be at x."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    variance = (t * STD) ** 2 + (1 - t) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def test_a_network_that_knows_the_way_costs_nothing():
    data, noise, uniform = images()
    loss = FlowMatching().loss

    assert loss(lambda x, t, y: data - noise, data, noise, uniform) == 0
    assert loss(lambda x, t, y: noise - data, data, noise, uniform) > 1
    # Time 0 is noise and 1 the image.
    for time, end in ((0.0, noise), (1.0, data)):
        seen = []
        loss(lambda x, t, y, seen=seen: seen.append(x) or x, data, noise, torch.full((64,), time))
        assert torch.equal(seen[0], end)


@pytest.mark.parametrize(("solver", "steps"), [(euler, 200), (midpoint, 20), (heun, 20)])
def test_solvers_lead_to_the_images_moments(solver, steps):
    torch.manual_seed(0)
    found = solver(flow_velocity, torch.randn(20_000, 1, dtype=torch.float64), FlowMatching().times(steps).double())

    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.std().item() == pytest.approx(STD, rel=0.02)


def test_orders_of_the_solvers():
    """Of dx/dt = x t from 1, whose end is exp(1/2)."""
    error = {}
    for solver in (euler, midpoint, heun):
        for steps in (10, 20):
            end = solver(
                lambda x, t: x * t[:, None], torch.ones(1, 1).double(), torch.linspace(0, 1, steps + 1).double()
            )
            error[solver, steps] = abs(end.item() - math.exp(0.5))

    assert 1.8 < error[euler, 10] / error[euler, 20] < 2.2
    for solver in (midpoint, heun):
        assert 3.6 < error[solver, 10] / error[solver, 20] < 4.4


def test_coupled_noise_is_the_nearest_of_all_orders():
    torch.manual_seed(0)
    data, noise = torch.randn(2, 5, 3)
    found = coupled(data, noise)
    orders = [list(order) for order in permutations(range(5))]
    costs = [(data - noise[order]).square().sum().item() for order in orders]

    assert (data - found).square().sum().item() == pytest.approx(min(costs))
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, noise.tolist()))
    assert min(costs) < costs[0]


def test_times_of_the_logit_normal_law():
    times = FlowMatching(time_law="logit_normal", location=0.5, scale=2.0).time(
        torch.tensor([0.0, 0.5, 0.8413447, 1.0])
    )

    assert times[1:3].logit().tolist() == pytest.approx([0.5, 2.5], abs=1e-3)
    assert 0 < times[0] < times[3] <= 1


def test_edm_asks_for_outputs_of_unit_size():
    """At any level, of images with the deviation that it was told."""
    torch.manual_seed(0)
    data, noise = 0.5 * torch.randn(20_000, 1, 1, 1), torch.randn(20_000, 1, 1, 1)
    for level in (0.01, 0.5, 10.0):
        sigma, seen = torch.full((20_000,), level), []
        process = EDM(data_std=0.5)
        process.denoised(lambda x, t, y, seen=seen: seen.append((x, t)) or x, data + level * noise, sigma)
        zero = process.denoised(lambda x, t, y: torch.zeros_like(x), data + level * noise, sigma)
        one = process.denoised(lambda x, t, y: torch.ones_like(x), data + level * noise, sigma)
        wanted = (data - zero) / (one - zero)

        assert seen[0][0].std().item() == pytest.approx(1, rel=0.03)
        assert seen[0][1][0].item() == pytest.approx(math.log(level) / 4)
        assert wanted.std().item() == pytest.approx(1, rel=0.03)


def test_edms_sampler_has_the_images_moments():
    process = EDM()
    torch.manual_seed(0)

    def slope(x, sigma):
        sigma = sigma[:, None]
        return (x - (MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN))) / sigma

    times = process.times(100).double()
    found = heun(slope, MEAN + times[0] * torch.randn(20_000, 1, dtype=torch.float64), times, last_euler=True)

    assert times[0] == 80 and times[-2].item() == pytest.approx(0.002) and times[-1] == 0
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.02)


def test_what_solvers_and_walks_ask_of_a_network_is_what_it_was_trained_for():
    """Networks that know the analytic answer, through each process's own time."""
    torch.manual_seed(0)
    x, process, levels = torch.randn(5, 1, 2, 2), EDM(data_std=0.5), NCSN(levels=5)

    def network(scaled, time, y):
        sigma = (4 * time).exp().view(-1, 1, 1, 1)
        whole = (sigma**2 + 0.25).sqrt()
        x = scaled * whole
        denoised = MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)
        return (denoised - 0.25 / whole**2 * x) * whole / (0.5 * sigma)

    slope = process.velocity(network)(x, torch.full((5,), 3.0))
    torch.testing.assert_close(slope, 3 * (x - MEAN) / (STD**2 + 9), rtol=1e-4, atol=1e-4)
    found = levels.score(lambda x, time, y: -(x - MEAN) / levels.sigmas[(5 * time[0]).round().long()] ** 2)(x, 3)
    torch.testing.assert_close(found, -(x - MEAN) / levels.sigmas[3] ** 2)


def test_row_180_levels_are_geometric():
    sigmas = NCSN(sigma_begin=1.0, sigma_end=0.01, levels=10).sigmas

    torch.testing.assert_close(sigmas[1:] / sigmas[:-1], torch.full((9,), 0.01 ** (1 / 9)))
    assert sigmas[0] == 1 and sigmas[-1].item() == pytest.approx(0.01)


def test_row_180_the_analytic_score_has_the_least_loss():
    torch.manual_seed(0)
    process = NCSN(sigma_begin=2.0, sigma_end=0.1, levels=5)
    data, noise, uniform = MEAN + STD * torch.randn(5_000, 1, 1, 1), torch.randn(5_000, 1, 1, 1), torch.rand(5_000)

    def loss(factor, shift):
        def score(x, t, y):
            sigma = process.sigmas[(t * 5).round().long()].view(-1, 1, 1, 1)
            return -factor * (x - MEAN - shift) / (STD**2 + sigma**2)

        return process.loss(score, data, noise, uniform)

    least = loss(1, 0)
    assert all(loss(*wrong) > least + 1e-4 for wrong in ((0.9, 0), (1.1, 0), (1, 0.2), (1, -0.2)))


def mixture_score(sigmas):
    """Of two Gaussians, a fifth at -2 and four fifths at 2, each of deviation 0.3, with noise of a level."""

    def score(x, level):
        variance = 0.3**2 + sigmas[level] ** 2
        logs = torch.stack([math.log(w) - (x - m) ** 2 / (2 * variance) for w, m in ((0.2, -2.0), (0.8, 2.0))])
        near = logs.softmax(0)
        return (near[0] * (-2.0 - x) + near[1] * (2.0 - x)) / variance

    return score


def test_row_180_langevin_walks_to_the_mixtures_means_and_weights():
    sigmas = NCSN(sigma_begin=6.0, sigma_end=0.1, levels=12).sigmas
    torch.manual_seed(0)
    found = annealed_langevin(mixture_score(sigmas), 6 * torch.randn(4_000, 1), sigmas, eps=2e-3, steps=60)
    left = found < 0

    assert left.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert found[left].mean().item() == pytest.approx(-2, abs=0.05)
    assert found[~left].mean().item() == pytest.approx(2, abs=0.05)
    # One level alone does not find the weights.
    alone = annealed_langevin(mixture_score(sigmas[-1:]), 6 * torch.randn(4_000, 1), sigmas[-1:], eps=2e-3, steps=720)
    assert abs((alone < 0).float().mean().item() - 0.2) > 0.1


def test_row_180_inpainting_leaves_known_pixels_as_they_are():
    sigmas = NCSN(sigma_begin=2.0, sigma_end=0.1, levels=4).sigmas
    torch.manual_seed(0)
    known, mask = torch.full((50, 2), 2.0), torch.tensor([True, False])
    found = annealed_langevin(mixture_score(sigmas), torch.randn(50, 2), sigmas, 2e-3, 20, known=known, mask=mask)

    assert torch.equal(found[:, 0], known[:, 0])
    assert (found[:, 1] != known[:, 1]).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FlowMatching(coupling="ot"), "^FlowMatching: coupling is 'ot'; give 'independent' or 'optimal'"),
        (lambda: FlowMatching(time_law="beta"), "^FlowMatching: time_law is 'beta'; give 'uniform' or 'logit_normal'"),
        (lambda: FlowMatching(scale=0), "^FlowMatching: scale is 0; give a number above 0"),
        (lambda: EDM(rho=0), "^EDM: rho is 0; give a number above 0"),
        (lambda: EDM(sigma_max=0.001), "^EDM: sigma_max is 0.001; give more than sigma_min=0.002"),
        (lambda: NCSN(sigma_end=2.0), "^NCSN: noise falls from sigma_begin=1.0 to sigma_end=2.0; give two"),
        (lambda: NCSN(levels=1), "^NCSN: levels is 1; give at least 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_noise_is_coupled_within_a_label_and_a_class_owns_no_part_of_it():
    """Coupled as a whole, the noise of a class leans towards its images: what sampling starts from does not."""
    torch.manual_seed(0)
    label = torch.arange(2).repeat(200)
    data = torch.randn(400, 2) + 6 * label[:, None] - 3
    noise = torch.randn(400, 2)
    within, whole = coupled(data, noise, label), coupled(data, noise)

    for number in range(2):
        own = noise[label == number]
        assert torch.equal(within[label == number].sort(0).values, own.sort(0).values)
        torch.testing.assert_close(within[label == number], coupled(data[label == number], own))
    # Four standard errors of a mean of 200.
    assert within[label == 1].mean().abs() < 4 / 400**0.5 < whole[label == 1].mean()


def test_row_180_a_scaled_answer_over_sigma_is_the_score():
    plain, scaled = NCSN(levels=4), NCSN(levels=4, scaled=True)
    (data, noise), uniform = torch.randn(2, 3, 1, 4, 4), torch.rand(3)

    def score(x, time, label):
        return -x / (1 + plain.sigmas[(time * 4).round().long()].view(-1, 1, 1, 1) ** 2)

    def answer(x, time, label):
        return plain.sigmas[(time * 4).round().long()].view(-1, 1, 1, 1) * score(x, time, label)

    torch.testing.assert_close(scaled.loss(answer, data, noise, uniform), plain.loss(score, data, noise, uniform))
    torch.testing.assert_close(scaled.score(answer)(data, 2), plain.score(score)(data, 2))
    assert (plain.score(answer)(data, 2) - plain.score(score)(data, 2)).abs().max() > 1e-2


def test_row_180_a_walk_may_end_with_the_expected_image():
    """Of a point at c with noise of the level the score is (c - x) / sigma^2, so that the end is c itself."""
    process, centre = NCSN(sigma_begin=2.0, sigma_end=0.5, levels=3), torch.full((4, 1, 2, 2), 3.0)

    def score(x, time, label):
        return (centre - x) / process.sigmas[(time * 3).round().long()].view(-1, 1, 1, 1) ** 2

    noise = torch.randn(4, 1, 2, 2)
    plain, ended = (process.sample(score, noise, 5, eps=0.05, denoise=it) for it in (False, True))

    torch.testing.assert_close(ended, centre)
    assert (plain - centre).abs().max() > 0.2

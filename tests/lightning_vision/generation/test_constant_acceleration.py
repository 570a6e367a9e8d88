"""Constant acceleration flow: exact fields lead there and back in any number of steps, and moons are learned."""

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import make_moons
from torch import nn

from lightning_vision.generation.losses.pseudo_huber import pseudo_huber
from lightning_vision.generation.processes.constant_acceleration import ConstantAcceleration
from lightning_vision.generation.processes.edit import Edit
from lightning_vision.generation.processes.flow_matching import coupled
from lightning_vision.generation.samplers.acceleration import accelerate


def images(count=64):
    torch.manual_seed(0)
    return torch.randn(count, 1, 2, 2), torch.randn(count, 1, 2, 2), torch.rand(count)


def exact(data, noise, scale=1.5):
    """Networks that know which noise becomes which image."""
    velocity = scale * (data - noise)
    return {
        "velocity": lambda x, t, y: velocity,
        "acceleration": lambda x, t, y: 2 * (data - noise) - 2 * velocity,
    }


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_row_248_with_exact_fields_any_number_of_steps_is_exact(steps):
    data, noise, _ = images()
    networks, times = exact(data, noise), torch.linspace(0, 1, steps + 1)
    velocity, field = (networks[name](None, None, None) for name in ("velocity", "acceleration"))

    torch.testing.assert_close(ConstantAcceleration().sample(networks, noise, steps), data, rtol=1e-5, atol=1e-5)
    back = accelerate(lambda x, t: field, velocity, data, times.flip(0))
    torch.testing.assert_close(back, noise, rtol=1e-5, atol=1e-5)
    # The mutant takes the time of the step's start for that of its middle.
    wrong = noise
    for now, later in pairwise(times):
        wrong = wrong + (later - now) * velocity + (later - now) * now * field
    assert (wrong - data).abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 4])
def test_row_248_inversion_and_sampling_return_the_image(steps):
    data, noise, _ = images()
    flow, networks = ConstantAcceleration(), exact(data, noise)
    found = flow.invert(networks, data, steps)

    torch.testing.assert_close(found, noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.sample(networks, found, steps), data, rtol=1e-5, atol=1e-5)


def test_row_248_with_a_scale_of_one_it_is_the_rectified_flow():
    data, noise, uniform = images()
    flow = ConstantAcceleration(velocity_scale=1.0)
    seen = []

    def network(x, t, velocity, y):
        seen.append(x)
        return torch.zeros_like(x)

    loss = flow.acceleration_loss(network, data - noise, data, noise, uniform)
    t = uniform.view(-1, 1, 1, 1)

    assert loss == 0 and flow.velocity_loss(lambda x, t, y: data - noise, data, noise) == 0
    torch.testing.assert_close(seen[0], (1 - t) * noise + t * data)
    assert ConstantAcceleration(1.5).velocity_loss(lambda x, t, y: data - noise, data, noise) > 0.1


@pytest.mark.parametrize("norm", ["squared", "huber"])
def test_row_248_terms_are_the_formulas(norm):
    """Equations 7, 9 and 12 by hand; the acceleration network sees v0 as the other one tells it at x0."""
    data, noise, uniform = images()
    networks = {
        "velocity": lambda x, t, y: x + t.view(-1, 1, 1, 1),
        "acceleration": lambda x, t, y: x[:, :1] * x[:, 1:],
    }
    found = ConstantAcceleration(1.5, "given", norm).terms(networks, data, noise, uniform)
    t = uniform.view(-1, 1, 1, 1)

    def by_hand(told):
        middle = (1 - t**2) * noise + t**2 * data + (t - t**2) * told
        error = middle * told - 2 * (data - noise - told)
        return error.square().mean() if norm == "squared" else pseudo_huber(error).mean()

    start = 1.5 * (data - noise)
    error = (1 - t**2) * noise + t**2 * data + (t - t**2) * start + t - start
    velocity = error.square().mean() if norm == "squared" else pseudo_huber(error).mean()
    torch.testing.assert_close(found["velocity"], velocity)
    torch.testing.assert_close(found["acceleration"], by_hand(noise))
    torch.testing.assert_close(found["loss"], velocity + by_hand(noise))
    # The mutant gives the acceleration network the true v0.
    assert (found["acceleration"] - by_hand(start)).abs() > 1e-2


def test_row_248_no_gradient_goes_from_the_acceleration_to_the_velocity():
    data, noise, uniform = images()
    nets = ConstantAcceleration().build(
        lambda in_channels=1, out_channels=1: nn.Conv2d(in_channels, out_channels, 1), 1
    )
    asked = {"velocity": lambda x, t, y: nets["velocity"](x), "acceleration": lambda x, t, y: nets["acceleration"](x)}
    ConstantAcceleration().terms(asked, data, noise, uniform)["acceleration"].backward()

    assert nets["velocity"].weight.grad is None and nets["acceleration"].weight.grad.abs().max() > 0
    assert nets["acceleration"].in_channels == 2


def test_known_pixels_stay_and_the_way_goes_on_from_its_middle():
    data, noise, _ = images()
    asked, networks = [], exact(data, noise)
    lost = {**networks, "acceleration": lambda x, t, y: asked.append(t[0].item()) or torch.zeros_like(data)}
    mask = torch.tensor([[True, False], [False, True]])
    found = ConstantAcceleration().sample(lost, noise, 4, edit=Edit(data, mask, 0.5))
    whole = ConstantAcceleration().solve(accelerate, lost, noise, 4, None, Edit(data, mask))
    middle = ConstantAcceleration().sample(networks, noise, 3, edit=Edit(data, strength=0.3))

    torch.testing.assert_close(whole[..., mask], data[..., mask], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[..., mask], data[..., mask]) and (found - data).abs().max() > 0.1
    torch.testing.assert_close(middle, data, rtol=1e-5, atol=1e-5)
    assert asked[:4] == pytest.approx([0.5, 0.625, 0.75, 0.875])


def test_exponential_times_have_the_density_of_a_cosh():
    flow, grid = ConstantAcceleration(time_law="exponential", concentration=4.0), torch.linspace(0, 1, 2001)
    density = torch.cosh(4 * (grid - 0.5))
    shares = torch.cumulative_trapezoid(density, grid) / torch.trapezoid(density, grid)
    found = flow.time(shares[[200, 999, 1700]])

    torch.testing.assert_close(found, grid[[201, 1000, 1701]], rtol=0, atol=1e-4)
    torch.testing.assert_close(flow.time(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))


def moons(count):
    points = torch.from_numpy(make_moons(count, noise=0.05, random_state=0)[0]).float()
    return ((points - points.mean(0)) / points.std(0))[:, :, None, None]


class Field(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        sizes = [before + 1, 64, 64, 64]
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(64, after))

    def forward(self, x, time, label):
        return self.layers(torch.cat([x.flatten(1), time[:, None]], 1))[..., None, None]


def learned(pairs, steps=250):
    """Networks after a training with noise that belongs to its image, or with any."""
    torch.manual_seed(0)
    flow, data = ConstantAcceleration(coupling="given"), moons(1024)
    noise = coupled(data, torch.randn_like(data))
    networks = flow.build(lambda in_channels=2, out_channels=2: Field(in_channels, out_channels), 2)
    optimizer = torch.optim.Adam(networks.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(1024, (256,))
        start = noise[rows] if pairs else torch.randn(256, 2, 1, 1)
        optimizer.zero_grad()
        flow.terms(networks, data[rows], start, torch.rand(256))["loss"].backward()
        optimizer.step()
        schedule.step()
    return flow, networks


def energy_distance(first, second):
    first, second = first.flatten(1), second.flatten(1)
    within = torch.cdist(first, first).mean() + torch.cdist(second, second).mean()
    return (2 * torch.cdist(first, second).mean() - within).item()


def test_row_248_moons_are_learned_in_seconds():
    flow, networks = learned(pairs=True)
    noise, wanted = torch.randn(1000, 2, 1, 1), moons(1000)
    one, eight = (flow.sample(networks, noise, steps) for steps in (1, 8))

    assert energy_distance(one, wanted) < 0.2 * energy_distance(noise, wanted)
    assert energy_distance(eight, wanted) < 0.2 * energy_distance(noise, wanted)
    # There and back.
    assert (flow.invert(networks, eight, 8) - noise).abs().mean() < 0.3


def test_row_248_with_any_noise_for_any_image_only_the_mean_is_made():
    flow, networks = learned(pairs=False)
    made = flow.sample(networks, torch.randn(1000, 2, 1, 1), 8)

    assert made.std(0).max() < 0.6 < 0.9 < moons(1000).std(0).min()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"velocity_scale": 0}, "velocity_scale is 0; give a number above 0"),
        ({"concentration": -1}, "concentration is -1; give a number above 0"),
        ({"coupling": "any"}, "coupling is 'any'; give 'optimal' or 'given'"),
        ({"norm": "l1"}, "norm is 'l1'; give 'squared' or 'huber'"),
        ({"time_law": "beta"}, "time_law is 'beta'; give 'uniform' or 'exponential'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=f"^ConstantAcceleration: {sentence}"):
        ConstantAcceleration(**settings)

"""Consistency training: levels, boundary, coupling and loss are what they are by hand, and exact functions sample."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader

from lightning_vision.generation import Consistency, ConstantAcceleration, DiffusionModel, Edit
from lightning_vision.generation.losses.pseudo_huber import pseudo_huber
from lightning_vision.generation.processes.levels import karras_levels, lognormal_levels, neighbours, shrunk
from support.generators import OneLayer, tiny_diffusion
from support.learners import resumed
from support.trainers import quiet_trainer

MEAN, STD = 0.7, 0.4
KERNELS = ["exploding", "straight"]


def images(count=64):
    torch.manual_seed(0)
    return torch.randn(count, 1, 2, 2), torch.randn(count, 1, 2, 2), torch.rand(count)


def two_networks(seed=0):
    """A generator and an encoder of a layer each."""
    torch.manual_seed(seed)
    return nn.ModuleDict({"generator": OneLayer(), "encoder": OneLayer(out_channels=2)})


def wide(numbers):
    return numbers[:, None, None, None]


def standard(x, time, label):
    """An encoder that says mu = 0 and s = 1 of each image."""
    return torch.zeros_like(x).repeat(1, 2, 1, 1)


def test_pseudo_huber_is_squared_near_nought_and_a_length_far_from_it():
    near, far = torch.full((2, 1, 2, 2), 1e-6), torch.full((2, 1, 2, 2), 50.0)

    torch.testing.assert_close(
        pseudo_huber(near.double(), 0.1), torch.full((2,), 4e-12 / 0.4).double(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(pseudo_huber(far, 0.1), torch.full((2,), 100 - 0.2), rtol=1e-4, atol=0)


def test_row_265_levels_are_drawn_as_song_and_dhariwal_have_it():
    """Of all pairs of neighbours each comes with the share that two error functions give it."""
    levels = karras_levels(11, 0.002, 80.0)
    sigma = lognormal_levels(torch.linspace(0, 1, 200_001), 0.002, 80.0)
    above, below = neighbours(sigma, levels)
    erf = ((levels.log() + 1.1) / (2.0 * math.sqrt(2))).erf()
    found = torch.stack([(below == it).double().mean() for it in levels[:-1].float()])

    assert levels[[0, -1]].tolist() == pytest.approx([0.002, 80.0])
    torch.testing.assert_close(found, erf.diff() / (erf[-1] - erf[0]), rtol=0, atol=1e-4)
    assert all(
        high in pairwise(levels.float().tolist()) for high in set(zip(below.tolist(), above.tolist(), strict=True))
    )


def test_row_265_levels_come_nearer_by_stages():
    process, easy = Consistency(levels=4, stages=3), Consistency(schedule="shrinking", stages=3)
    uniform = torch.linspace(0, 1, 5001)
    counts = [len(process.pair(uniform, it)[1].unique()) for it in (0.0, 0.33, 0.34, 0.67, 1.0)]
    sigma, lower = easy.pair(torch.tensor([0.9]), 0.4)

    assert counts == [4, 4, 8, 16, 16]
    assert lower.item() == pytest.approx(sigma.item() * (1 - 0.25 * (1 + 8 / (1 + math.exp(sigma)))))
    assert shrunk(torch.tensor([0.01, 50.0]), 0.5, 0.002).tolist() == pytest.approx([0.002, 25.0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_row_265_at_the_lowest_level_the_image_is_what_it_is(kernel):
    process, (x, _, _) = Consistency(kernel=kernel), images()
    lowest = torch.full((64,), process.sigma_min)

    assert torch.equal(process.estimate(lambda x, t, y: 1e3 * x + t[0], x, lowest), x)
    assert (process.estimate(lambda x, t, y: 1e3 * x, x, 1.5 * lowest) - x).abs().max() > 0.1


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_network_sees_unit_size_and_the_levels_logarithm(kernel):
    torch.manual_seed(0)
    process = Consistency(kernel=kernel, data_std=0.5)
    data, noise = 0.5 * torch.randn(20_000, 1, 1, 1), torch.randn(20_000, 1, 1, 1)
    for level in (0.01, 1.0, 40.0):
        sigma, seen = torch.full((20_000,), level), []
        process.estimate(lambda x, t, y, seen=seen: seen.append((x, t)) or x, process.noised(data, noise, sigma), sigma)

        assert seen[0][0].std().item() == pytest.approx(1, rel=0.03)
        assert seen[0][1][0].item() == pytest.approx(math.log(level) / 4000, abs=1e-9)
    if kernel == "straight":
        assert torch.equal(process.noised(data, noise, torch.full((20_000,), 80.0)), 80 * noise)


def test_row_265_with_mu_0_and_s_1_it_is_plain_consistency_training():
    data, noise, uniform = images()
    network = OneLayer()
    plain = Consistency("independent").terms(network, data, noise, uniform, None, 0.3)
    found = Consistency().terms({"generator": network, "encoder": standard}, data, noise, uniform, None, 0.3)
    other = {"generator": network, "encoder": lambda x, t, y: torch.cat([x, torch.zeros_like(x)], 1)}

    assert found["kl"] == 0 and torch.equal(found["loss"], plain["loss"])
    assert Consistency().terms(other, data, noise, uniform, None, 0.3)["loss"] > plain["loss"] + 0.1


def test_row_265_the_divergence_is_that_of_torch_distributions():
    data, noise, uniform = images()
    networks, process = two_networks(), Consistency(beta=3.0, levels=5)
    mean, log_variance = networks["encoder"](data / 0.5, torch.zeros(64), None).chunk(2, 1)
    wanted = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    gap = karras_levels(6, 0.002, 80.0)[-2:].diff().float()

    emitted, divergence = process.emitted(networks["encoder"], data, noise)
    torch.testing.assert_close(divergence.mean(), wanted)
    torch.testing.assert_close(emitted, mean + (log_variance / 2).exp() * noise)
    torch.testing.assert_close(process.terms(networks, data, noise, uniform)["kl"], (3 * wanted / gap).squeeze())


def by_hand(target_learns=False, noise_anew=False, steps=4):
    """Steps of variational consistency training, written down for a gap that is the same for all images."""
    networks, lowest, highest = two_networks(), 0.002, 80.0
    optimizer = torch.optim.SGD(networks.parameters(), 0.02)
    data, noise, _ = images()

    def image(x, sigma):
        shrink = 1 / math.sqrt(0.25 + sigma**2)
        told = networks["generator"](shrink * x, torch.full((64,), math.log(sigma) / 4000))
        beyond = sigma - lowest
        return 0.25 / (beyond**2 + 0.25) * x + beyond * 0.5 * shrink * told

    for step in range(steps):
        ends = [lowest ** (1 / 7), highest ** (1 / 7)]
        share = 2 ** -(1 if step < steps / 2 else 2)
        middle = [(ends[0] + it * (ends[1] - ends[0])) ** 7 for it in (1 - 2 * share, 1 - share)]
        sigma, lower = middle[1], middle[0] if step >= steps / 2 else lowest
        mean, log_variance = networks["encoder"](2 * data, torch.zeros(64)).chunk(2, 1)
        emitted = mean + (log_variance / 2).exp() * noise
        beside = mean + (log_variance / 2).exp() * noise.flip(0) if noise_anew else emitted
        target = image(data + lower * beside, lower)
        target = target if target_learns else target.detach()
        off = (image(data + sigma * emitted, sigma) - target).flatten(1)
        bend = 0.00054 * 2
        distance = ((off.square().sum(1) + bend**2).sqrt() - bend).mean() / (sigma - lower)
        spread = (log_variance.exp() + mean**2 - 1 - log_variance).flatten(1).sum(1).mean() / 2
        loss = distance + 10 * spread / (highest - (ends[0] + (1 - share) * (ends[1] - ends[0])) ** 7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [it.detach() for it in networks.parameters()]


def by_process(steps=4):
    networks, process = two_networks(), Consistency(levels=2, stages=2)
    optimizer = torch.optim.SGD(networks.parameters(), 0.02)
    data, noise, _ = images()
    for step in range(steps):
        # Of two gaps the lower, of four the last but one.
        gaps = karras_levels(3 if step < steps / 2 else 5, 0.002, 80.0)
        inside = 0.5 * (gaps[0] + gaps[1]) if step < steps / 2 else 0.5 * (gaps[2] + gaps[3])
        below, at, above = ((1 + torch.erf((it.log() + 1.1) / 8**0.5)) / 2 for it in (gaps[0], inside, gaps[-1]))
        uniform = ((at - below) / (above - below)).float().expand(64)
        optimizer.zero_grad()
        process.terms(networks, data, noise, uniform, None, step / steps)["loss"].backward()
        optimizer.step()
    return [it.detach() for it in networks.parameters()]


def test_row_265_it_learns_as_a_hand_written_loop():
    for found, wanted, first in zip(by_process(), by_hand(), two_networks().parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        # The label's table is never read.
        assert found.shape == (4, 1) or (found - first).abs().max() > 1e-4


@pytest.mark.parametrize("wrong", [{"target_learns": True}, {"noise_anew": True}])
def test_row_265_a_wrong_loop_is_noticed(wrong):
    gaps = [(found - other).abs().max() for found, other in zip(by_process(), by_hand(**wrong), strict=True)]

    assert max(gaps) > 1e-3


def test_image_and_target_are_told_with_the_same_dropout():
    told = []

    class Dropping(nn.Dropout):
        def forward(self, x, time, label):
            told.append(super().forward(torch.ones_like(x)))
            return told[-1]

    data, noise, uniform = images()
    Consistency("independent").loss(Dropping(0.5), data, noise, uniform)
    later = torch.rand(1)
    torch.manual_seed(0)
    images(), nn.functional.dropout(data, 0.5)

    assert torch.equal(*told) and told[0].min() == 0
    # And the stream has gone on once.
    assert torch.equal(torch.rand(1), later)


def exact(process, std_of_noise):
    """A network behind f(x, sigma) of images that are normal, for what the deviation of x at sigma is."""

    def network(shrunk_x, time, label):
        sigma = wide((4000 * time).exp())
        x = shrunk_x * (process.data_std**2 + sigma**2).sqrt()
        wanted = MEAN + (x - MEAN) * std_of_noise(torch.tensor(process.sigma_min)) / std_of_noise(sigma)
        zero = process.estimate(lambda x, t, y: torch.zeros_like(x), x, sigma.flatten())
        one = process.estimate(lambda x, t, y: torch.ones_like(x), x, sigma.flatten())
        return ((wanted - zero) / (one - zero)).nan_to_num(0, 0, 0)

    return network


def test_row_265_noise_that_follows_from_the_image_has_an_exact_function_without_loss():
    """Images are normal and z is the image, standardised: along its line f is the same at every level."""
    torch.manual_seed(0)
    process = Consistency("independent")
    noise, uniform = torch.randn(2000, 1, 1, 1), torch.rand(2000)
    data, right = MEAN + STD * noise, exact(process, lambda sigma: STD + sigma)
    wrong = exact(process, lambda sigma: (STD**2 + sigma**2).sqrt())

    assert process.terms(right, data, noise, uniform, None, 1.0)["loss"] < 0.01
    assert process.terms(wrong, data, noise, uniform, None, 1.0)["loss"] > 0.1
    for steps in (1, 2):
        made = process.sample(right, torch.randn(20_000, 1, 1, 1), steps)
        assert made.mean().item() == pytest.approx(MEAN, abs=0.02)
        # With any noise between two steps the second image has less spread than its line gives it.
        assert steps == 2 or made.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_row_265_the_exact_function_of_any_noise_samples_exactly(steps):
    torch.manual_seed(0)
    process = Consistency("independent")
    network = exact(process, lambda sigma: (STD**2 + sigma**2).sqrt())
    made = process.sample(network, torch.randn(20_000, 1, 1, 1), steps)

    assert made.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert made.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
def test_row_265_the_second_step_has_fresh_noise_of_the_encoder(kernel):
    networks, process = two_networks(), Consistency(kernel=kernel, middle=0.5)
    _, noise, _ = images(3)
    fresh, drawn = torch.randn(3, 1, 2, 2), []
    draw = lambda like: drawn.append(like) or fresh  # noqa: E731  # a line
    one, two = (process.sample(networks, noise, it, draw=draw) for it in (1, 2))

    first = process.estimate(networks["generator"], 80 * noise, torch.full((3,), 80.0))
    mean, log_variance = networks["encoder"](first / 0.5, torch.zeros(3), None).chunk(2, 1)
    again = first * (1 if kernel == "exploding" else 1 - 0.5 / 80) + 0.5 * (mean + (log_variance / 2).exp() * fresh)
    torch.testing.assert_close(one, first)
    torch.testing.assert_close(two, process.estimate(networks["generator"], again, torch.full((3,), 0.5)))
    assert len(drawn) == 1 and torch.equal(drawn[0], one)


def test_levels_of_sampling_fall_to_the_middle_and_begin_where_the_strength_says():
    process = Consistency(middle=0.821)

    assert process.times(1).tolist() == pytest.approx([80.0])
    assert process.times(2).tolist() == pytest.approx([80.0, 0.821])
    assert process.times(5)[[0, -1]].tolist() == pytest.approx([80.0, 0.821]) and (process.times(5).diff() < 0).all()
    assert process.times(2, 0.5)[0].item() == pytest.approx(karras_levels(3, 0.002, 80.0)[1].item())
    assert process.times(2, 0.01)[-1] > 0.002


def test_sampling_goes_on_from_an_image_with_its_own_noise_and_keeps_known_pixels():
    networks, process, (image, noise, _) = two_networks(), Consistency(), images(3)
    emitted, _ = process.emitted(networks["encoder"], image, noise)
    sigma = process.times(1, 0.3)
    start = process.noised(image, emitted, sigma.expand(3))
    mask = torch.tensor([[True, False], [False, True]])
    seen = []
    networks["generator"].register_forward_hook(lambda module, given, told: seen.append(given[0]))
    found = process.sample(networks, noise, 1, edit=Edit(image, strength=0.3))
    kept = process.sample(networks, noise, 2, draw=torch.zeros_like, edit=Edit(image, mask))

    torch.testing.assert_close(found, process.estimate(networks["generator"], start, sigma.expand(3)))
    assert torch.equal(kept[..., mask], image[..., mask]) and (kept - image).abs().max() > 0.1
    # The second step has seen them already.
    first = process.estimate(networks["generator"], 80 * noise, torch.full((3,), 80.0))
    assert (process.sample(networks, noise, 2, draw=torch.zeros_like) - kept)[..., ~mask].abs().max() > 1e-3
    assert (first - image).abs().max() > 0.1 and len(seen) == 7


class Field(nn.Module):
    def __init__(self, after):
        super().__init__()
        layers = [part for pair in pairwise([3, 64, 64, 64]) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(64, after))
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x, time, label):
        return self.layers(torch.cat([x.flatten(1), 1000 * time[:, None]], 1))[..., None, None]


def two_heaps(count):
    """As the paper's figure 1: heaps at (0, 0.5) and (0, -0.5)."""
    points = 0.05 * torch.randn(count, 2)
    points[:, 1] += torch.randint(2, (count,)) - 0.5
    return points[..., None, None]


def learned(coupling, steps, rows):
    """The process, its networks after a training, and the variance of the gradient of the loss with their weights."""
    torch.manual_seed(0)
    process = Consistency(coupling, beta=3.0, levels=10, stages=4, sigma_max=20.0)
    networks = process.build(lambda in_channels=2, out_channels=2: Field(out_channels), 2)
    optimizer = torch.optim.Adam(networks.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def terms(rows, progress):
        data = two_heaps(rows)
        return process.terms(networks, data, torch.randn_like(data), torch.rand(rows), None, progress)

    for step in range(steps):
        optimizer.zero_grad()
        terms(rows, step / steps)["loss"].backward()
        optimizer.step()
        schedule.step()
    generator = networks["generator"] if coupling == "variational" else networks
    gradients = []
    for _ in range(64):
        told = terms(64, 1.0)
        parts = torch.autograd.grad(told.get("consistency", told["loss"]), list(generator.parameters()))
        gradients.append(torch.cat([it.flatten() for it in parts]))
    return process, networks, torch.stack(gradients).var(0).sum().item()


@pytest.mark.parametrize(
    ("steps", "rows", "near", "less"),
    [(350, 128, 0.3, 0.8), pytest.param(1000, 256, 0.2, 0.8, marks=pytest.mark.slow)],
)
def test_row_265_one_step_has_the_images_moments_and_gradients_vary_less(steps, rows, near, less):
    process, networks, variance = learned("variational", steps, rows)
    _, _, independent = learned("independent", steps, rows)
    made = process.sample(networks, torch.randn(2000, 2, 1, 1), 1).flatten(1)
    std = two_heaps(2000).flatten(1).std(0)

    assert made.mean(0).abs().max() < near / 2
    assert made.std(0).tolist() == pytest.approx(std.tolist(), abs=near / 2)
    assert variance < less * independent


PROCESSES = [
    Consistency(),
    Consistency("independent", schedule="shrinking"),
    Consistency("optimal", kernel="straight"),
    ConstantAcceleration(),
    ConstantAcceleration(norm="huber", time_law="exponential"),
]


@pytest.mark.parametrize("process", PROCESSES)
def test_the_module_learns_samples_and_comes_back(process, tmp_path):
    model = tiny_diffusion(process=process, steps=2, guidance=0.5)
    random = torch.Generator().manual_seed(7)
    batches = [(torch.randn(6, 1, 8, 8, generator=random), torch.arange(6) % 3) for _ in range(3)]
    first = {name: it.clone() for name, it in model.network.state_dict().items()}
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, DataLoader(batches, batch_size=None))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DiffusionModel.load_from_checkpoint(tmp_path / "last.ckpt")
    whole = model.sample(4)

    assert any((first[name] != it).any() for name, it in model.network.state_dict().items())
    assert again.process == process and torch.equal(again.sample(4), whole)
    torch.testing.assert_close(torch.cat([model.sample(1), model.sample(3, first=1)]), whole, rtol=1e-4, atol=1e-4)
    assert (model.sample(4, guidance=0.0) - whole).abs().max() > 1e-4


def test_a_resumed_run_is_the_straight_one(tmp_path):
    """Stages follow from the optimizer step, so that they go on where they were."""
    process = Consistency(levels=2, stages=5)

    assert resumed(partial(tiny_diffusion, process=process, num_classes=0), tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"coupling": "vae"}, "coupling is 'vae'; give 'variational' or 'independent' or 'optimal'"),
        ({"kernel": "ve"}, "kernel is 've'; give 'exploding' or 'straight'"),
        ({"schedule": "none"}, "schedule is 'none'; give 'doubling' or 'shrinking'"),
        ({"huber": 0}, "huber is 0; give a number above 0"),
        ({"stages": 0}, "stages is 0; give at least 1"),
        ({"beta": -1}, "beta is -1; give a number of at least 0"),
        ({"middle": 90.0}, r"the levels are sigma_min=0\.002, middle=90\.0, sigma_max=80\.0; give numbers that rise"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=f"^Consistency: {sentence}"):
        Consistency(**settings)


def test_guidance_leaves_the_encoder_as_it_is():
    model = tiny_diffusion(process=Consistency(coupling="variational"), guidance=1.0)
    asked = []
    part = model.network["encoder"].forward
    model.network["encoder"].forward = lambda x, time, label: (asked.append(len(x)), part(x, time, label))[1]
    model.sample(3, steps=2)

    # The generator twice, with the label and without; the encoder once, with it.
    assert model.network_calls == 5
    assert asked == [3]

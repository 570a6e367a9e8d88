"""Network inversion: layers that can be undone are, a layer deep down keeps less, and the terms are the paper's."""

import pytest
import torch
from captum.attr import Deconvolution
from skimage.data import astronaut
from torch import nn
from torch.nn.functional import interpolate

from lightning_vision.backbones import create
from lightning_vision.explain._pixel_ascent import total_variation
from lightning_vision.explain.network_inversion import invert_layer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def photograph(side):
    """scikit-image's astronaut's head, normalised, `(1, 3, side, side)`."""
    pixels = torch.from_numpy(astronaut()[:200, 130:330]).permute(2, 0, 1)[None].float() / 255
    small = interpolate(pixels, size=(side, side), mode="area")
    return (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


@pytest.mark.parametrize("kind", ["identity", "invertible"])
def test_row_110_what_can_be_undone_is_undone(kind):
    layer = nn.Sequential(nn.Identity()) if kind == "identity" else nn.Sequential(nn.Flatten(), nn.Linear(16, 16))
    if kind == "invertible":
        turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
        layer[1].weight.data = turn * torch.linspace(0.7, 1.5, 16)
    originals = noise(2, 1, 4, 4)
    found = invert_layer(layer, originals, str(len(layer) - 1), steps=100, alpha_weight=0, tv_weight=0)

    torch.testing.assert_close(found.images, originals, atol=2e-3, rtol=0)
    assert found.distance.max() < 1e-4
    # Priors alone find something else.
    alone = invert_layer(layer, originals, str(len(layer) - 1), steps=100, tv_weight=100.0)
    assert alone.error.min() > 50 * found.error.max()


def test_row_110_the_objective_decreases():
    network = seeded(lambda: create("resnet8_cifar", num_classes=10, in_channels=3))
    found = invert_layer(network, photograph(16), "stages", steps=40, mean=MEAN, std=STD)

    assert found.objective.shape == (41, 1)
    assert found.objective[-1] < 0.1 * found.objective[0]
    smoothed = found.objective.unfold(0, 10, 10).mean(-1)
    assert (smoothed.diff(dim=0) < 0).all()


def test_row_110_early_layers_give_a_photograph_back_better_than_late_ones():
    network = seeded(lambda: create("resnet8_cifar", num_classes=10, in_channels=3))
    errors = [
        invert_layer(network, photograph(32), layer, steps=60, mean=MEAN, std=STD).error.item()
        for layer in ("stem", "stages", "head")
    ]

    assert errors == sorted(errors)
    assert errors[0] < 0.03 and errors[1] > 0.1


def test_row_110_deconvolution_is_captums():
    """The map of families sends a reader there; a network of ours is what it takes, unchanged."""
    network = seeded(lambda: create("resnet8_cifar", num_classes=10, in_channels=3)).eval()
    with pytest.warns(UserWarning, match="backward hooks on ReLU"):
        found = Deconvolution(network).attribute(photograph(16).requires_grad_(), target=3)

    assert found.shape == (1, 3, 16, 16)
    assert found.abs().max() > 0


def test_the_objective_is_the_papers_at_a_point():
    """Every term by hand, of the first image before any step."""
    weights = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0, 1.0, 1.0, 1.0]])
    layer = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    layer[1].weight.data = weights
    original = torch.tensor([[[[0.1, 0.9], [0.4, 0.8]]]])
    start = torch.tensor([[[[0.2, 0.5], [0.7, 0.3]]]])
    knobs = {"alpha": 4.0, "alpha_weight": 0.3, "beta": 3.0, "tv_weight": 0.7, "mean": (0.5,), "std": (0.5,)}
    shown, wanted = (start - 0.5) / 0.5, weights @ ((original - 0.5) / 0.5).flatten()
    expected = (weights @ shown.flatten() - wanted).square().sum() / wanted.square().sum()
    expected = expected + 0.3 * shown.pow(4).mean() + 0.7 * total_variation(start, 3.0) / 4
    found = invert_layer(layer, (original - 0.5) / 0.5, "1", steps=1, start=shown, **knobs)

    torch.testing.assert_close(found.objective[0], expected)


def test_each_image_is_inverted_as_if_alone():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)))
    originals = noise(2, 1, 8, 8)
    both = invert_layer(network, originals, "1", steps=10, start=torch.full((2, 1, 8, 8), 0.5))
    alone = invert_layer(network, originals[1:], "1", steps=10, start=torch.full((1, 1, 8, 8), 0.5))

    torch.testing.assert_close(both.images[1:], alone.images)


def test_a_model_is_left_as_it_was_and_inference_mode_does_not_matter():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    plain = invert_layer(network, noise(1, 1, 8, 8), "2", steps=3)
    with torch.inference_mode():
        inside = invert_layer(network.requires_grad_(False), noise(1, 1, 8, 8), "2", steps=3)

    assert torch.equal(plain.images, inside.images)
    assert network.training and network[1].num_batches_tracked == 0
    assert not any(part._forward_hooks for part in network.modules())
    assert all(it.grad is None for it in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "3"}, "no layer 'parts.3'"),
        ({"layer": "2"}, "did not run"),
        ({"layer": "1"}, "puts out only zeros for image 0"),
        ({"images": torch.full((1, 1, 4, 4), -3.0)}, "pass the mean and std"),
        ({"start": torch.zeros(2, 1, 4, 4)}, "must be alike"),
        ({"alpha": 0.5}, "alpha is 0.5"),
        ({"steps": 0}, "steps is 0"),
        ({"tv_weight": -1.0}, "tv_weight is -1.0"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    class Silent(nn.Module):
        """Its second layer is dead, its third unused."""

        def __init__(self):
            super().__init__()
            self.parts = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Identity())
            self.parts[0].weight.data.fill_(-1)
            self.parts[0].bias.data.fill_(-1)

        def forward(self, images):
            return self.parts[1](self.parts[0](images)).flatten(1)

    given = {"images": noise(1, 1, 4, 4), "layer": "0", **arguments}
    with pytest.raises(ValueError, match=message):
        invert_layer(Silent(), **{**given, "layer": f"parts.{given['layer']}"})

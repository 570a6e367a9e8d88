"""Randomised layers: maps that read the model lose their likeness, maps that do not keep it; nothing else changes."""

from copy import deepcopy

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from lightning_vision.explain import randomised_layers

IMAGES = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def gradient(model, images):
    images = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(model.eval()(images)[:, 0].sum(), images)
    return found.abs().sum(1)


def edges(model, images):
    """Shows the image, whatever the model."""
    return (images - images.roll(1, 3)).abs().sum(1)


def test_layers_are_randomised_from_the_top():
    assert [it.layer for it in randomised_layers(network(), gradient, IMAGES)] == ["7", "3", "1", "0"]


def test_maps_of_the_model_change_and_maps_of_the_image_alone_do_not():
    ours, blind = (randomised_layers(network(), explain, IMAGES) for explain in (gradient, edges))

    assert ours[-1].spearman.abs().max() < 0.5
    assert ours[-1].ssim.max() < 0.5
    assert all(torch.allclose(it.spearman, torch.ones(3)) and torch.allclose(it.ssim, torch.ones(3)) for it in blind)


def test_the_rank_correlation_is_scipys():
    model = network()
    trained, found = gradient(model, IMAGES), randomised_layers(model, gradient, IMAGES)[1]
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(found.maps, trained, strict=True)]

    assert found.spearman.tolist() == pytest.approx(expected, abs=1e-6)


def test_batch_norms_measure_what_random_layers_give_them():
    model = network()
    # As if it had been trained on far larger values: with these statistics a random layer's outputs are all negative.
    model[1].running_mean.fill_(50)
    model[1].running_var.fill_(400)
    seen = []

    def note(model, images):
        maps = gradient(model, images)
        seen.append((model[1](model[0](images)), model[1].running_mean.clone()))
        return maps

    found = randomised_layers(model, note, IMAGES)
    (trained, kept), *_, (fresh, _) = seen

    assert found[-1].maps.amax((1, 2)).min() > 0
    assert fresh.mean((0, 2, 3)).abs().max() < 1e-5
    assert (fresh.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-3
    assert kept.unique().tolist() == [50]
    # Above the layer that is random nothing changes for those below it.
    assert seen[1][1].unique().tolist() == seen[2][1].unique().tolist() == [50]
    assert trained.max() < 0


def test_cascading_keeps_what_was_randomised_and_one_at_a_time_does_not():
    seen = []

    def note(model, images):
        seen.append([float(it.detach().sum()) for it in model.parameters()])
        return edges(model, images)

    model = network()
    randomised_layers(model, note, IMAGES)
    changed = [[a != b for a, b in zip(seen[0], later, strict=True)] for later in seen]
    # A fresh batch norm has weights 1 and biases 0 already.
    assert [sum(it) for it in changed] == [0, 2, 4, 4, 6]
    seen.clear()
    randomised_layers(model, note, IMAGES, cascading=False)
    changed = [[a != b for a, b in zip(seen[0], later, strict=True)] for later in seen]
    assert [sum(it) for it in changed] == [0, 2, 2, 0, 2]


def test_the_model_and_the_global_stream_are_left_alone_and_the_seed_decides():
    model = network()
    before, flags = deepcopy(model.state_dict()), [part.training for part in model.modules()]
    stream = torch.get_rng_state()
    first, second = (randomised_layers(model, gradient, IMAGES, seed=5) for _ in range(2))
    other = randomised_layers(model, gradient, IMAGES, seed=6)

    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == [False] * len(flags)  # `gradient` puts it into eval mode
    assert all(torch.equal(a.maps, b.maps) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[-1].maps, other[-1].maps)


def test_streams_of_other_devices_are_not_seeded(monkeypatch):
    """What `torch.manual_seed` calls for them; without a device it is remembered until there is one."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = network()
    torch.manual_seed(0)
    assert len(seeded) == 2
    randomised_layers(model, gradient, IMAGES)

    assert len(seeded) == 2


@pytest.mark.parametrize("cascading", [True, False])
def test_maps_are_compared_at_some_layers_as_among_all(cascading):
    asked = []

    def note(model, images):
        asked.append(model)
        return gradient(model, images)

    every = randomised_layers(network(), gradient, IMAGES, cascading, seed=2)
    some = randomised_layers(network(), note, IMAGES, cascading, seed=2, layers=["0", "3"])

    assert [it.layer for it in some] == ["3", "0"]
    assert len(asked) == 3
    assert all(torch.equal(a.maps, b.maps) for a, b in zip(some, (every[1], every[3]), strict=True))


def test_parameters_without_a_way_to_reset_are_drawn_like_themselves():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(400, generator=torch.Generator().manual_seed(3)) * 2 + 5)

        def forward(self, images):
            return images.flatten(1) * self.weight[:256]

    drawn = []

    def note(model, images):
        drawn.append(model[0].weight.clone())
        return edges(model, images)

    randomised_layers(nn.Sequential(Scale(), nn.Flatten()), note, IMAGES)

    assert not torch.equal(drawn[0], drawn[1])
    assert float(drawn[1].mean()) == pytest.approx(5, abs=0.4)
    assert float(drawn[1].std()) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("layers", [["nowhere"], ["0", "2"], []])
def test_layers_that_are_not_randomised_are_refused(layers):
    with pytest.raises(ValueError, match=r"give some of those that are randomised, as '7'"):
        randomised_layers(network(), edges, IMAGES, layers=layers)


@pytest.mark.parametrize(
    ("model", "explain", "message"),
    [
        (nn.Flatten(), edges, "Flatten has no layer with parameters"),
        (network(), lambda model, images: images, r"explain gave \(3, 1, 16, 16\) for images \(3, 1, 16, 16\)"),
    ],
)
def test_what_cannot_be_checked_is_refused(model, explain, message):
    with pytest.raises(ValueError, match=message):
        randomised_layers(model, explain, IMAGES)

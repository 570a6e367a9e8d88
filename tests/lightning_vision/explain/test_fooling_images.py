"""Fooling images: the closed form of a linear softmax, archives that only improve, a digits network that is fooled."""

import pytest
import torch
from torch import nn

from lightning_vision.explain._map_elites import Painter, Pixels, map_elites, mutate
from lightning_vision.explain.fooling_images import FoolingImages, make_fooling_images
from support.modules import small_network


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_softmax(seed=0):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    network[1].weight.data = torch.randn(5, 16, generator=seeded(seed))
    network[1].bias.data = torch.randn(5, generator=seeded(seed + 100))
    return network


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_row_25_the_probability_rises_monotonically_for_a_linear_softmax(seed):
    found = make_fooling_images(linear_softmax(seed), (1, 4, 4), steps=60, lr=0.01, threshold=2.0)

    assert found.history.shape == (61, 1, 5)
    assert (found.history.diff(dim=0) >= -1e-6).all()
    assert (found.history[-1] > found.history[0]).all()


def test_row_25_a_step_goes_where_the_closed_form_says():
    """The gradient of log p_c is w_c - sum_k p_k w_k; one step of root mean square lr along it, far from the edges."""
    network = linear_softmax()
    found = make_fooling_images(network, (1, 4, 4), [2], steps=1, lr=1e-3, threshold=2.0)
    twice = make_fooling_images(network, (1, 4, 4), [2], steps=2, lr=1e-3, threshold=2.0)
    with torch.no_grad():
        share = network(found.images[0]).softmax(1)[0]
    weight = network[1].weight.detach()
    closed = weight[2] - share @ weight
    step = (twice.images - found.images).flatten() / 1e-3
    inside = ((twice.images > 0) & (twice.images < 1)).flatten()

    assert inside.sum() >= 14
    torch.testing.assert_close(step[inside], (closed / closed.square().mean().sqrt())[inside], atol=2e-3, rtol=0)
    # The class's weights alone are another direction.
    assert (step - weight[2] / weight[2].square().mean().sqrt())[inside].abs().max() > 0.1


@pytest.mark.parametrize("method", ["evolution", "cppn"])
def test_row_25_the_archives_best_never_decreases(method):
    network = linear_softmax()
    found = make_fooling_images(
        network, (1, 4, 4), method=method, steps=30, runs=2, offspring=16, threshold=2.0, mutation_rate=0.3
    )
    with torch.no_grad():
        asked = network(found.images.flatten(0, 1)).softmax(1).view(2, 5, 5).diagonal(dim1=1, dim2=2)

    assert found.history.shape == (31, 2, 5)
    assert (found.history.diff(dim=0) >= 0).all()
    assert (found.history[-1] > found.history[0]).any()
    torch.testing.assert_close(asked, found.confidence)


@pytest.mark.parametrize("method", ["gradient", "evolution", "cppn"])
def test_row_25_a_digits_network_is_sure_of_noise(method, digits_network, digits):
    found = make_fooling_images(digits_network, (1, 8, 8), method=method, steps=100, threshold=0.999)

    assert found.confidence.max() > 0.99
    assert found.images.min() >= 0 and found.images.max() <= 1
    # None is a digit of the data: farther from all of them than they are from their neighbours.
    apart = torch.cdist(digits[0].flatten(1), digits[0].flatten(1)).fill_diagonal_(9).amin(1).quantile(0.99)
    assert (
        torch.cdist(found.images.flatten(0, 1).flatten(1), digits[0].flatten(1))
        .amin(1)[found.confidence[0] > 0.99]
        .min()
        > apart
    )


def test_row_25_images_stay_in_the_pixel_range_as_normalised():
    mean, std = (0.4, 0.2), (0.2, 0.5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 3))
    low, high = torch.tensor([-2.0, -0.4]).view(2, 1, 1), torch.tensor([3.0, 1.6]).view(2, 1, 1)
    for method in ("gradient", "evolution", "cppn"):
        found = make_fooling_images(
            network, (2, 3, 3), method=method, steps=30, lr=0.3, mean=mean, std=std, threshold=2.0
        )

        assert (found.images >= low - 1e-5).all() and (found.images <= high + 1e-5).all()


def test_confidence_is_told_a_class_over_runs():
    found = make_fooling_images(linear_softmax(), (1, 4, 4), [3, 1], runs=4, steps=3, threshold=2.0)
    by_hand = FoolingImages(found.images, found.classes, torch.tensor([[0.1], [0.2], [0.4], [0.9]]), found.history)

    assert found.images.shape == (4, 2, 1, 4, 4)
    assert found.classes.tolist() == [3, 1]
    torch.testing.assert_close(found.confidence, found.history[-1])
    assert by_hand.mean.item() == pytest.approx(0.4)
    assert by_hand.median.item() == pytest.approx(0.3)


def test_batches_change_nothing_and_those_done_early_wait():
    whole = make_fooling_images(linear_softmax(), (1, 4, 4), steps=200, threshold=0.7)
    parts = make_fooling_images(linear_softmax(), (1, 4, 4), steps=200, threshold=0.7, batch_size=2)

    assert (whole.confidence >= 0.7).all() and len(whole.history) < 201
    assert (parts.confidence >= 0.7).all() and len(parts.history) <= len(whole.history)
    shared = len(parts.history) - 1
    assert (parts.history.diff(dim=0)[shared - 1] == 0).any() or shared < 2
    torch.testing.assert_close(parts.history[1], whole.history[1])


def test_decay_keeps_images_nearer_to_the_mean_of_the_data():
    free, held = (
        make_fooling_images(linear_softmax(), (1, 4, 4), steps=100, threshold=2.0, mean=(0.5,), std=(0.5,), decay=decay)
        for decay in (0.0, 0.05)
    )

    assert held.images.square().mean() < 0.5 * free.images.square().mean()


def test_mutations_move_the_share_of_genes_that_was_asked_by_a_little():
    genes = torch.full((100, 1000), 0.5)
    moved = mutate(genes, 0.1, seeded()) - genes

    assert (moved != 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(mutate(genes, 0.0, seeded()), genes)
    # Of the polynomial mutation with eta 15 the mean size is 1 / 17.
    assert moved[moved != 0].abs().mean().item() == pytest.approx(1 / 17, rel=0.02)
    assert moved[moved != 0].mean().item() == pytest.approx(0, abs=0.002)


def test_a_child_takes_every_niche_where_it_is_better():
    """Two niches want the same: one good child ends in both, though it came from one."""
    elites, history = map_elites(
        lambda pixels: pixels.flatten(1).mean(1, keepdim=True).expand(-1, 2),
        Pixels((1, 2, 2)),
        1,
        2,
        20,
        8,
        0.5,
        2.0,
        seeded(),
    )

    assert torch.equal(elites[0, 0], elites[0, 1])
    torch.testing.assert_close(elites[0, 0].mean(), history[-1, 0, 0])


def test_elites_of_every_niche_breed():
    """Without mutations children are their parents: of the second generation each niche's elite is one."""
    shown = []

    def confidences(pixels):
        shown.append(pixels.flatten(1))
        return pixels.flatten(1)

    map_elites(confidences, Pixels((1, 2, 2)), 1, 4, 1, 64, 0.0, 2.0, seeded(1))
    elites = shown[0][shown[0].argmax(0)]

    assert len(elites.unique(dim=0)) == 4
    assert torch.equal(shown[1].unique(dim=0), elites.unique(dim=0))


def test_a_painter_paints_smoothly_and_by_its_genes():
    painter = Painter((3, 16, 16))
    genes = torch.rand(6, painter.genes, generator=seeded())
    pictures = painter.paint(genes)
    still = painter.paint(torch.full((1, painter.genes), 0.5))

    assert pictures.shape == (6, 3, 16, 16)
    assert pictures.min() >= 0 and pictures.max() <= 1
    # Weights of zero paint middle grey.
    torch.testing.assert_close(still, torch.full((1, 3, 16, 16), 0.5))
    assert pictures.diff(dim=3).abs().mean() < 0.15
    assert (pictures.flatten(1).std(1) > 0.01).any()


def test_a_seed_says_everything_and_a_model_in_training_is_left_as_it_was():
    network = small_network()
    before = torch.get_rng_state()
    for method in ("gradient", "evolution", "cppn"):
        knobs = {"method": method, "steps": 3, "offspring": 8}
        first = make_fooling_images(network, (1, 8, 8), **knobs)
        with torch.inference_mode():
            again = make_fooling_images(network, (1, 8, 8), **knobs)
        other = make_fooling_images(network, (1, 8, 8), seed=1, **knobs)

        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)
    assert torch.equal(before, torch.get_rng_state())
    assert all(part.training for part in network.modules())
    assert all(it.requires_grad and it.grad is None for it in network.parameters())
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "choose gradient, evolution or cppn"),
        ({"size": (4, 4)}, "must be channels, height and width"),
        ({"classes": [5]}, "classes 0 to 4"),
        ({"classes": []}, "classes are"),
        ({"steps": 0}, "steps is 0"),
        ({"mutation_rate": 1.5}, "must be 0 to 1"),
        ({"model": nn.Identity()}, "no logits"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_fooling_images(**{"model": linear_softmax(), "size": (1, 4, 4), **arguments})

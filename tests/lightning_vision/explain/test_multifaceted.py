"""Multifaceted visualisation: a neuron with two known facets, clusters of known groups, the resting frame."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from lightning_vision.explain.multifaceted import centre_mask, facet_clusters, visualise_facets


class EitherTemplate(nn.Module):
    """Answers `max(<w1, x>, <w2, x>)` and, as class 1, its negative; images `(B, 1, 8, 8)`."""

    def __init__(self):
        super().__init__()
        self.templates = nn.Linear(64, 2, bias=False)
        rows = torch.linspace(-1, 1, 8)
        upper, left = torch.where(rows < 0, 1.0, -1.0)[:, None].expand(8, 8), torch.cos(4 * rows).expand(8, 8)
        self.templates.weight.data = torch.stack([upper.flatten(), (left - left.mean()).flatten()]) / 8

    def forward(self, images):
        either = self.templates(images.flatten(1)).amax(1, keepdim=True)
        return torch.cat([either, -either], 1)


def of_both_templates(number=40):
    """Images in turn of the one and the other template, faint under noise, and as many of neither; the groups."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(number) % 2
    pattern = EitherTemplate().templates.weight.detach().view(2, 1, 8, 8)
    noise = 0.05 * torch.randn(2 * number, 1, 8, 8, generator=generator)
    images = 0.5 + noise
    images[:number] += pattern[group]
    return images.clamp(0, 1), group


def correlation(one, other):
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


@pytest.fixture(scope="module")
def found():
    images, _ = of_both_templates()
    return visualise_facets(EitherTemplate(), images, 0, facets=2, per_mean=10, top=40, steps=60, tv_weight=0.05)


def test_row_113_two_facets_are_found_each_like_one_template(found):
    templates = EitherTemplate().templates.weight.detach()
    likeness = [[correlation(image, template) for template in templates] for image in found.images]
    best = [row.index(max(row)) for row in likeness]

    assert sorted(best) == [0, 1]
    assert [row[index] > 0.8 for row, index in zip(likeness, best, strict=True)] == [True, True]
    assert [row[1 - index] < 0.3 for row, index in zip(likeness, best, strict=True)] == [True, True]


def test_row_113_the_activation_rises_over_the_start_image(found):
    network = EitherTemplate()

    assert (found.end > 1.5 * found.start).all()
    with torch.no_grad():
        torch.testing.assert_close(network(found.means)[:, 0], found.start)
        torch.testing.assert_close(network(found.images)[:, 0], found.end)


def test_row_113_facets_are_the_known_groups(found):
    _, group = of_both_templates()

    # The forty that show a template, and none of the forty of noise.
    assert sorted(found.chosen.tolist()) == list(range(40))
    assert adjusted_rand_score(group[found.chosen], found.facet) == 1
    # Facets go with `chosen`, by falling activation, and not with the images as given.
    assert abs(adjusted_rand_score(group, found.facet)) < 0.2


def test_row_113_a_seed_says_everything(found):
    images, _ = of_both_templates()
    knobs = {"facets": 2, "per_mean": 10, "top": 40, "steps": 60, "tv_weight": 0.05}
    network = EitherTemplate().requires_grad_(False)
    before = torch.get_rng_state()
    with torch.inference_mode():
        again = visualise_facets(network, images, 0, **knobs)

    assert all(
        torch.equal(getattr(found, name), getattr(again, name)) for name in ("images", "means", "facet", "embedding")
    )
    assert torch.equal(before, torch.get_rng_state())


def test_row_113_one_picture_from_the_mean_of_all_shows_only_one_template():
    """What facets are for: without them the start is between both, and one wins."""
    images, _ = of_both_templates()
    one = visualise_facets(EitherTemplate(), images, 0, facets=1, per_mean=40, top=40, steps=60, tv_weight=0.05)
    likeness = [correlation(one.images, template) for template in EitherTemplate().templates.weight.detach()]

    assert max(likeness) > 0.8 and min(likeness) < 0.5


def test_a_start_is_the_mean_of_the_members_nearest_the_centre():
    images, _ = of_both_templates()
    found = visualise_facets(EitherTemplate(), images, 0, facets=2, per_mean=3, top=40, steps=1, lr=0.0, tv_weight=0)
    for index in range(2):
        members = (found.facet == index).nonzero().squeeze(1)
        places = found.embedding[members]
        nearest = members[(places - places.mean(0)).norm(dim=1).argsort()[:3]]

        torch.testing.assert_close(found.means[index], images[found.chosen[nearest]].mean(0))
    torch.testing.assert_close(found.images, found.means)


def test_only_the_middle_moves_while_the_frame_rests():
    images, _ = of_both_templates()
    knobs = {"facets": 2, "top": 40, "steps": 4, "tv_weight": 0, "jitter": 0, "margin": 0.25}
    resting = visualise_facets(EitherTemplate(), images, 0, centre=(0.0, 1.0), **knobs)
    moving = visualise_facets(EitherTemplate(), images, 0, centre=(0.5, 0.5), **knobs)
    change = (resting.images - resting.means).abs().sum((0, 1)) > 0

    assert change[2:6, 2:6].any()
    assert not change[:2].any() and not change[6:].any() and not change[:, :2].any() and not change[:, 6:].any()
    assert ((moving.images - moving.means).abs().sum((0, 1)) > 0)[:2].any()


def test_the_mask_is_whole_outside_its_part_of_the_run():
    sums = [int(centre_mask(done, (8, 10), (0.5, 0.75), 0.2).sum()) for done in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)]

    assert sums == [80, 80, 36, 36, 80, 80]


def test_known_groups_of_features_are_told_apart_by_size():
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0] * 20, [4.0] * 20, [-4.0] * 20])
    group = torch.tensor([2] * 30 + [0] * 20 + [1] * 10)[torch.randperm(60, generator=generator)]
    facet, places = facet_clusters(middles[group] + torch.randn(60, 20, generator=generator), 3, pca=5)

    assert adjusted_rand_score(group, facet) == 1
    assert facet.bincount().tolist() == [30, 20, 10]
    assert places.shape == (60, 2)


def test_features_of_a_named_layer_decide(digits_network, digits):
    images = digits[0][:60]
    named = visualise_facets(digits_network, images, 8, facets=2, steps=1, features="5")
    head = visualise_facets(digits_network, images, 8, facets=2, steps=1)
    other = visualise_facets(digits_network, images, 8, facets=2, steps=1, features="0")

    # What the head is given is what the layer before it puts out.
    torch.testing.assert_close(named.embedding, head.embedding)
    assert not torch.allclose(other.embedding, head.embedding)


class HeadFirst(nn.Module):
    """Defines its head before its body, and last a gate that runs and answers nothing of its own."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.gate = nn.Linear(16, 2), nn.Linear(64, 16), nn.Linear(64, 1)

    def forward(self, images):
        flat = images.flatten(1)
        return self.head(self.body(flat).tanh()) * self.gate(flat).sigmoid()


def test_what_is_embedded_goes_into_the_layer_that_answers_and_not_into_the_last_defined():
    images, _ = of_both_templates(20)
    network = HeadFirst()
    embedded = visualise_facets(network, images, 0, facets=2, steps=1).embedding
    with torch.no_grad():
        deep = network.body(images.flatten(1)).tanh()
        chosen = network(images)[:, 0].argsort(descending=True, stable=True)

    torch.testing.assert_close(embedded, facet_clusters(deep[chosen], 2)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"facets": 0}, "facets is 0"),
        ({"facets": 30}, "20 images for 30 facets"),
        ({"top": 3}, "3 images for 2 facets; give at least 4"),
        ({"channel": 7}, "classes 0 to 1"),
        ({"layer": "nowhere"}, "no layer 'nowhere'"),
        ({"features": "nowhere"}, "no layer 'nowhere'"),
        ({"images": torch.full((20, 1, 8, 8), 0.5)}, "only 1 different"),
        ({"images": torch.full((20, 1, 8, 8), 3.0)}, "pass the mean and std"),
        ({"images": torch.rand(20, 8, 8)}, "must be floats"),
        ({"centre": (0.9, 0.8)}, "centre is"),
        ({"margin": 0.5}, "margin 0.5"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    given = {"images": of_both_templates(10)[0], "channel": 0, "facets": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        visualise_facets(EitherTemplate(), **given)


def test_a_network_without_a_head_asks_for_the_layer_of_features():
    network = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())
    with pytest.raises(ValueError, match="name features="):
        visualise_facets(network, of_both_templates()[0], 0, facets=2)
    assert len(visualise_facets(network, of_both_templates()[0], 0, facets=2, features="0", steps=1).images) == 2

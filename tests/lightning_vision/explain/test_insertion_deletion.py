"""Insertion and deletion: curves by hand, the best order by brute force, random orders, and quantus."""

from itertools import permutations

import numpy as np
import pytest
import quantus
import torch
from torch import Tensor, nn

from lightning_vision.explain import deletion, insertion, perturbation_curve

ANSWERS = {"batch_size": 1024}


class Additive(nn.Module):
    """Two classes: the score of class 0 is the sum of what each pixel contributes, that of class 1 is zero."""

    def __init__(self, contributions: Tensor) -> None:
        super().__init__()
        self.contributions = contributions

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.contributions).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


CONTRIBUTIONS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.1, -0.3]])
PIXELS = torch.ones(1, 1, 2, 3)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def test_a_curve_worked_out_by_hand():
    curve = perturbation_curve(
        Additive(CONTRIBUTIONS), PIXELS, torch.zeros_like(PIXELS), CONTRIBUTIONS[None], 0, steps=6
    )
    # Taken away from the largest on: 2, 1, 0.5, 0.1, -0.3, -1 of a sum of 2.3.
    left = torch.tensor([[2.3, 0.3, -0.7, -1.2, -1.3, -1.0, 0.0]])

    torch.testing.assert_close(curve, left.sigmoid())


def test_the_area_is_that_under_the_curve():
    model = Additive(CONTRIBUTIONS)
    curve = perturbation_curve(model, PIXELS, torch.zeros_like(PIXELS), CONTRIBUTIONS[None], 0, steps=3)
    expected = (curve[0, 0] / 2 + curve[0, 1] + curve[0, 2] + curve[0, 3] / 2) / 3

    assert float(deletion(model, PIXELS, CONTRIBUTIONS[None], 0, steps=3)) == pytest.approx(float(expected))


def test_row_53_the_order_of_the_contributions_is_the_best_of_all():
    model = Additive(CONTRIBUTIONS)
    orders = torch.tensor(list(permutations(range(6)))).float().view(-1, 2, 3)
    images = PIXELS.expand(len(orders), -1, -1, -1)
    gone = deletion(model, images, orders, 0, steps=6, **ANSWERS)
    come = insertion(model, images, orders, 0, steps=6, baseline="zero", **ANSWERS)
    own = [it(model, PIXELS, CONTRIBUTIONS[None], 0, steps=6, baseline="zero") for it in (deletion, insertion)]
    reversed_order = float(deletion(model, PIXELS, -CONTRIBUTIONS[None], 0, steps=6))

    assert float(own[0]) == pytest.approx(float(gone.min()))
    assert float(own[1]) == pytest.approx(float(come.max()))
    assert reversed_order == pytest.approx(float(gone.max()))


def test_row_53_a_constant_map_scores_as_a_random_order():
    model = Additive(CONTRIBUTIONS)
    orders = torch.tensor(list(permutations(range(6)))).float().view(-1, 2, 3)
    every = deletion(model, PIXELS.expand(len(orders), -1, -1, -1), orders, 0, steps=6, **ANSWERS)
    draws = 300
    generator = torch.Generator().manual_seed(0)
    constant = torch.ones(1, 2, 3)
    found = torch.cat([deletion(model, PIXELS, constant, 0, steps=6, generator=generator) for _ in range(draws)])

    assert abs(float(found.mean() - every.mean())) < 4 * float(every.std()) / draws**0.5
    # The order of the rows, which a plain sort gives equal values, is another one.
    raster = torch.arange(6.0).flip(0).view(1, 2, 3)
    assert abs(float(deletion(model, PIXELS, raster, 0, steps=6)) - float(every.mean())) > 0.02


def test_row_53_it_equals_quantus():
    model = convolutional().eval()
    generator = torch.Generator().manual_seed(1)
    images, maps = torch.randn(5, 1, 8, 8, generator=generator), torch.rand(5, 8, 8, generator=generator)
    said = model(images).argmax(1)
    flipping = quantus.PixelFlipping(
        features_in_step=4,
        perturb_baseline="black",
        abs=False,
        normalise=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    theirs = flipping(
        model=model,
        x_batch=images.numpy(),
        y_batch=said.numpy(),
        a_batch=maps.numpy()[:, None],
        device="cpu",
        channel_first=True,
        softmax=True,
    )
    # Their black is each image's smallest pixel, and they leave out the untouched image.
    black = images.amin((1, 2, 3), keepdim=True).expand_as(images)
    ours = perturbation_curve(model, images, black, maps, said, steps=16)[:, 1:]

    np.testing.assert_allclose(ours.numpy(), np.array(theirs), atol=1e-6)


def test_an_image_scores_alike_wherever_it_stands_in_a_batch():
    model = convolutional()
    images, maps = torch.rand(4, 1, 8, 8), torch.rand(4, 8, 8).round()

    alone = torch.cat([deletion(model, images[it : it + 1], maps[it : it + 1], 0, steps=8) for it in range(4)])
    torch.testing.assert_close(deletion(model, images, maps, 0, steps=8), alone)


def test_unchanged_first_and_all_changed_last():
    model = convolutional().eval()
    images, maps = torch.rand(2, 1, 9, 7), torch.rand(2, 9, 7)
    curve = perturbation_curve(model, images, torch.zeros_like(images), maps, 1, steps=5)

    torch.testing.assert_close(curve[:, 0], model(images).softmax(1)[:, 1])
    torch.testing.assert_close(curve[:, -1], model(torch.zeros_like(images)).softmax(1)[:, 1])


def test_what_is_not_there_yet_is_blurred_by_a_window_of_eleven_pixels():
    seen = []

    def note(images):
        seen.append(images.clone())
        return torch.zeros(len(images), 2)

    dot = torch.zeros(1, 1, 31, 31)
    dot[..., 15, 15] = 1
    model = nn.Module()
    model.forward = note
    insertion(model, dot, torch.rand(1, 31, 31), 0, steps=1)
    blurred = seen[0][0, 0]
    weights = torch.exp(-((torch.arange(11.0) - 5) ** 2) / 50)

    assert blurred.nonzero().amin(0).tolist() == [10, 10]
    assert blurred.nonzero().amax(0).tolist() == [20, 20]
    torch.testing.assert_close(blurred[15, 10:21], weights * weights[5] / weights.sum() ** 2)


def test_each_batch_is_scored_by_its_own_classes():
    model = convolutional()
    images, maps = torch.randn(4, 1, 8, 8), torch.rand(4, 8, 8)
    classes = torch.tensor([0, 1, 2, 0])

    whole = deletion(model, images, maps, classes, steps=4)
    torch.testing.assert_close(deletion(model, images, maps, classes, steps=4, batch_size=2), whole)
    assert not torch.allclose(deletion(model, images, maps, classes.roll(1), steps=4), whole)


def test_the_predicted_class_is_the_one_of_the_whole_image_and_batches_do_not_matter():
    model = convolutional()
    images, maps = torch.randn(5, 1, 16, 16), torch.rand(5, 16, 16)
    said = model.eval()(images).argmax(1)
    model.train()
    whole = insertion(model, images, maps, steps=8)

    torch.testing.assert_close(insertion(model, images, maps, said, steps=8, batch_size=2), whole)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": torch.rand(2, 8, 7)}, r"maps are \(2, 8, 7\) for images \(2, 1, 8, 8\); give one \(H, W\) an image"),
        ({"steps": 0}, "steps is 0; give 1 to 64"),
        ({"steps": 65}, "steps is 65; give 1 to 64"),
        ({"baseline": "grey"}, "baseline is 'grey'; give 'blur' or 'zero'"),
        ({"class_index": 3}, r"class_index is \[3\] and the model has classes 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"maps": torch.rand(2, 8, 8), "class_index": 0, **change}

    with pytest.raises(ValueError, match=message):
        insertion(convolutional(), torch.rand(2, 1, 8, 8), **arguments)

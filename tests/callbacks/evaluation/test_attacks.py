"""FGSM equals captum's and foolbox's; C&W finds what geometry says; both notice a wrong variant."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.robust import FGSM
from torch import nn

from lightning_vision.callbacks.evaluation.attacks import carlini_wagner, fgsm

with warnings.catch_warnings():
    # It imports from a part of scipy that has moved.
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox


def network(classes=10):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, classes)]
    return nn.Sequential(*layers).eval()


def pixels(count=12):
    draws = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=draws), torch.randint(10, (count,), generator=draws)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_row_44_fgsm_equals_captums(epsilon):
    model, (images, labels) = network(), pixels()
    theirs = FGSM(model, nn.CrossEntropyLoss(reduction="none"), lower_bound=0, upper_bound=1)
    # It would leave pixels alone whose gradient is below a millionth.
    theirs.zero_thresh = 0.0
    expected = theirs.perturb(images.clone().requires_grad_(True), epsilon, target=labels)

    assert torch.equal(expected, fgsm(model, images, labels, epsilon))


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_row_44_fgsm_equals_foolboxs(epsilon):
    model, (images, labels) = network(), pixels()
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    expected, _, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=epsilon)

    assert torch.allclose(expected, fgsm(model, images, labels, epsilon), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 1.0])
def test_row_44_no_pixel_moves_further_than_epsilon(epsilon):
    images, labels = pixels()
    moved = fgsm(network(), images, labels, epsilon)

    assert (moved - images).abs().max() <= epsilon + 1e-7
    assert moved.min() >= 0 and moved.max() <= 1


def test_row_44_no_step_leaves_the_images():
    images, labels = pixels()

    assert torch.equal(images, fgsm(network(), images, labels, 0.0))


def test_a_step_down_the_loss_is_no_attack():
    model, (images, labels) = network(), pixels()
    up, down = fgsm(model, images, labels, 0.02), 2 * images - fgsm(model, images, labels, 0.02, -9, 9)
    before, after, mutant = (F.cross_entropy(model(it), labels) for it in (images, up, down))

    assert mutant < before < after


def test_gradients_may_be_off_and_images_stay():
    model, (images, labels) = network(), pixels()
    kept = images.clone()
    with torch.no_grad():
        moved = fgsm(model, images, labels, 0.1)
        wrong = carlini_wagner(model, images, labels, steps=2, searches=1)

    assert torch.equal(kept, images)
    assert not (moved.requires_grad or wrong.requires_grad)
    assert [it.grad for it in model.parameters()] == [None] * 6


class Line(nn.Module):
    """Two classes, told apart by w x + b: logits (w x + b) / 2 and their negative."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images):
        half = (images.flatten(1) @ self.weight + self.bias) / 2
        return torch.stack([half, -half], dim=1)


THOROUGH = {"steps": 100, "searches": 4, "lr": 0.003, "first_c": 0.5, "low": -4, "high": 5}


def line_and_images():
    draws = torch.Generator().manual_seed(2)
    model = Line(torch.randn(16, generator=draws), 0.3)
    images = torch.rand(6, 1, 4, 4, generator=draws)
    # On the line first, then away from it, three to either side.
    score = model(images)[:, :1] * 2
    margin = torch.tensor([0.5, 1.0, 2.0, -0.5, -1.0, -2.0])
    images = images + ((margin[:, None] - score) * model.weight / model.weight.square().sum()).view(6, 1, 4, 4)
    return model, images, (margin < 0).long(), margin.abs()


def test_row_44_on_a_linear_classifier_the_least_change_is_the_margin_over_the_norm():
    """The range is wide, so that no image is cut; a hundredth is what Adam's last steps leave over."""
    model, images, labels, margin = line_and_images()
    moved = carlini_wagner(model, images, labels, **THOROUGH)
    expected = margin / model.weight.norm()
    found = (moved - images).flatten(1).norm(dim=1)

    assert (model(moved).argmax(1) != labels).all()
    assert torch.allclose(expected, found, rtol=1e-2)
    assert (found > expected * (1 - 1e-5)).all()
    assert (F.cosine_similarity((moved - images).flatten(1), model.weight, dim=1).abs() > 0.999).all()


def test_confidence_asks_for_that_lead():
    model, images, labels, margin = line_and_images()
    moved = carlini_wagner(model, images, labels, kappa=2.0, **THOROUGH)
    logits = model(moved)

    assert ((logits.amax(1) - logits.amin(1)) >= 2.0).all()
    assert torch.allclose((margin + 2) / model.weight.norm(), (moved - images).flatten(1).norm(dim=1), rtol=1e-2)


def test_a_single_c_is_a_worse_attack():
    """A mutant without the search: what a large c leaves is further away than need be."""
    model, images, labels, margin = line_and_images()
    moved = carlini_wagner(model, images, labels, steps=60, searches=1, lr=0.05, first_c=100.0, low=-4, high=5)
    found = (moved - images).flatten(1).norm(dim=1)

    assert (found / (margin / model.weight.norm())).max() > 1.5


def test_targets_are_reached():
    model, (images, _) = network(), pixels()
    wanted = (model(images).argmax(1) + 1) % 10
    moved = carlini_wagner(model, images, wanted, targeted=True, steps=50, searches=2, lr=0.05, first_c=10.0)

    assert torch.equal(wanted, model(moved).argmax(1))
    assert moved.min() >= 0 and moved.max() <= 1


def test_the_attack_is_no_weaker_than_foolboxs():
    model, (images, _) = network(), pixels()
    labels = model(images).argmax(1)
    settings = {"steps": 40, "binary_search_steps": 4, "stepsize": 0.05, "initial_const": 10.0, "abort_early": False}
    attack = foolbox.attacks.L2CarliniWagnerAttack(**settings)
    theirs, _, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=None)
    ours = carlini_wagner(model, images, labels, steps=40, searches=4, lr=0.05, first_c=10.0)
    expected, found = ((it - images).flatten(1).norm(dim=1) for it in (theirs, ours))

    assert (model(ours).argmax(1) != labels).all()
    assert torch.allclose(expected, found, rtol=0.02)


def test_where_nothing_succeeds_the_image_stays():
    images, labels = pixels(3)
    stubborn = carlini_wagner(lambda x: x.sum() * 0 + F.one_hot(labels, 10).float(), images, labels, steps=3)

    assert torch.equal(images, stubborn)


def test_an_image_is_attacked_alike_alone_and_among_others():
    model, (images, labels) = network(), pixels(4)
    settings = {"steps": 20, "searches": 3, "first_c": 1.0}
    alone = torch.cat([carlini_wagner(model, images[i : i + 1], labels[i : i + 1], **settings) for i in range(4)])

    assert torch.allclose(alone, carlini_wagner(model, images, labels, **settings), atol=1e-5)

"""Guidance: the identities of centred kernel alignment, training against a loop by hand, a guide that is left alone.

Conformance (resume, DDP, precision, undo, neutral run) is proved in `conformance/`, what a teacher sees in
`hooks/test_taught.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.backbones import create
from lightning_vision.callbacks import Guidance
from lightning_vision.callbacks.distillation.guidance import even_pairs, linear_cka
from support.compare import distance, seeded
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


def features(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(width):
    return torch.linalg.qr(features(width, width, seed=9)).Q


def by_features(a, b):
    """CKA as Kornblith et al. 2019 have it for fewer features than samples: |B'A|^2 / (|A'A| |B'B|)."""
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    return (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())


def test_row_90_cka_of_a_layer_with_itself_is_1():
    a = features(20, 3, 4, 4)

    assert linear_cka(a, a).item() == pytest.approx(1, abs=1e-12)
    assert linear_cka(a.float(), a.float()).item() == pytest.approx(1, abs=1e-6)


def test_row_90_cka_does_not_see_orthogonal_maps_scale_or_offset():
    a, b = features(20, 7), features(20, 5, seed=1)
    moved = -1e6 * a @ rotation(7) + 3

    assert linear_cka(moved, b).item() == pytest.approx(linear_cka(a, b).item(), abs=1e-9)
    assert linear_cka(a, 1e-9 * b @ rotation(5)).item() == pytest.approx(linear_cka(a, b).item(), abs=1e-9)


def test_cka_sees_maps_that_are_not_orthogonal():
    a, b = features(20, 7), features(20, 5, seed=1)
    stretched = a * torch.tensor([10.0, 1, 1, 1, 1, 1, 1])

    assert abs(linear_cka(stretched, b) - linear_cka(a, b)) > 1e-2


def test_row_90_cka_is_symmetric_and_equals_its_other_form():
    a, b = features(20, 7), features(20, 5, seed=1)

    assert linear_cka(a, b).item() == pytest.approx(linear_cka(b, a).item(), abs=1e-14)
    assert linear_cka(a, b).item() == pytest.approx(by_features(a, b).item(), abs=1e-12)


def test_without_the_mean_taken_away_it_would_be_another_number():
    a, b = features(20, 7) + 1, features(20, 5, seed=1) + 1
    uncentred = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())

    assert abs(uncentred - linear_cka(a, b)) > 0.1


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("seed", range(5))
def test_row_90_cka_is_between_0_and_1(scale, seed):
    a, b = scale * features(6, 50, seed=seed, dtype=torch.float32), features(6, 2, seed=seed + 5, dtype=torch.float32)

    assert 0 <= linear_cka(a, b).item() <= 1
    assert linear_cka(a, b).item() == pytest.approx(linear_cka(a / scale, b).item(), abs=1e-5)
    assert 0 <= linear_cka(a, a).item() <= 1


@pytest.mark.parametrize("other", [torch.full((6, 4), 0.1), torch.zeros(6, 4)], ids=["constant", "zero"])
def test_a_constant_layer_is_like_no_other_and_has_no_gradient(other):
    a, other = features(6, 3, dtype=torch.float32).requires_grad_(), other.requires_grad_()
    value = linear_cka(a, other)
    value.backward()

    assert value.item() == 0
    assert (a.grad == 0).all() and (other.grad == 0).all()


def test_a_single_image_has_no_alignment_and_no_gradient():
    a, b = features(1, 3).requires_grad_(), features(1, 5, seed=1)
    value = linear_cka(a, b)
    value.backward()

    assert value.item() == 0
    assert (a.grad == 0).all()


def test_half_precision_is_compared_in_full():
    a, b = features(20, 400, dtype=torch.bfloat16), features(20, 7, dtype=torch.bfloat16, seed=1)

    assert linear_cka(a, b).dtype == torch.float32
    assert linear_cka(a, b).item() == pytest.approx(linear_cka(a.double(), b.double()).item(), abs=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    b = features(6, 5, seed=1)

    assert torch.autograd.gradcheck(lambda a: linear_cka(a, b), features(6, 3).requires_grad_())


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        ("a", "xyz", "az"),
        ("abc", "z", "cz"),
        ("ab", "wxyz", "aw bz"),
        ("abcde", "xyz", "ax cy ez"),
        ("ab", "xy", "ax by"),
    ],
)
def test_layers_are_paired_evenly_from_the_first_to_the_last(ours, theirs, pairs):
    assert [tuple(it) for it in pairs.split()] == even_pairs(list(ours), list(theirs))


class Guide(nn.Module):
    """Two convolutions and batch norm, of other widths than what it guides, for images `(B, 1, 8, 8)`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 12, 3, stride=2)
        self.head = nn.Linear(12, 3)

    def forward(self, image):
        return self.head(self.second(self.norm(self.first(image)).relu()).relu().mean(dim=(2, 3)))


def deep_network():
    """Fully connected, `(B, 1, 8, 8)` to logits `(B, 10)`."""
    hidden = [it for _ in range(3) for it in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), *hidden, nn.Linear(16, 10))


class Deep(Plain):
    def __init__(self):
        super().__init__()
        self.network = deep_network()


def trained(module, *callbacks, epochs=1, **options):
    trainer = quiet_trainer(callbacks=list(callbacks), max_epochs=epochs, limit_val_batches=0, **options)
    trainer.fit(module, plain_loader(30, 6))
    return module.state_dict()


def heard(network, paths, image):
    """Logits, and what the layers put out."""
    kept = {}
    hooks = [
        network.get_submodule(path).register_forward_hook(
            lambda _, args, output, path=path: kept.update({path: output})
        )
        for path in paths
    ]
    logits = network(image)
    for hook in hooks:
        hook.remove()
    return logits, [kept[path].flatten(1).double() for path in paths]


def by_hand(module, guide, weight, ours, theirs):
    """Momentum and the learning rates of `Plain`, for one epoch of `trained`."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for image, target in plain_loader(30, 6):
        logits, layers = heard(module.network, ours, image)
        with torch.no_grad():
            _, guiding = heard(guide, theirs, image)
        apart = torch.stack([1 - by_features(*pair) for pair in zip(layers, guiding, strict=True)])
        loss = F.cross_entropy(logits, target) + weight * apart.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.state_dict()


def test_training_equals_a_loop_by_hand():
    """Layers before the last: 1, 3, 5, 7 of the network, two of the guide; so the first and the last are paired."""
    guide = seeded(Guide)
    ours = trained(seeded(Deep), Guidance(guide, weight=2.0))
    theirs = by_hand(seeded(Deep), guide.eval(), 2.0, ["1", "7"], ["first", "second"])
    swapped = by_hand(seeded(Deep), guide, 2.0, ["1", "7"], ["second", "first"])

    assert distance(ours, theirs) < 1e-5
    assert distance(ours, swapped) > 1e-3


def test_row_90_the_guides_parameters_and_batch_norm_buffers_do_not_change():
    guide = seeded(Guide)
    before = {name: it.clone() for name, it in guide.state_dict().items()}
    trained(seeded(Deep), Guidance(guide))

    assert before.keys() == guide.state_dict().keys()
    assert distance(before, guide.state_dict()) == 0
    assert guide.training and all(it.requires_grad and it.grad is None for it in guide.parameters())


def test_row_90_weight_0_is_bitwise_the_unguided_run():
    guide = seeded(Guide)
    ours, plain = trained(seeded(Plain), Guidance(guide, weight=0.0)), trained(seeded(Plain))
    guided = trained(seeded(Plain), Guidance(guide))

    assert distance(ours, plain) == 0
    assert distance(guided, plain) > 1e-4


def digits(first, last):
    images, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(images[first:last]).float().view(-1, 1, 8, 8) / 8 - 1
    return TensorDataset(images, torch.from_numpy(targets[first:last]))


class DeepOnDigits(Deep):
    def __init__(self):
        super().__init__()
        hidden = [it for _ in range(7) for it in (nn.Linear(48, 48), nn.ReLU())]
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), *hidden, nn.Linear(48, 10))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_row_90_an_untrained_convolutional_guide_raises_the_alignment_of_a_deep_network(seed):
    """On digits that neither has seen; whether it raises accuracy is a study of five seeds, told on the card."""
    torch.manual_seed(seed)
    guide = create("resnet8_cifar", num_classes=10, in_channels=1, width=4)
    ours = [str(place) for place in range(1, 17, 2)]
    theirs = [name for name, it in guide.named_modules() if isinstance(it, nn.Conv2d)]
    unseen, found = digits(200, 300).tensors[0], []
    for callbacks in ([], [Guidance(guide)]):
        torch.manual_seed(seed)
        module = DeepOnDigits()
        trainer = quiet_trainer(callbacks=callbacks, max_epochs=6, limit_val_batches=0)
        trainer.fit(module, DataLoader(digits(0, 200), batch_size=40))
        layers, guiding = heard(module.network.eval(), ours, unseen)[1], heard(guide.eval(), theirs, unseen)[1]
        pairs = even_pairs(range(len(ours)), range(len(theirs)))
        found.append([linear_cka(layers[a], guiding[b]).item() for a, b in pairs])
    plain, guided = (sum(it) / len(it) for it in found)

    assert len(found[0]) == 7
    assert guided > plain + 0.1


class Counted(Guide):
    calls = 0

    def forward(self, image):
        self.calls += image.shape[0] == 6
        return super().forward(image)


@pytest.mark.parametrize(("setting", "steps"), [({"stop_epoch": 1}, 5), ({"stop_step": 3}, 3), ({}, 10)])
def test_the_guide_runs_until_it_is_told_to_stop(setting, steps):
    guide, module = seeded(Counted), seeded(Deep)
    trained(module, Guidance(guide, **setting), epochs=2)

    assert guide.calls in (steps, steps + 1)


def test_after_the_stop_training_goes_on_as_without_it():
    begun = seeded(Deep)
    trained(begun, Guidance(seeded(Guide)))
    stopped = trained(seeded(Deep), Guidance(seeded(Guide), stop_step=5), epochs=1)

    assert distance(stopped, begun.state_dict()) == 0


def test_layers_are_paired_as_named():
    guide = seeded(Guide)
    ours = trained(seeded(Deep), Guidance(guide, layers={"network.3": "second"}))
    theirs = by_hand(seeded(Deep), guide.eval(), 1.0, ["3"], ["second"])

    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"weight": -1.0}, "weight is -1.0; give a finite number of at least 0"),
        ({"stop_epoch": 0}, "stop_epoch is 0; give a whole number of at least 1"),
        ({"stop_step": 1.5}, "stop_step is 1.5; give a whole number of at least 1"),
        ({"layers": {}}, "layers is {}; give a layer of the guide for each layer, or None"),
        ({"layers": {1: 3}}, "layers is {1: 3}; give paths as text, in quotes where they are numbers"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, words):
    with pytest.raises(ValueError, match=f"^Guidance: {words}"):
        Guidance(Guide(), **setting)


class Windows(Guide):
    """Its second layer puts out something that is no row for each image."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(6, 12)

    def forward(self, image):
        table = self.second(torch.ones(5, 6))
        return self.head((self.first(image).mean() * table).mean(dim=0).expand(len(image), -1))


class PlacesFirst(Guide):
    """Its second layer has rows of the image in front and images second, as torch's transformers do."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(8, 12)

    def forward(self, image):
        return self.head(self.second(image[:, 0].transpose(0, 1)).mean(dim=0))


@pytest.mark.parametrize(
    ("guide", "layers", "words"),
    [
        (Guide, {"network.10": "second"}, r"the student \(Deep\) has no layer 'network.10'; there are network"),
        (Guide, {"network.3": "secnod"}, r"the teacher \(Guide\) has no layer 'secnod'; there are second"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), None, "the guide, Sequential, has no Linear or conv"),
        (Windows, None, r"the layer 'second' puts out \(5, 12\) for two images, which is no row for each"),
        (PlacesFirst, {"network.3": "second"}, r"'second' puts out \(8, 2, 12\) for two images, which is no row for"),
    ],
)
def test_layers_that_do_not_fit_are_refused(guide, layers, words):
    with pytest.raises(ValueError, match=words):
        trained(seeded(Deep), Guidance(guide(), layers=layers))

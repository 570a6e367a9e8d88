"""BatchNormOnly trains two numbers a channel and nothing else, equals a loop by hand, and beats random weights.

Resume, two processes and optimizers are proved in `hooks/test_freezing.py` too, the rest in `conformance/`.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import BatchNormOnly
from lightning_vision.callbacks.finetuning.batch_norm_only import random_entries
from lightning_vision.datamodules import Digits
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer

TRUNK = {"network.0.weight", "network.0.bias", "network.5.weight", "network.5.bias"}
NORM = {"network.1.weight", "network.1.bias"}


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


def fitted(callback, kind=Plain, epochs=2, **options):
    module = seeded(kind)
    torch.manual_seed(5)
    trainer = quiet_trainer(callbacks=[callback], max_epochs=epochs, **options)
    trainer.fit(module, train_loader())
    return module, trainer


def moved(module):
    before = seeded(type(module)).state_dict()
    return {name: int((value != before[name]).sum()) for name, value in module.state_dict().items()}


def by_hand(mutant=""):
    """Two epochs; the optimizer has batch norm's parameters and no others."""
    module = seeded(Plain)
    torch.manual_seed(5)
    network = module.network
    network.train()
    if mutant == "batch norm rests":
        network[1].eval()
    trained = list(network[1].parameters()) + (list(network[5].parameters()) if mutant == "the head, too" else [])
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
    loader = train_loader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for image, target in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(image), target).backward()
            optimizer.step()
            schedule.step()
    return module.state_dict()


def test_it_equals_a_loop_that_trains_batch_norm_alone():
    module, _ = fitted(BatchNormOnly())

    assert distance(module.state_dict(), by_hand()) == 0.0


@pytest.mark.parametrize("mutant", ["batch norm rests", "the head, too"])
def test_a_wrong_loop_is_noticed(mutant):
    module, _ = fitted(BatchNormOnly())

    assert distance(module.state_dict(), by_hand(mutant)) > 1e-3


class Trained(LightningModule):
    """Counts what wants a gradient in a step, and what its optimizer holds, having asked for what does."""

    def __init__(self, network):
        super().__init__()
        self.network, self.counts = network, []

    def training_step(self, batch):
        self.counts.append(sum(it.numel() for it in self.parameters() if it.requires_grad))
        return F.cross_entropy(self.network(batch[0].repeat(1, 3, 4, 4)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([it for it in self.parameters() if it.requires_grad], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", ["resnet10t", "resnet8_cifar"])
def test_row_135_it_trains_two_numbers_a_channel_and_the_head_and_all_else_stays_to_the_bit(name, head):
    torch.manual_seed(0)
    module = Trained(create(name, num_classes=10, in_channels=3))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trainer = quiet_trainer(callbacks=[BatchNormOnly(head=head)], max_epochs=1, limit_train_batches=2)
    trainer.fit(module, train_loader())
    norms = [it for it in module.modules() if isinstance(it, nn.BatchNorm2d)]
    classifier = module.network.get_classifier()
    trained = [it for part in [*norms, *([classifier] if head else [])] for it in part.parameters()]
    names = {key for key, it in module.named_parameters() if any(it is one for one in trained)}
    statistics = {key for key, _ in module.named_buffers()}

    assert set(module.counts) == {2 * sum(it.num_features for it in norms) + head * (classifier.weight.numel() + 10)}
    assert {key for key, it in module.state_dict().items() if not torch.equal(it, before[key])} == names | statistics
    (optimizer,) = trainer.optimizers
    assert {id(it) for group in optimizer.param_groups for it in group["params"]} == {id(it) for it in trained}
    assert {id(it) for it in optimizer.state} == {id(it) for it in trained}


def test_row_135_the_control_trains_two_weights_of_each_channel_and_no_other():
    module, _ = fitted(BatchNormOnly(control=True))
    before = seeded(Plain).network[0].weight
    changed = (module.network[0].weight != before).flatten(1).sum(dim=1)

    assert changed.tolist() == [2, 2, 2, 2]
    assert {name for name, count in moved(module).items() if count and "running" not in name} == {
        "network.0.weight",
        "network.1.num_batches_tracked",
    }


def test_the_controls_choice_is_that_of_its_seed_and_touches_no_global_stream():
    torch.manual_seed(3)
    stream = torch.get_rng_state()
    shape = torch.Size([5, 3, 2])
    first, again, other = (random_entries(shape, 2, torch.Generator().manual_seed(it)) for it in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.flatten(1).sum(dim=1).tolist() == [2] * 5
    assert torch.equal(torch.get_rng_state(), stream)


def test_all_entries_are_chosen_alike_often():
    """A thousand channels of 4 entries, 2 each: a count is binomial(1000, 1/2), within four standard errors of 500."""
    counts = random_entries(torch.Size([1000, 4]), 2, torch.Generator().manual_seed(0)).sum(dim=0)

    assert (counts - 500).abs().max() < 4 * 250**0.5


def test_patterns_train_other_parameters_too():
    module, _ = fitted(BatchNormOnly(also=["*.0.bias", "network.5.*"]))

    assert {name for name, count in moved(module).items() if count} >= {"network.5.weight", "network.5.bias", *NORM}
    assert moved(module)["network.0.weight"] == 0


@pytest.mark.parametrize(("gamma", "expected"), [(0.5, {0.5}), (None, {1.0})])
def test_scales_start_where_they_are_told(gamma, expected):
    seen = []

    class Starts(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(set(self.network[1].weight.tolist()))

    fitted(BatchNormOnly(gamma=gamma), Starts, epochs=1)

    assert seen[0] == expected
    assert seen[1] != expected


def test_uniform_scales_are_drawn_once_from_its_own_seed():
    first, second, other = (
        fitted(BatchNormOnly(gamma="uniform", seed=seed), limit_train_batches=0.2, epochs=1)[0] for seed in (0, 0, 1)
    )

    assert distance(first.state_dict(), second.state_dict()) == 0.0
    assert distance(first.state_dict(), other.state_dict()) > 0.01


def test_the_share_of_scales_near_zero_is_logged():
    class Still(Plain):
        def on_train_epoch_end(self):
            self.network[1].weight.data = torch.tensor([0.05, -0.05, 0.2, -0.0999])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    # The callback hears of the epoch's end before the module does.
    _, trainer = fitted(BatchNormOnly(zero=0.1), Still, epochs=2)

    assert trainer.callback_metrics["train/gammas_near_zero"].item() == 0.75


def test_the_control_logs_no_scales_for_they_do_not_train():
    assert "train/gammas_near_zero" not in fitted(BatchNormOnly(control=True))[1].callback_metrics


class NoNorm(Plain):
    def __init__(self):
        super().__init__()
        self.network[1] = nn.GroupNorm(2, 4)


class NormFirst(Plain):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.BatchNorm2d(1), *self.network)


class HeadTrains(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.network[5].parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (NoNorm, {}, "NoNorm has no batch norm with a scale and a shift that train; train a network that has"),
        (
            Plain,
            {"also": "*.wieght"},
            r"also '\*.wieght' matches none of the parameters of Plain that train; there are",
        ),
        (HeadTrains, {}, "no optimizer of HeadTrains has any of the 2 parameters that are to train; let configure"),
        (NormFirst, {"control": True}, "no convolution or linear layer before network.0 makes its 1 channels from two"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_training(kind, settings, message):
    with pytest.raises(ValueError, match=f"^BatchNormOnly: {message}"):
        fitted(BatchNormOnly(**settings), kind)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": 1}, "head is 1; give True or False."),
        ({"control": "yes"}, "control is 'yes'; give True or False."),
        ({"zero": -0.1}, "zero is -0.1; give a finite number of at least 0."),
        ({"gamma": "normal"}, "gamma is 'normal'; give a number, 'uniform' or None."),
        ({"gamma": -1.0}, "gamma is -1.0; give a finite number of at least 0."),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0."),
        ({"also": [3]}, r"also is \[3\]; give a pattern such as 'blocks.\*.act', or a list of them."),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^BatchNormOnly: {message}$"):
        BatchNormOnly(**settings)


class DigitsNetwork(LightningModule):
    """Three random convolutions with batch norm, and a random head."""

    def __init__(self):
        super().__init__()
        layers = [
            layer
            for width, channels, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 1))
            for layer in (nn.Conv2d(width, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())
        ]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch):
        self.log("accuracy", (self.network(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW([it for it in self.parameters() if it.requires_grad], lr=0.05, weight_decay=0.0)


@cache
def accuracy(seed, control, epochs):
    torch.manual_seed(seed)
    module = DigitsNetwork()
    trainer = quiet_trainer(callbacks=[BatchNormOnly(control=control, seed=seed)], max_epochs=epochs)
    trainer.fit(module, Digits(seed=seed))
    return trainer.test(module, Digits(), verbose=False)[0]["accuracy"]


def test_row_135_on_digits_it_is_well_above_chance_and_above_random_weights():
    ours, random = accuracy(0, False, 4), accuracy(0, True, 4)

    assert ours > 0.4
    assert ours > random + 0.05


@pytest.mark.slow
def test_row_135_so_it_is_on_average_over_five_seeds():
    ours, random = ([accuracy(seed, control, 8) for seed in range(5)] for control in (False, True))
    gains = torch.tensor(ours) - torch.tensor(random)

    assert min(ours) > 0.5
    assert gains.mean() > 2 * gains.std() / 5**0.5

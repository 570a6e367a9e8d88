"""FineTuneProbe: its training is torch's on a deep copy, its images are those of the seed, and the module stays."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Generator, nn

from lightning_vision.backbones.create import create
from lightning_vision.callbacks import FineTuneProbe
from lightning_vision.callbacks.hooks._fields import Fields
from lightning_vision.callbacks.probes._few_images import few_images
from lightning_vision.callbacks.probes._fine_tuning import fine_tuned, from_scratch, own_tensors
from lightning_vision.callbacks.probes.linear_heads import batches_of_an_epoch
from lightning_vision.datamodules import Digits
from support.modules import Featured
from support.trainers import quiet_trainer

QUICK = {"epochs": 3, "batch_size": 32}


def images_and_labels(count=40, seed=0):
    random = Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=random), torch.randint(10, (count,), generator=random)


def steps(count=40, epochs=2, batch_size=16):
    random = Generator().manual_seed(1)
    return [it for _ in range(epochs) for it in batches_of_an_epoch(count, batch_size, random)]


def by_hand(module, images, labels, batches, nesterov=True, body=True):
    """A deep copy with a head behind it, trained as a stranger would."""
    network = nn.Sequential(deepcopy(module.network[:5]), nn.Linear(36, 10)).train()
    with torch.no_grad():
        start = 0.01 * torch.randn(36, 10, generator=Generator().manual_seed(5))
        network[1].weight.copy_(start.T)
        network[1].bias.zero_()
    chosen = network.parameters() if body else network[1].parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.05, momentum=0.9, nesterov=nesterov)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
        falls.step()
    return network.eval()


def test_fine_tuning_is_torchs_on_a_deep_copy_and_the_module_stays():
    torch.manual_seed(0)
    module = Featured(dropout=0.0)
    before = {name: it.clone() for name, it in module.state_dict().items()}
    images, labels = images_and_labels()
    module.train()
    random = Generator().manual_seed(5)
    tuned = fine_tuned("It", module, own_tensors(module), images, labels, 10, 0.05, steps(), random)
    module.eval()
    others, _ = images_and_labels(200, seed=3)
    expected = by_hand(module, images, labels, steps())
    torch.testing.assert_close(tuned.weight, expected[1].weight.T, rtol=1e-5, atol=1e-6)
    for name, it in expected[0].state_dict().items():
        torch.testing.assert_close(tuned.tensors[f"module.network.{name}"], it, rtol=1e-5, atol=1e-6)
    assert torch.equal(tuned.classes(module, others), expected(others).argmax(1))
    for wrong in ({"nesterov": False}, {"body": False}):
        weight = by_hand(module, images, labels, steps(), **wrong)[1].weight
        assert not torch.allclose(tuned.weight, weight.T, rtol=1e-4, atol=2e-5)
    assert all(torch.equal(it, module.state_dict()[name]) for name, it in before.items())
    assert all(it.grad is None for it in module.parameters())


def test_what_features_do_not_use_is_not_kept():
    module = Featured()
    images, labels = images_and_labels()
    tuned = fine_tuned("It", module.train(), own_tensors(module), images, labels, 10, 0.05, steps(), Generator())
    assert "module.network.0.weight" in tuned.tensors and "module.network.5.weight" not in tuned.tensors


@pytest.mark.parametrize("name", ["resnet8_cifar", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_a_network_from_scratch_has_learned_nothing(name):
    class Holds(Featured):
        def __init__(self):
            super().__init__()
            size = {"img_size": 32} if "vit" in name else {}
            self.network = create(name, num_classes=0, in_channels=1, **size)

    torch.manual_seed(0)
    module = Holds()
    with torch.no_grad():
        for it in module.parameters():
            it.fill_(7.0)
        for it in module.buffers():
            it.add_(3)
    torch.manual_seed(1)
    found = from_scratch(module)
    torch.manual_seed(2)
    other = from_scratch(module)
    assert found.keys() == {f"module.{it}" for it in module.state_dict()}
    assert not any((it == 7).any() for it in found.values())
    for key, it in found.items():
        if key.endswith("running_mean"):
            assert not it.any()
        if it.ndim > 1:
            assert not torch.equal(it, other[key]) and 0.001 < it.std() < 1
    # The layers themselves are left alone.
    assert all((it == 7).all() for it in module.parameters())


class Network(Featured):
    """Features that learning changes: without what `Featured` drops out."""

    def __init__(self):
        super().__init__(dropout=0.0)


def run(folder, *callbacks, kind=Network, stage="fit", **options):
    torch.manual_seed(0)
    trainer = quiet_trainer(
        default_root_dir=folder, callbacks=list(callbacks), max_epochs=2, limit_train_batches=2, **options
    )
    module = kind()
    getattr(trainer, stage)(module, datamodule=Digits(batch_size=60))
    return trainer, module


def test_in_a_run_it_measures_each_entry_and_from_scratch_too(tmp_path):
    probe = FineTuneProbe(labels=[0.1, 3], epochs=8, batch_size=32, lr=0.1)
    trainer, _ = run(tmp_path, probe)
    found = {it.name: it.value for it in probe.last}
    assert set(found) == {
        "probe/fine_tune_10_percent",
        "probe/fine_tune_10_percent_scratch",
        "probe/fine_tune_3_labels",
        "probe/fine_tune_3_labels_scratch",
    }
    assert found["probe/fine_tune_10_percent"] > 0.6 > 0.11 < found["probe/fine_tune_3_labels"]
    assert {it.epoch for it in probe.last} == {1} and probe.protocol == "simclr*"
    assert trainer.callback_metrics["probe/fine_tune_3_labels"] == pytest.approx(found["probe/fine_tune_3_labels"])


def test_a_run_with_it_is_the_run_without(tmp_path):
    class Streams(Callback):
        def on_fit_end(self, trainer, pl_module):
            self.state = torch.get_rng_state()

    with_it, without = Streams(), Streams()
    _, ours = run(tmp_path, FineTuneProbe(labels=[2], every_n_epochs=1, **QUICK), with_it, kind=Featured)
    _, plain = run(tmp_path, without, kind=Featured)
    assert torch.equal(with_it.state, without.state)
    assert all(torch.equal(it, plain.state_dict()[name]) for name, it in ours.state_dict().items())


def test_the_same_seed_gives_the_same_number_and_the_images_are_those_of_the_seed(tmp_path):
    found = []
    for seed in (0, 0, 1):
        probe = FineTuneProbe(labels=[2], seed=seed, scratch=False, **QUICK)
        trainer, _ = run(tmp_path, probe, stage="validate")
        found.append(float(trainer.callback_metrics["probe/fine_tune_2_labels"]))
    assert found[0] == found[1] != found[2]


def test_which_images_have_a_label():
    known = torch.tensor([0] * 40 + [1] * 20 + [2] * 3 + [-1] * 9)
    for labels, expected in ((0.1, [4, 2, 1]), (5, [5, 5, 3])):
        probe = FineTuneProbe(labels=[labels])
        assert known[probe._choices(known)[0]].bincount().tolist() == expected


def test_features_without_a_gradient_are_refused_before_the_first_step(tmp_path):
    class Frozen(Network):
        @torch.no_grad()
        def features(self, image):
            return super().features(image)

    with pytest.raises(ValueError, match=r"^FineTuneProbe: features of Frozen gives no \(B, D\) with a gradient"):
        run(tmp_path, FineTuneProbe(**QUICK), kind=Frozen, num_sanity_val_steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": []}, "labels is .*; give at least one number, and each once"),
        ({"labels": [0.1, 0.1]}, "labels is .*; give at least one number, and each once"),
        ({"labels": [0.0]}, "labels has 0.0; give a share above 0 and below 1, or a whole number"),
        ({"labels": [2.5]}, "labels has 2.5; give a share"),
        ({"epochs": 0}, "epochs is 0; give a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size is 1; give a whole number of at least 2"),
        ({"lr": 0.0}, "lr is 0.0; give a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^FineTuneProbe: {message}"):
        FineTuneProbe(**settings)


def deals():
    """On one of two processes: which images are chosen among those that are dealt to both, and their classes."""
    trainer = quiet_trainer(callbacks=[], max_epochs=1, strategy="ddp", devices=2)
    found = []

    class Looks(Callback):
        def on_validation_start(self, trainer, pl_module):
            fields = Fields("It", "image", "target")
            found.append(few_images(trainer, pl_module, fields, lambda known: [torch.arange(0, len(known), 100)]))

    trainer.callbacks.append(Looks())
    trainer.validate(Network(), datamodule=Digits(batch_size=60), verbose=False)
    return [it.cpu() for it in found[0][0]]


def test_two_processes_have_the_images_of_both(two_ranks):
    (image, label), (others, labels) = two_ranks(deals)
    assert torch.equal(image, others) and torch.equal(label, labels) and len(image) == 13
    data = Digits()
    data.setup()
    known = data.normalise(data.train_set.images)
    places = [int((known - it).flatten(1).abs().amax(1).argmin()) for it in image]
    assert len(set(places)) == 13 and torch.equal(data.train_set.targets[places], label)

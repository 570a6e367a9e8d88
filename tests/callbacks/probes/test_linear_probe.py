"""LinearProbe in a run: what it trains on, how its head is chosen, and what is kept of it.

That heads are those of torch's SGD and of scikit-learn is proved in `test_linear_heads.py`; what every probe must do in
`hooks/test_probing.py`.
"""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vision.callbacks import LinearProbe
from lightning_vision.callbacks.hooks.probing import Read
from lightning_vision.callbacks.probes import linear_probe
from lightning_vision.datamodules import Digits
from support.modules import Featured
from support.trainers import quiet_trainer


def clusters(count, spread=0.7, seed=0, classes=4, size=6):
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, size, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=random)
    return Read(centres[labels] + spread * torch.randn(count, size, generator=random), labels)


def measured(probe, images=None, bank=None):
    return probe.measure(Featured(), images or clusters(80, seed=1), bank or clusters(200))


def test_the_grid_beats_its_worst_rate_and_says_which_it_chose():
    probe = LinearProbe(rates=[0.0, 1e-5, 0.1], epochs=20)
    found = measured(probe)
    alone = {rate: measured(LinearProbe(rates=[rate], epochs=20))[""] for rate in (1e-5, 0.1)}
    assert found["lr"] == 0.1 and found[""] == pytest.approx(alone[0.1], abs=0.02) and found[""] > alone[1e-5]
    assert set(found) == {"", "lr", "held_out"}
    assert set(measured(LinearProbe(rates=[0.01, 0.1], decays=[0.0, 0.1]))) == {"", "lr", "held_out", "decay"}


def test_the_head_is_chosen_without_validation_images():
    """Validation labels that are turned round would choose the worst head; a mutant that looks at them does."""
    images, bank = clusters(80, seed=1), clusters(200)
    turned = Read(images.features, 3 - images.targets)
    probe = LinearProbe(rates=[1e-5, 0.1], epochs=20)
    own = probe.measure(Featured(), images, bank)
    other = probe.measure(Featured(), turned, bank)
    assert (own["lr"], own["held_out"]) == (other["lr"], other["held_out"]) == (0.1, own["held_out"])
    by_validation = max(
        [1e-5, 0.1], key=lambda rate: LinearProbe(rates=[rate], epochs=20).measure(Featured(), turned, bank)[""]
    )
    assert by_validation == 1e-5 and other[""] < 0.5 < own[""]


def test_of_heads_that_get_all_held_out_images_the_surest_is_chosen():
    images, bank = clusters(80, spread=0.01, seed=1), clusters(200, spread=0.01)
    found = measured(LinearProbe(rates=[0.03, 1.0, 0.1], epochs=5), images, bank)
    assert found["held_out"] == 1.0 and found["lr"] == 1.0


def test_no_part_that_is_held_out_trains_the_heads_that_are_compared(monkeypatch):
    seen = []
    train = linear_probe.train_heads

    def watch(features, labels, start, rates, decays, batches):
        seen.append({int(it) for batch in batches for it in batch})
        return train(features, labels, start, rates, decays, batches)

    monkeypatch.setattr(linear_probe, "train_heads", watch)
    measured(LinearProbe(rates=[0.01, 0.1], holdout=0.25))
    assert 145 <= len(seen[0]) <= 155 and len(seen[1]) == 200


def test_few_labels_are_those_of_the_seed_and_standardised_by_themselves():
    bank, images = clusters(200, spread=1.5), clusters(200, spread=1.5, seed=1)
    shares = {seed: measured(LinearProbe("few_labels", seed=seed), images, bank)[""] for seed in (0, 1, 2)}
    assert measured(LinearProbe("few_labels", seed=0), images, bank)[""] == shares[0]
    assert len(set(shares.values())) > 1
    probe = LinearProbe("few_labels", labels_per_class=3)
    assert (
        measured(probe, images, bank)[""] < measured(LinearProbe("few_labels", labels_per_class=40), images, bank)[""]
    )
    assert probe.settings["labels"] == 12
    # What is measured in other units is the same.
    scaled = [Read(it.features * 1000 + 50, it.targets) for it in (images, bank)]
    assert measured(LinearProbe("few_labels"), *scaled)[""] == pytest.approx(shares[0], abs=0.011)


def test_a_class_with_too_few_labels_is_told():
    bank = Read(clusters(50).features, torch.arange(50).clamp(max=3))
    probe = LinearProbe("few_labels", labels_per_class=5)
    with pytest.warns(UserWarning, match="fewer than labels_per_class=5 training images, so it is measured with 8"):
        measured(probe, bank=bank)


def test_images_without_a_class_have_no_part():
    images, bank = clusters(80, seed=1), clusters(200)
    more = [
        Read(torch.cat([it.features, 100 * torch.randn(9, 6)]), torch.cat([it.targets, -torch.ones(9).long()]))
        for it in (images, bank)
    ]
    for protocol in ("simclr", "few_labels"):
        assert measured(LinearProbe(protocol), *more) == measured(LinearProbe(protocol), images, bank)


class Pixels(Featured):
    """Its features are the pixels, whatever its weights."""

    def features(self, image):
        return image.flatten(1)


def test_in_a_run_it_measures_the_last_validation_and_keeps_how(tmp_path):
    probes = [LinearProbe("simclr", epochs=8), LinearProbe("few_labels", every_n_epochs=2, name="few")]
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=probes, max_epochs=4, limit_train_batches=1)
    trainer.fit(Pixels(), datamodule=Digits())
    with (tmp_path / "probes.csv").open() as file:
        rows = list(csv.DictReader(file))
    moments = [("probe/few", "0"), ("probe/few", "2"), ("probe/few", "3"), ("probe/linear", "3")]
    assert sorted((row["name"], row["epoch"]) for row in rows) == moments
    last = {row["name"]: row for row in rows}
    assert last["probe/linear"]["protocol"] == "simclr*" and last["probe/few"]["protocol"] == "few_labels"
    # As shipped it is not the authors' either, who augment.
    assert LinearProbe("simclr").protocol == "simclr*" and LinearProbe("few_labels", penalty=2.0).protocol[-1] == "*"
    settings = json.loads(last["probe/linear"]["settings"])
    assert settings["epochs"] == 8 and settings["augmented"] is False and settings["bank_images"] == 1258
    # The pixels of digits are worth that much; ten labels a class are worth less.
    assert float(last["probe/linear"]["value"]) > 0.9 > float(last["probe/few"]["value"]) > 0.75
    assert trainer.callback_metrics["probe/linear"] == pytest.approx(float(last["probe/linear"]["value"]))


def test_the_number_of_a_run_is_that_of_a_head_trained_by_torch(tmp_path):
    probe = LinearProbe("simclr", epochs=6, batch_size=2000)
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[probe], max_epochs=1, limit_train_batches=1)
    data = Digits()
    trainer.fit(Pixels(), datamodule=data)
    images, queries = (data.normalise(it.images).flatten(1) for it in (data.train_set, data.val_set))
    head = nn.Linear(64, 10)
    with torch.no_grad():
        head.weight.copy_(0.01 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).T)
        head.bias.zero_()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1 * 2000 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(head(images), data.train_set.targets).backward()
        optimizer.step()
        schedule.step()
    right = (head(queries).argmax(1) == data.val_set.targets).double().mean()
    assert probe.last[0].value == pytest.approx(float(right), abs=1e-6)


def test_the_precision_of_the_run_is_not_the_probes():
    images, bank = clusters(300, spread=1.2, seed=1), clusters(300, spread=1.2)
    for protocol in ("simclr", "few_labels"):
        expected = measured(LinearProbe(protocol), images, bank)
        with torch.autocast("cpu", torch.bfloat16):
            assert measured(LinearProbe(protocol), images, bank) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "moco"}, "protocol is 'moco'; give 'dinov2', 'simclr' or 'few_labels'"),
        ({"rates": []}, "rates is empty; give at least one number, or None"),
        ({"rates": [-1.0]}, "rates is -1.0; give a finite number of at least 0"),
        ({"epochs": 0}, "epochs is 0; give a whole number of at least 1"),
        ({"holdout": 0.0}, "holdout is 0.0; give a number above 0"),
        ({"holdout": 1.0}, "holdout is 1.0; give a number from 0 to 0.99"),
        ({"protocol": "few_labels", "epochs": 3}, "epochs is no setting of protocol 'few_labels'"),
        ({"labels_per_class": 3}, "labels_per_class is no setting of protocol 'dinov2'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^LinearProbe: {message}"):
        LinearProbe(**settings)

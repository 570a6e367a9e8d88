"""The probing seam reads every image of training and validation once, over all ranks, and keeps each number's protocol.

That a run with a probe equals one without it, under every condition, is proved in `conformance/`.
"""

import csv
import json
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_vision.callbacks.hooks._readings import from_all_ranks
from lightning_vision.callbacks.hooks.probing import Probing
from lightning_vision.datamodules import Digits, ImageFolder, PlacedDigits
from support.compare import seeded
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Featured, Plain
from support.resuming import Recorder
from support.trainers import quiet_trainer


class Seen(Probing):
    """Keeps what it is given to measure."""

    title, protocol = "seen", "counted"
    settings = {"knob": 1}  # noqa: RUF012  # a property elsewhere
    uses_bank = True

    def __init__(self, **others):
        super().__init__(**others)
        self.given = []

    def measure(self, pl_module, images, bank):
        torch.rand(3), pl_module.train(), pl_module.log("val/loss", 7.0)
        self.given.append((images, bank))
        return {"": float(images.features.mean()), "bank": float(bank.features.mean())}


class Validated(Seen):
    """Needs no bank and no labels."""

    uses_bank = uses_labels = False

    def measure(self, pl_module, images, bank):
        self.given.append((images, bank))
        return {"": len(self.given)}


class Pixels(Featured):
    """Its features are its pixels, and it counts in which mode it was asked for those of how many."""

    def __init__(self):
        super().__init__()
        self.asked = Counter()

    def features(self, image):
        self.asked[self.training, torch.is_grad_enabled()] += len(image)
        return image.flatten(1)


def rows(folder):
    with (folder / "probes.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def fit(*probes, module=None, train=None, val=None, folder=None, **options):
    module = module or Pixels()
    settings = {"max_epochs": 1, "num_sanity_val_steps": 1, "default_root_dir": folder, **options}
    trainer = quiet_trainer(callbacks=list(probes), **settings)
    trainer.fit(module, train or plain_loader(30, shuffle=True), val or plain_loader(12))
    return trainer


def by_rows(features):
    return sorted(map(tuple, features.tolist()))


def test_every_image_is_read_once_in_evaluation_mode(tmp_path):
    seen, module = Seen(), Pixels()
    fit(seen, module=module, folder=tmp_path)
    images, bank = seen.given[-1]
    train, val = (labelled_images(count) for count in (30, 12))

    assert torch.equal(images.features, val.tensors[0].flatten(1)) and torch.equal(images.targets, val.tensors[1])
    assert by_rows(bank.features) == by_rows(train.tensors[0].flatten(1))
    assert bank.features.dtype == torch.float32 and not bank.features.requires_grad
    # Six of the sanity check, twelve and thirty of the epoch.
    assert module.asked == {(False, False): 48}


def test_several_probes_ask_for_no_more_forward_passes_than_one(tmp_path):
    probes, module = [Seen(name="a"), Seen(name="b"), Validated(name="c")], Pixels()
    fit(*probes, module=module, folder=tmp_path)

    assert module.asked == {(False, False): 48}
    assert torch.equal(probes[0].given[-1][1].features, probes[1].given[-1][1].features)


def test_a_limited_bank_is_the_same_images_each_time(tmp_path):
    seen = Seen(max_samples=10)
    fit(seen, max_epochs=2, folder=tmp_path)
    first, second = (bank.features for _, bank in seen.given[-2:])

    assert len(first) == 10 and torch.equal(first, second)


def test_the_bank_moves_no_loader_that_resumes(tmp_path):
    handed_out = []

    class Watched(ResumableLoader):
        def __iter__(self):
            for batch in super().__iter__():
                handed_out.append(self is own)
                yield batch

    own = Watched(labelled_images(24), 6)
    seen = Seen()
    fit(seen, train=own, val_check_interval=2, max_epochs=1, folder=tmp_path)

    assert [len(bank.features) for _, bank in seen.given[1:]] == [24, 24]
    assert sum(handed_out) == 4 and len(handed_out) == 4 + 2 * 4


def test_a_number_stands_beside_its_protocol_and_settings(tmp_path, capsys):
    seen = Seen()
    trainer = fit(seen, max_epochs=2, folder=tmp_path)
    found = rows(tmp_path)

    assert [(it["protocol"], it["epoch"], it["step"], it["name"]) for it in found] == [
        ("counted", epoch, step, name)
        for epoch, step in (("0", "5"), ("1", "10"))
        for name in ("probe/seen", "probe/seen_bank")
    ]
    assert json.loads(found[0]["settings"]) == {"knob": 1, "images": 12, "bank_images": 30}
    assert float(found[-2]["value"]) == float(seen.given[-1][0].features.mean())
    assert float(trainer.callback_metrics["probe/seen"]) == pytest.approx(float(found[-2]["value"]))
    assert capsys.readouterr().out.count("probe/seen") == 2


def test_the_last_number_is_told_and_no_maximum(tmp_path, capsys):
    class Falls(Validated):
        def measure(self, pl_module, images, bank):
            super().measure(pl_module, images, bank)
            return {"": 1 / len(self.given)}

    fit(Falls(), max_epochs=3, num_sanity_val_steps=0, folder=tmp_path)

    assert "probe/seen = 0.3333 by counted, after step 15 of epoch 2" in capsys.readouterr().out


def test_a_run_that_measures_again_replaces_its_lines(tmp_path):
    module = seeded(Pixels)
    trainer = fit(Seen(), module=module, max_epochs=2, folder=tmp_path)
    before = rows(tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fit(Seen(), module=seeded(Pixels), max_epochs=2, folder=tmp_path)

    assert rows(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "epochs"), [({"every_n_epochs": 3}, [0, 3, 4]), ({"every_n_epochs": 2}, [0, 2, 4])], ids=["3", "2"]
)
def test_the_last_epoch_is_measured_too(options, epochs, tmp_path):
    fit(Validated(**options), max_epochs=5, folder=tmp_path)

    assert [int(it["epoch"]) for it in rows(tmp_path)] == epochs


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": -1, "max_steps": 15}, [5, 15]),
        ({"max_epochs": -1, "max_steps": 12}, [5, 10]),
        ({"max_epochs": -1, "max_steps": 7, "accumulate_grad_batches": 2}, [3, 6]),
        ({"max_epochs": 3, "val_check_interval": 1}, [1, 2, 3, 4, 5, 15]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [10, 20]),
    ],
)
def test_a_fits_last_validation_is_measured_and_no_other_late_one(options, steps, tmp_path):
    """Epochs of five batches; validations of the first epoch are measured in any case."""
    fit(Validated(every_n_epochs=100), **options, folder=tmp_path)

    assert [int(it["step"]) for it in rows(tmp_path)] == steps


def test_a_test_has_names_of_its_own_and_compares_with_the_datamodules_training_images(tmp_path):
    class Stranger(LightningDataModule):
        def train_dataloader(self):
            return plain_loader(18, shuffle=True)

        def test_dataloader(self):
            return plain_loader(12)

    seen = Seen()
    trainer = quiet_trainer(callbacks=[seen], default_root_dir=tmp_path)
    (scores,) = trainer.test(Pixels(), datamodule=Stranger(), verbose=False)

    assert {"probe/test/seen", "probe/test/seen_bank"} <= scores.keys()
    assert len(seen.given[0][1].features) == 18


def test_numbers_are_computed_in_full_precision_whatever_the_runs(tmp_path):
    class Multiplies(Validated):
        def measure(self, pl_module, images, bank):
            return {"": float((images.features @ images.features.T).dtype == torch.float32)}

    trainer = fit(Multiplies(), precision="bf16-mixed", folder=tmp_path)

    assert trainer.callback_metrics["probe/seen"] == 1


def test_a_number_of_a_file_stands_beside_the_files_moment_and_name(tmp_path):
    files = []
    for epochs in (1, 2):
        files.append(str(tmp_path / f"{epochs}.ckpt"))
        fit(Validated(), max_epochs=epochs, folder=tmp_path / "fits").save_checkpoint(files[-1])
    for file in files:
        trainer = quiet_trainer(callbacks=[Validated()], default_root_dir=tmp_path)
        trainer.validate(Pixels(), plain_loader(12), ckpt_path=file, verbose=False)
    kept = rows(tmp_path)

    assert [json.loads(row["settings"])["checkpoint"] for row in kept] == files
    assert [int(row["step"]) for row in kept] == [5, 10]
    trainer.validate(Pixels(), plain_loader(12), verbose=False)
    assert "checkpoint" not in json.loads(rows(tmp_path)[-1]["settings"])


def test_without_training_images_a_test_says_so():
    trainer = quiet_trainer(callbacks=[Seen()])
    with pytest.warns(UserWarning, match="^Seen: nobody has training images to compare with"):
        (scores,) = trainer.test(Pixels(), plain_loader(6), verbose=False)

    assert not any("probe" in name for name in scores)


def test_training_images_that_only_a_fit_makes_are_told_of():
    class FitOnly(LightningDataModule):
        def setup(self, stage):
            if stage == "fit":
                self.train_set = labelled_images()

        def train_dataloader(self):
            return DataLoader(self.train_set, 4)

        def test_dataloader(self):
            return plain_loader()

    with pytest.warns(
        UserWarning, match=r"^FitOnly.train_dataloader\(\) does not work outside of a fit, 'FitOnly' object"
    ):
        quiet_trainer(callbacks=[Seen()]).test(Featured(), datamodule=FitOnly(), verbose=False)


def test_training_images_come_without_augmentation_and_in_the_size_of_evaluation(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (12, 12), (number * 80, 10, 200)).save(tmp_path / split / label / f"{number}.png")
    data = ImageFolder(tmp_path, image_size=8, train_size=12, eval_size=10, batch_size=2, augment="light")
    seen = Seen(every_n_epochs=1)
    quiet_trainer(callbacks=[seen], default_root_dir=tmp_path).validate(_Sized(), datamodule=data, verbose=False)
    images, bank = seen.given[0]

    assert images.features.shape == bank.features.shape == (6, 300)
    torch.testing.assert_close(torch.unique(bank.features, dim=0), torch.unique(images.features, dim=0))


class _Sized(Pixels):
    def validation_step(self, batch, batch_idx):
        pass


def test_digits_that_are_augmented_in_training_are_not_in_the_bank(tmp_path):
    data, seen = Digits(batch_size=256, shift=2), Seen(max_samples=400)
    trainer = quiet_trainer(callbacks=[seen], default_root_dir=tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(Pixels(), datamodule=data)
    data.trainer = None
    data.prepare_data(), data.setup()
    index = torch.arange(len(data.train_set))
    plain = set(by_rows(data.normalise(data.train_set.fetch(index).image).flatten(1)))
    shifted = data.normalise(data.augment(data.train_set.fetch(index).image, index, 0)).flatten(1)

    assert len(seen.given[-1][1].features) == 400
    assert set(by_rows(seen.given[-1][1].features)) <= plain
    assert not set(by_rows(shifted)) <= plain


def test_the_bank_of_placed_digits_is_balanced_by_nothing_and_stays():
    data = PlacedDigits(batch_size=64, sampler="balanced")
    data.setup()
    twice = [torch.cat([index for _, _, index in data.bank_dataloader()]) for _ in range(2)]

    assert torch.equal(*twice)
    assert torch.equal(twice[0].sort().values, torch.arange(len(data.train_set)))
    assert not torch.equal(twice[0], twice[0].sort().values)


def test_two_ranks_have_what_one_process_has(two_ranks, tmp_path):
    def run():
        seen, module = Seen(), Pixels()
        settings = {"strategy": "ddp", "devices": 2, "default_root_dir": tmp_path, "max_epochs": 1}
        rank = torch.distributed.get_rank()
        train = ResumableLoader(labelled_images(30), 4, rank, 2)
        # The ranks' validations are of different lengths.
        val = DataLoader(torch.utils.data.Subset(labelled_images(13), range(rank, 13, 2)), 4)
        trainer = quiet_trainer(callbacks=[seen], use_distributed_sampler=False, num_sanity_val_steps=0, **settings)
        trainer.fit(module, train, val)
        unequal = from_all_ranks(trainer, torch.full((2 + rank, 3), rank))
        images, bank = seen.given[0]
        return images.features, images.targets, bank.features, float(trainer.callback_metrics["probe/seen"]), unequal

    left, right = two_ranks(run)

    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(left, right, strict=True))
    assert by_rows(left[0]) == by_rows(labelled_images(13).tensors[0].flatten(1))
    assert by_rows(left[2]) == by_rows(labelled_images(30).tensors[0].flatten(1))
    assert left[4][:, 0].tolist() == [0, 0, 1, 1, 1]
    assert len(rows(tmp_path)) == 2


def test_what_was_measured_leaves_no_trace(tmp_path):
    def weights(*probes):
        torch.manual_seed(3)
        recorder = Recorder()
        trainer = fit(*probes, module=seeded(Featured), max_epochs=2, logger=recorder, folder=tmp_path)
        logged = [{key: it for key, it in row.items() if "probe" not in key} for _, row in recorder.rows]
        return trainer.lightning_module.state_dict(), [it for it in logged if it], torch.get_rng_state()

    (ours, logged, stream), (theirs, rows_, plain) = weights(Seen()), weights()

    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert logged == rows_ and torch.equal(stream, plain)


def test_features_that_are_not_finite_are_told_and_not_measured(tmp_path):
    class Broken(Pixels):
        def features(self, image):
            return image.flatten(1) / 0

    seen = Seen()
    with pytest.warns(UserWarning, match="^Seen: some features are not finite, so nothing was measured"):
        fit(seen, module=Broken(), folder=tmp_path)

    assert seen.given == []


def test_a_rehearsal_measures_and_writes_nothing(tmp_path):
    seen = Seen()
    fit(seen, fast_dev_run=True, folder=tmp_path)

    assert len(seen.given) == 1 and seen.given[0][0].features is seen.given[0][1].features
    assert not list(tmp_path.rglob("probes.csv"))


@pytest.mark.parametrize(
    ("make", "module", "message"),
    [
        (
            lambda: [Seen()],
            Plain,
            "Seen: Plain has no features(images), so there is nothing to probe; give it a method",
        ),
        (lambda: [Seen(), Validated()], Pixels, "Seen: Validated also calls its numbers probe/seen; give one of them"),
        (lambda: [Seen(max_samples=0)], Pixels, "Seen: max_samples is 0; give a whole number of at least 1."),
        (lambda: [Seen()], lambda: _Maps(), r"Seen: features of _Maps answered (6, 1, 8, 8) to 6 images; let it"),
        (lambda: [Seen(target_key="label")], lambda: _Unlabelled(), "Seen: it needs a class for each image and the"),
    ],
    ids=["no features", "names", "samples", "maps", "labels"],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(make, module, message, tmp_path):
    own = module()
    with pytest.raises(ValueError) as caught:
        fit(*make(), module=own, val=own.loader() if hasattr(own, "loader") else None, folder=tmp_path)

    assert str(caught.value).startswith(message)
    assert own.trainer.global_step == 0 if getattr(own, "_trainer", None) else True


class _Maps(Pixels):
    def features(self, image):
        return image


class _Unlabelled(Pixels):
    def loader(self):
        return DataLoader([{"image": image} for image in labelled_images(6).tensors[0]], 6)

    def validation_step(self, batch, batch_idx):
        pass

"""Several labels an image: thresholds are chosen on the validation set, kept with their weights and used afterwards."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

from lightning_vision import main
from lightning_vision.base.weights import load_checkpoint
from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.records import prediction_records
from lightning_vision.classification.thresholds import best_thresholds
from lightning_vision.commands._prediction_files import captions, merge
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages
from support.compare import seeded
from support.trainers import quiet_trainer

PARTS = {"even": (0, 2, 4, 6, 8), "has a loop": (0, 6, 8, 9), "is seven": (7,)}
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
HALVES = [0.5] * 3


class Parts(Digits):
    """Digits that are even, have a loop or are a seven: none, one or two labels an image."""

    @property
    def class_names(self):
        return list(PARTS)

    def load(self):
        super().load()
        table = torch.tensor([[float(digit in digits) for digits in PARTS.values()] for digit in range(10)])
        for name in ("train_set", "val_set", "test_set"):
            images = getattr(self, name)
            setattr(self, name, ArrayImages(images.images, table[images.targets]))
        self.predict_set = self.test_set


def small(**settings):
    return ImageClassifier("resnet8_cifar", num_classes=3, in_channels=1, loss="bce", optimizer=SGD, **settings)


def scores_and_target(module, split):
    """Probabilities and labels of a whole split."""
    data = Parts(batch_size=64)
    data.setup()
    images = getattr(data, f"{split}_set")
    with torch.no_grad():
        return module.eval()(data.normalise(images.images)).sigmoid(), images.targets.long()


class Watch(Callback):
    """Thresholds when training starts and after each validation."""

    def __init__(self):
        self.at_start, self.after = [], []

    def on_train_start(self, trainer, pl_module):
        self.at_start.append(pl_module.thresholds)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.after.append(pl_module.thresholds)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs with a checkpoint of each, the module and the logged metrics."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    watch, saver = Watch(), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, monitor="val/map", mode="max")
    trainer = quiet_trainer(max_epochs=2, callbacks=[watch, saver], enable_checkpointing=True, num_sanity_val_steps=1)
    module = seeded(small)
    trainer.fit(module, datamodule=Parts(batch_size=100))
    return folder, module, watch, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_validation_chooses_the_best_thresholds_of_the_whole_set(run):
    _, module, watch, logged = run
    scores, target = scores_and_target(module, "val")
    chosen = best_thresholds(scores, target)

    assert module.thresholds == pytest.approx(chosen, abs=1e-6)
    assert module.thresholds == watch.after[-1] != HALVES
    assert logged["val/f1"] == pytest.approx(f1_score(target, scores > torch.tensor(chosen), average="macro"))
    assert logged["val/map"] == pytest.approx(average_precision_score(target, scores, average="macro"))


def test_the_sanity_check_chooses_nothing(run):
    assert run[2].at_start == [HALVES]


def test_each_checkpoint_has_the_thresholds_of_its_own_epoch(run):
    folder, _, watch, _ = run
    kept = [load_checkpoint(folder / f"epoch={epoch}.ckpt")["thresholds"] for epoch in (0, 1)]

    assert kept == watch.after
    assert kept[0] != kept[1]


def test_a_test_of_a_checkpoint_decides_by_its_thresholds(run):
    loaded = ImageClassifier.load_from_checkpoint(run[0] / "epoch=0.ckpt", weights_only=True)
    (logged,) = quiet_trainer().test(loaded, datamodule=Parts(batch_size=100), verbose=False)
    scores, target = scores_and_target(loaded, "test")
    f1 = f1_score(target, scores > torch.tensor(run[2].after[0]), average=None)

    assert [row["threshold"] for row in loaded.per_class] == run[2].after[0]
    assert [row["f1"] for row in loaded.per_class] == pytest.approx(list(f1))
    assert logged["test/f1"] == pytest.approx(f1.mean())
    assert logged["test/map"] == pytest.approx(average_precision_score(target, scores, average="macro"))
    assert f1.mean() != pytest.approx(f1_score(target, scores > 0.5, average="macro"), abs=1e-4)


def test_a_new_fit_forgets_the_thresholds_and_a_resumed_one_keeps_them(run):
    path = run[0] / "epoch=0.ckpt"
    new, resumed = Watch(), Watch()
    for watch, options in ((new, {}), (resumed, {"ckpt_path": path, "weights_only": True})):
        trainer = quiet_trainer(max_epochs=2, limit_val_batches=0, callbacks=[watch])
        loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True)
        trainer.fit(loaded, datamodule=Parts(batch_size=600), **options)

    assert new.at_start == [HALVES]
    assert resumed.at_start == [run[2].after[0]]


def test_both_ranks_choose_the_same_thresholds(two_ranks, run):
    path = run[0] / "epoch=0.ckpt"

    def validate(**options):
        module = ImageClassifier.load_from_checkpoint(path, weights_only=True)
        (logged,) = quiet_trainer(**options).validate(module, datamodule=Parts(batch_size=50), verbose=False)
        return module.thresholds, logged

    first, second = two_ranks(partial(validate, strategy="ddp", devices=2))
    thresholds, logged = validate()

    assert first == second
    assert first[0] == pytest.approx(thresholds, abs=1e-6)
    assert first[1] == pytest.approx(logged, rel=1e-5)


def test_raw_files_are_named_by_the_thresholds(run):
    module = run[1]
    data = Parts()
    data.setup()
    for number in range(8):
        Image.fromarray(data.test_set.images[number, 0].numpy()).save(f"{number}.png")
    records = module.predict([f"{number}.png" for number in range(8)])

    for record in records:
        each = zip(PARTS, record["probabilities"], module.thresholds, strict=True)
        assert record["labels"] == [name for name, score, threshold in each if score > threshold]
    assert len({tuple(record["labels"]) for record in records}) > 1


def test_one_label_an_image_has_no_thresholds():
    module = ImageClassifier("resnet8_cifar", num_classes=3, in_channels=1)
    (record,) = prediction_records(torch.tensor([[0.2, 0.8]]), [0], ["a", "b"], [None])

    assert module.thresholds is None
    assert "labels" not in record


def test_labels_in_files_and_titles():
    """Three images: two labels rightly, none though there is one, none rightly."""
    scores, target = torch.tensor([[0.9, 0.6], [0.3, 0.4], [0.1, 0.1]]), [["a", "b"], ["a"], []]
    records = prediction_records(scores, range(3), ["a", "b"], [None] * 3, 1, [0.5, 0.5])
    truths = [{"target": [int(name in there) for name in "ab"], "target_name": there} for there in target]
    Path("part.jsonl").write_text(
        "".join(json.dumps(record | truth) + "\n" for record, truth in zip(records, truths, strict=True))
    )
    merge([Path("part.jsonl")], Path(), ["a", "b"])
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert [(row["labels"], row["target_name"]) for row in rows] == [("a|b", "a|b"), ("|", "a"), ("|", "|")]
    assert captions(Path("predictions.jsonl"), 3) == ([1, 0, 2], ["none, is a", "a, b", "none"])


def test_the_command_writes_the_chosen_labels_and_a_row_for_each(capsys):
    quick = ["--config", "classification/digits", "--model.loss", "bce", "--model.label_smoothing", "0"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    main(["fit", *quick, *quiet, "--trainer.max_epochs", "1", "--trainer.default_root_dir", "run"])
    (best,) = Path().rglob("best*.ckpt")
    thresholds = load_checkpoint(best)["thresholds"]
    written = main(["predict", *quick, *quiet, "--ckpt_path", str(best), "--output", "."]).output
    main(["test", *quick, *quiet, "--ckpt_path", str(best)])
    records = [json.loads(line) for line in Path(written["jsonl"]).read_text().splitlines()]

    assert thresholds != [0.5] * 10
    for record in records:
        each = zip(record["probabilities"], thresholds, strict=True)
        assert record["labels"] == [str(k) for k, (score, threshold) in enumerate(each) if score > threshold]
    assert {len(record["labels"]) for record in records} != {1}
    assert "average_precision  threshold" in " ".join(capsys.readouterr().out.split(" ")).replace("   ", "  ")


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", nn.CrossEntropyLoss()], ids=["named", "focal", "torch's"])
def test_a_loss_of_one_label_is_refused_where_the_data_has_several(loss: str | nn.Module) -> None:
    data = Digits()
    data.multilabel = True
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, loss=loss)
    with pytest.raises(ValueError, match=r"^Digits has several labels an image and \w+ expects one; pass loss='bce'$"):
        quiet_trainer().fit(module, data)

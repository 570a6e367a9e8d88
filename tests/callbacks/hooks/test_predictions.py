"""The predictions seam sees each answer once, tells the best validation, and refuses what holds no answer."""

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Subset

from lightning_vision.callbacks import ClassificationReport, TestTimeAugmentation
from support.compare import seeded
from support.data import ResumableLoader, labelled_images
from support.modules import DictBatches, Plain
from support.trainers import quiet_trainer


def loader(count=30, **options):
    return ResumableLoader(labelled_images(count, seed=1), 6, **options)


def matrix(report):
    counted = report["counts"][:, 2].diag()
    for own, other, times in report["confusions"].tolist():
        counted[own, other] = times
    return counted


def by_hand(module, data):
    module.eval()
    with torch.no_grad():
        said = module(data.tensors[0]).argmax(1)
    module.train()
    counted = torch.zeros(10, 10, dtype=torch.int64)
    for own, other in zip(data.tensors[1].tolist(), said.tolist(), strict=True):
        counted[own, other] += 1
    return counted


class Scripted(Plain):
    """Logs given numbers as its validations' scores, and keeps what it should have been counted as."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.counted = iter(scores), []

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.counted.append(by_hand(self, labelled_images(30, seed=1)))
        self.log("score", torch.tensor(0.0 if self.trainer.sanity_checking else next(self.scores)))


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [0.1, 0.7, 0.7, 0.3], 1),
        ("min", [0.9, 0.7, 0.2, 0.3], 2),
        ("max", [float("nan"), 0.2, float("nan"), 0.1], 1),
    ],
)
def test_the_best_validation_is_reported(mode, scores, best):
    report = ClassificationReport(monitor="score", mode=mode)
    module = seeded(Scripted, scores)
    quiet_trainer(callbacks=[report], max_epochs=4).fit(module, loader(60), loader())

    assert report.best["epoch"] == best
    assert report.best["score"] == pytest.approx(scores[best])
    assert torch.equal(matrix(report.best["report"]), module.counted[best])
    assert not torch.equal(module.counted[best], module.counted[0])


def test_without_a_monitor_the_latest_is_and_only_of_every_nth_epoch():
    latest, second = ClassificationReport(monitor=None), ClassificationReport(monitor=None, every_n_epochs=2)
    for report in (latest, second):
        quiet_trainer(callbacks=[report], max_epochs=4).fit(seeded(Plain), loader(60), loader())

    assert (latest.best["epoch"], second.best["epoch"]) == (3, 2)


def test_a_resumed_run_knows_the_best_validation_of_before(tmp_path):
    scores = [0.1, 0.7, 0.5, 0.3]
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    first = ClassificationReport(monitor="score", mode="max")
    quiet_trainer(callbacks=[first, saves], max_epochs=2, enable_checkpointing=True).fit(
        seeded(Scripted, scores[:2]), loader(60), loader()
    )
    again = ClassificationReport(monitor="score", mode="max")
    quiet_trainer(callbacks=[again], max_epochs=4).fit(
        seeded(Scripted, scores[2:]), loader(60), loader(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True
    )

    assert again.best["epoch"] == first.best["epoch"] == 1
    assert torch.equal(again.best["report"]["counts"], first.best["report"]["counts"])


def test_evaluating_a_file_does_not_replace_the_fits_best_and_a_new_fit_forgets_it(tmp_path):
    report = ClassificationReport(monitor="score", mode="max")
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = quiet_trainer(callbacks=[report, saves], max_epochs=3, enable_checkpointing=True)
    module = seeded(Scripted, [0.5, 0.7, 0.6, 0.0])
    trainer.fit(module, loader(60), loader())
    trainer.validate(module, loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True, verbose=False)
    kept = report.best["epoch"]
    quiet_trainer(callbacks=[report], max_epochs=1).fit(seeded(Scripted, [0.1]), loader(60), loader())

    assert (kept, report.best["epoch"]) == (1, 0)


def test_going_on_from_a_file_of_before_the_first_validation_forgets_the_best_of_the_run_that_went_on(tmp_path):
    report = ClassificationReport(monitor="score", mode="max")
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = quiet_trainer(callbacks=[report, saves], max_epochs=1, enable_checkpointing=True)
    trainer.fit(seeded(Scripted, [0.9]), loader(60), loader())
    known = report.best["score"]
    trainer.fit(seeded(Scripted, [0.1]), loader(60), loader(), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)

    assert (known, report.best["score"]) == (pytest.approx(0.9), pytest.approx(0.1))


@pytest.mark.parametrize("kind", [Plain, DictBatches])
def test_validate_and_test_report_the_samples_they_saw_each_once(kind, tmp_path, capsys):
    module, data = seeded(kind), labelled_images(30, seed=1)
    keys = ("image", "target")
    collate = (
        (lambda batch: dict(zip(keys, map(torch.stack, zip(*batch, strict=True)), strict=True)))
        if (kind is DictBatches)
        else None
    )
    trainer = quiet_trainer(callbacks=[ClassificationReport()], default_root_dir=tmp_path)
    right = int(by_hand(module, data).diagonal().sum())
    trainer.validate(module, ResumableLoader(data, 7, collate_fn=collate), verbose=False)
    trainer.test(module, ResumableLoader(data, 7, collate_fn=collate), verbose=False)
    said = capsys.readouterr().out

    assert f"validation: 30 images, {right / 30:.2%} right" in said
    assert f"test: 30 images, {right / 30:.2%} right" in said
    assert len(list((tmp_path / "report").iterdir())) == 6


def test_files_lie_in_the_first_loggers_folder_and_a_rehearsal_writes_none(tmp_path):
    loggers = [CSVLogger(tmp_path, name="runs"), CSVLogger(tmp_path, name="others")]
    for options in ({"logger": loggers}, {"fast_dev_run": True, "default_root_dir": tmp_path / "rehearsal"}):
        quiet_trainer(callbacks=[ClassificationReport()], max_epochs=1, **options).fit(
            seeded(Plain), loader(), loader()
        )

    assert [it.relative_to(tmp_path).parts[:2] for it in tmp_path.rglob("report")] == [("runs", "version_0")]


class Named(Plain):
    class_names = tuple("abcdefghij")


def test_names_come_from_the_module_where_no_datamodule_has_them(capsys):
    quiet_trainer(callbacks=[ClassificationReport()]).test(seeded(Named), loader(), verbose=False)

    assert capsys.readouterr().out.splitlines()[2][0] in "abcdefghij"


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_reported_is_the_answer_after_all_views(turned):
    """Five crops whose mean is another answer than the last one of them, in both list orders."""
    module, report = seeded(Plain), ClassificationReport(monitor=None)
    callbacks = [TestTimeAugmentation(views="five_crop", validate=True), report]
    answers = []

    class Asks(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            answers.append((pl_module(batch[0]).argmax(1), batch[1]))

    trainer = quiet_trainer(
        callbacks=[*callbacks[:: -1 if turned else 1], Asks()], max_epochs=1, num_sanity_val_steps=0
    )
    trainer.fit(module, loader(60), loader())
    counted = torch.zeros(10, 10, dtype=torch.int64)
    for said, target in answers:
        for own, other in zip(target.tolist(), said.tolist(), strict=True):
            counted[own, other] += 1

    assert torch.equal(matrix(report.best["report"]), counted)


class Tuple(Plain):
    def forward(self, image):
        return (super().forward(image),)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self(batch[0])[0].mean())


class PastForward(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.network(batch[0]).mean())


class HalfTheLabels(Plain):
    def validation_step(self, batch, batch_idx):
        super().validation_step((batch[0][::2], batch[1][::2]), batch_idx)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Tuple, {}, r"validation_step of Tuple got no logits \(B, K\) from the module's forward, so there is nothing"),
        (PastForward, {}, r"validation_step of PastForward got no logits"),
        (HalfTheLabels, {}, r"the labels of a batch are \(6,\) for logits \(3, 10\); give whole numbers \(B,\)"),
        (
            Plain,
            {"monitor": "acc"},
            "no validation logs monitor='acc'.*; logged is val/loss; name one of these, or None",
        ),
    ],
)
def test_what_cannot_be_reported_is_refused_in_the_sanity_check(kind, settings, message):
    module = seeded(kind)
    before = module.network[0].weight.clone()

    with pytest.raises(ValueError, match=f"^ClassificationReport: {message}"):
        quiet_trainer(callbacks=[ClassificationReport(**settings)], max_epochs=1).fit(module, loader(), loader())

    assert torch.equal(module.network[0].weight, before)
    assert "forward" not in vars(module)


def test_two_would_write_the_same_files_and_are_refused_and_a_fit_without_validation_is_told():
    with pytest.raises(ValueError, match="both would write the same files; keep one of them"):
        quiet_trainer(callbacks=[ClassificationReport(), ClassificationReport(name="b")]).test(Plain(), loader())
    with pytest.warns(UserWarning, match="no validation was tallied in this fit"):
        quiet_trainer(callbacks=[ClassificationReport()], max_epochs=1).fit(Plain(), loader())


def on_a_rank(folder):
    """Of 30 images one rank sees 15, or 24 and the other the rest."""
    rank = dist.get_rank()
    found = []
    for rest in (False, True):
        report = ClassificationReport(monitor=None, worst=4)
        trainer = quiet_trainer(
            callbacks=[report],
            max_epochs=1,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
            default_root_dir=folder,
            num_sanity_val_steps=0,
        )
        data = ResumableLoader(labelled_images(30, seed=1), 6, rank, 2)
        if rest:
            data = DataLoader(Subset(data.data, range(24) if rank == 0 else range(24, 30)), batch_size=6)
        module = seeded(Plain)
        module.validation_step = lambda batch, batch_idx, module=module: module(batch[0])
        trainer.fit(module, ResumableLoader(labelled_images(60), 6, rank, 2), data)
        found.append(report.best["report"])
    return found


def test_over_two_processes_every_sample_counts_once_and_both_know_the_report(two_ranks, tmp_path):
    (halves, whole), (halves_too, whole_too) = two_ranks(on_a_rank, tmp_path)

    for other in (halves_too, whole, whole_too):
        assert torch.equal(matrix(halves), matrix(other))
        assert torch.equal(halves["mistakes"], other["mistakes"])
        assert torch.equal(halves["images"], other["images"])
    assert int(halves["counts"][:, 0].sum()) == 30
    assert len(list(tmp_path.rglob("*.csv"))) == 1


def test_a_compiled_module_is_reported_as_one_that_is_not(compiler):
    plain, compiled = seeded(Plain), torch.compile(seeded(Plain), backend="eager")
    reports = []
    for module in (plain, compiled):
        report = ClassificationReport(monitor=None)
        quiet_trainer(callbacks=[report], max_epochs=1, limit_train_batches=0.1, num_sanity_val_steps=0).fit(
            module, loader(60), loader(12)
        )
        reports.append(report.best["report"])

    assert torch.equal(matrix(reports[0]), matrix(reports[1]))

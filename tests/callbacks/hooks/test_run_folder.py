"""A run's files lie where Lightning puts its checkpoints, so that two runs never write into one another's folder."""

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from lightning_vision.callbacks import ClassificationReport, ConfusionLogger
from lightning_vision.callbacks.hooks._run_folder import run_folder
from support.data import plain_loader
from support.modules import Plain
from support.resuming import Recorder
from support.trainers import quiet_trainer


class Remote(Logger):
    """A logger without a folder of its own, as W&B's and MLflow's."""

    name, version = "remote", ""

    def __init__(self, version="a1"):
        super().__init__()
        self.version = version

    def log_metrics(self, *args, **kwargs):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.mark.parametrize(
    ("logger", "folder"),
    [
        (lambda root: False, "root"),
        (lambda root: Remote(), "root/remote/a1"),
        (lambda root: Recorder(), "root/recorder/version_0"),
        (lambda root: CSVLogger(root / "csv", name="run"), "csv/run/version_0"),
        (lambda root: TensorBoardLogger(root / "board", "run", sub_dir="part"), "board/run/version_0/part"),
        (lambda root: WandbLogger(project="vision", id="abc", save_dir=root / "w", offline=True), "w/vision/abc"),
    ],
    ids=["none", "remote", "recorder", "csv", "tensorboard", "wandb"],
)
def test_the_folder_is_that_of_the_first_loggers_checkpoints(logger, folder, tmp_path):
    made = logger(tmp_path)
    trainer = quiet_trainer(logger=[made, CSVLogger("second")] if made else made, default_root_dir=tmp_path / "root")

    assert run_folder(trainer) == tmp_path / folder


def test_two_runs_of_a_remote_logger_keep_apart_what_they_write(tmp_path):
    for version in ("a1", "b2"):
        callbacks = [ClassificationReport(), ConfusionLogger()]
        trainer = quiet_trainer(callbacks=callbacks, logger=Remote(version), default_root_dir=tmp_path)
        trainer.validate(Plain(), plain_loader(12), verbose=False)
    folders = {it.relative_to(tmp_path).as_posix() for it in tmp_path.rglob("*") if it.name in ("report", "media")}

    assert folders == {f"remote/{run}/{kind}" for run in ("a1", "b2") for kind in ("report", "media")}

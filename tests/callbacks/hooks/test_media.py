"""A picture reaches the folder of the run and every logger that takes pictures, and none of them costs the run."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_vision.callbacks.hooks._media import keep_picture, log_picture
from support.data import plain_loader
from support.modules import Plain
from support.resuming import Recorder
from support.trainers import quiet_trainer

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class Remote(Logger):
    """A logger without a folder; it has pictures of its own or fails to take them."""

    name, version = "remote", "a1"

    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.taken = fails, []

    def log_image(self, key, images, step=None):
        if self.fails:
            raise ConnectionError("no route to host")
        self.taken.append((key, step, len(images)))

    def log_metrics(self, *args, **kwargs):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_tensorboard_shows_the_pixels_at_their_step(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for step in (3, 7):
        log_picture([logger], "val/toy", PICTURE, step)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir, {"images": 0}).Reload().Images("val/toy")
    (tmp_path / "read.png").write_bytes(events[1].encoded_image_string)

    assert [it.step for it in events] == [3, 7]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "read.png")), PICTURE)


ALL_LOGGERS = """
import sys
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning_vision.callbacks import GradCAMLogger
from support.data import plain_loader
from support.modules import Plain

root = sys.argv[1]
loggers = [
    WandbLogger(project="vision", save_dir=root, offline=True),
    MLFlowLogger("vision", tracking_uri=f"sqlite:///{root}/mlflow.db", artifact_location=f"{root}/artifacts"),
    TensorBoardLogger(root, name="board"),
    CSVLogger(root, name="numbers"),
]
options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = Trainer(
    accelerator="cpu", logger=loggers, max_epochs=2, limit_train_batches=2, default_root_dir=root,
    callbacks=[GradCAMLogger(samples=2, name="seen")], **options,
)
trainer.fit(Plain(), plain_loader(), plain_loader(12))
"""


@pytest.mark.slow
def test_several_loggers_at_once_get_the_picture_of_each_validation(tmp_path):
    """In a process of its own, for W&B keeps one running; MLflow's client reads its store."""
    import mlflow

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", ALL_LOGGERS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("vision/*/media/val/seen/*.png"))
    pictures = [np.asarray(Image.open(it)) for it in files]

    assert [it.name for it in files] == ["step_00000002.png", "step_00000004.png"]
    (board,) = tmp_path.glob("board/version_0")
    events = EventAccumulator(str(board), {"images": 0}).Reload().Images("val/seen")

    assert [it.step for it in events] == [2, 4]
    of_wandb = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/val/seen_*.png"), key=_number)

    assert [np.array_equal(np.asarray(Image.open(it)), own) for it, own in zip(of_wandb, pictures, strict=True)] == [
        True,
        True,
    ]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (it for it in client.search_experiments() if it.name == "vision")
    (run,) = client.search_runs([experiment.experiment_id])
    listed = [it.path for it in client.list_artifacts(run.info.run_id, "images") if it.path.endswith("png")]
    of_mlflow = sorted(listed, key=lambda path: int(path.split("+")[2]))

    assert [path.split("+")[:3] for path in of_mlflow] == [["images/val~seen", "step", str(step)] for step in (2, 4)]
    for path, own in zip(of_mlflow, pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(next(tmp_path.rglob(Path(path).name)))), own)


def _number(path):
    return int(path.name.split("_")[1])


def test_loggers_of_numbers_are_passed_over_and_one_that_fails_is_told(recwarn, tmp_path):
    good = Remote()
    log_picture([Recorder(), CSVLogger(tmp_path), Remote(fails=True), good], "val/toy", PICTURE, 5)

    assert good.taken == [("val/toy", 5, 1)]
    assert [str(it.message) for it in recwarn] == [
        "Remote did not take the picture val/toy (no route to host); the run goes on without it."
    ]


def test_a_folder_that_cannot_be_written_is_told_once_and_loggers_still_get_the_picture(tmp_path):
    media = tmp_path / "remote/a1/media"
    media.parent.mkdir(parents=True)
    media.write_text("a file where the folder would be")
    logger, trainer = Remote(), quiet_trainer(default_root_dir=tmp_path)
    trainer._loggers = [logger]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for step in range(3):
            trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = step
            keep_picture(trainer, "val", "toy", PICTURE)
    folder = media / "val" / "toy"

    assert [str(it.message) for it in told] == [
        f"pictures cannot be written into {folder} (Not a directory); the run goes on without them."
    ]
    assert len(logger.taken) == 3


def test_a_rehearsal_writes_nothing(tmp_path):
    logger = Remote()
    trainer = quiet_trainer(default_root_dir=tmp_path, fast_dev_run=True)
    trainer.fit(Plain(), plain_loader(), plain_loader(6))
    trainer._loggers = [logger]
    keep_picture(trainer, "val", "toy", PICTURE)

    assert (list(tmp_path.rglob("*.png")), logger.taken) == ([], [])

"""The house's own classifier, datamodule and loader: killed on real digits in mid-epoch and resumed, bit for bit."""

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision import ImageClassifier
from lightning_vision.callbacks import ExactResume
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._loader import ShardedLoader
from support.resuming import differences, newest, record

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")

# 23 batches an epoch on one process, 12 on two; a checkpoint every 5 steps; killed in the second epoch.
DDP = {"strategy": "ddp", "devices": 2}


def train(folder, name, seed, workers, callbacks, options, **how):
    torch.manual_seed(1)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, drop_rate=0.5)
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(seed + 10 * rank)
    data = Digits(batch_size=64, num_workers=workers)
    writer = ModelCheckpoint(folder / name, filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=5)
    return record(module, None, [*callbacks(), writer], datamodule=data, max_epochs=2, **options, **how)


def kill_and_resume(folder, kill_at, workers, callbacks, options):
    straight = train(folder, "straight", 3, workers, callbacks, options)
    killed = train(folder, "killed", 3, workers, callbacks, options, kill_at=kill_at)
    if dist.is_initialized():
        dist.barrier()
    resumed = train(folder, "killed", 4, workers, callbacks, options, ckpt_path=newest(folder / "killed"))
    return differences(straight, killed, resumed), [row for _, row in resumed.rows if "train/loss_epoch" in row]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process(workers, tmp_path):
    found, epochs = kill_and_resume(tmp_path, 33, workers, lambda: [ExactResume()], {})

    assert found == []
    assert len(epochs) == 1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes(workers, two_ranks, tmp_path):
    outcome = two_ranks(kill_and_resume, tmp_path, 18, workers, lambda: [ExactResume()], DDP)

    assert [found for found, _ in outcome] == [[], []]
    assert [len(epochs) for _, epochs in outcome] == [1, 1]


def test_without_the_callback_the_runs_differ(tmp_path):
    found, _ = kill_and_resume(tmp_path, 33, 0, list, {})

    assert any("weights" in line for line in found)


def test_with_a_loader_that_forgets_its_place_the_runs_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(ShardedLoader, "load_state_dict", lambda self, state: None)
    found, _ = kill_and_resume(tmp_path, 33, 0, lambda: [ExactResume()], {})

    assert any("weights" in line for line in found)

"""Tiny learners without labels, and what each of them is held to: followers, ranks and resumption."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_vision.callbacks import ExactResume

from .data import ResumableLoader, labelled_images
from .resuming import differences, newest, record
from .trainers import quiet_trainer

__all__ = ["contrasted", "moves", "resumed", "shared", "tiny", "unlabelled"]


def tiny(kind: Callable[..., Any], **settings: Any) -> Any:
    """A learner of 8-pixel images, always of the same first weights."""
    torch.manual_seed(0)
    given = {"backbone_settings": {"widths": [4, 8]}, "views": "digits", "hidden_dim": 16, "out_dim": 8} | settings
    return kind(backbone="plain8_cifar", in_channels=1, optimizer=partial(torch.optim.SGD, lr=0.1), **given)


def unlabelled() -> ResumableLoader:
    """Eight batches of six images an epoch."""
    return ResumableLoader(labelled_images(48), 6)


class _Moves(Callback):
    def __init__(self, tau: float) -> None:
        self.tau, self.found = tau, list[str]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = {name: value.clone() for name, value in pl_module.target.copy.state_dict().items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        own, now = pl_module.source.state_dict(), pl_module.target.copy.state_dict()
        pairs = [(self.before[name], own[name], value) for name, value in now.items() if value.is_floating_point()]
        stays = all(torch.equal(before, after) for before, _, after in pairs)
        moved = all(torch.allclose(torch.lerp(before, new, 1 - self.tau), after) for before, new, after in pairs)
        self.found.append("stays" if stays else "moves" if moved else "elsewhere")


def moves(learner: Any, **options: Any) -> list[str]:
    """What the target does in each of four micro-batches, two a step: `stays`, `moves` by (1 - tau), or `elsewhere`."""
    watch = _Moves(learner.momentum)
    trainer = quiet_trainer(callbacks=[watch], accumulate_grad_batches=2, max_epochs=1, limit_train_batches=4)
    trainer.fit(learner, unlabelled())
    return watch.found


def shared(learner: Any) -> Any:
    """The mutant whose target is the network itself."""
    learner.target.copy = learner.source
    return learner


def resumed(make: Callable[[], Any], folder: Path) -> list[str]:
    """What differs between a straight run of two epochs and one that is killed within the second and resumed."""

    def go(name: str, **how: Any) -> Any:
        writer = ModelCheckpoint(folder / name, filename="{step}", save_top_k=-1, every_n_train_steps=5)
        callbacks = [ExactResume(), writer]
        return record(make(), unlabelled, callbacks, max_epochs=2, default_root_dir=folder, **how)

    straight, killed = go("straight"), go("killed", kill_at=12)
    return differences(straight, killed, go("killed", ckpt_path=newest(folder / "killed")))


def contrasted(loss: Callable[..., Tensor], rows: tuple[int, int] = (5, 3)) -> tuple[Tensor, Tensor]:
    """Loss and gradient of this rank's rows of a batch of embeddings of two views, averaged over ranks as DDP does.

    Args:
        loss: Of embeddings of both views, float64 `(B, 4)`.
        rows: Of each rank; without ranks all are this process's.
    """
    ranks = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if ranks else (0, 1)
    torch.manual_seed(0)
    batch = torch.randn(2, sum(rows), 4, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    begin, count = sum(rows[:rank]), rows[rank] if ranks else sum(rows)
    value = loss(*(batch[:, begin : begin + count] @ weight))
    value.backward()  # type: ignore[no-untyped-call]  # torch's, without types
    assert weight.grad is not None
    if ranks:
        dist.all_reduce(weight.grad)
    return value.detach(), weight.grad / world

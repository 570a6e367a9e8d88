"""What SlimFit costs and saves on a vision transformer: time of a run, and bytes that the backward pass waits for."""

from functools import partial
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.autograd.graph import saved_tensors_hooks

from lightning_vision.callbacks import SlimFit

from .fits import Batches, Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

RATE = 0.9


def rows(quick: bool) -> list[Row]:
    """Train a vision transformer of 6 blocks and 65 tokens of 192 on batches of 32; memory is of one step.

    Args:
        quick: One repetition of one step.
    """
    batches = batches_of(4 if quick else 32, 1 if quick else 12)
    slim = partial(SlimFit, RATE)
    sides: dict[str, Side] = {
        "plain": fitting(_module, batches, 1),
        "checkpointed": fitting(partial(_module, checkpointed=True), batches, 1),
        "frozen": fitting(_module, batches, 1, slim),
        "packed": fitting(_module, batches, 1, partial(slim, activation_bits=8)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    plain = _held_bytes(batches)
    frozen = _held_bytes(batches, freeze_rate=RATE)
    packed = _held_bytes(batches, freeze_rate=RATE, activation_bits=8)
    kept = "bytes held for the backward pass, 90% frozen"
    return [
        Row.slowdown("90% frozen", "a plain run", times["frozen"], times["plain"], "cpu", "<= 1.00"),
        Row.slowdown("90% frozen, 8 bits", "a plain run", times["packed"], times["plain"], "cpu", "<= 1.30"),
        Row.slowdown("90% frozen, 8 bits", "timm's checkpointing", times["packed"], times["checkpointed"], "cpu"),
        Row.slowdown(kept, "a plain run's", [frozen], [plain], "memory", "<= 0.80"),
        Row.slowdown(f"{kept}, 8 bits", "a plain run's", [packed], [plain], "memory", "<= 0.50"),
    ]


def _module(checkpointed: bool = False) -> Plain:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 4, "depth": 6, "embed_dim": 192, "num_heads": 3}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, **shape)
    network.set_grad_checkpointing(checkpointed)  # type: ignore[operator]  # a function of timm's networks
    return Plain(network)


class _Held(Callback):
    """Sums up what torch's functions keep in each step, a storage once, without parameters; and what SlimFit packs."""

    def __init__(self) -> None:
        self.bytes = self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = {it.untyped_storage().data_ptr() for it in pl_module.parameters()}
        step = pl_module.training_step

        def counted(batch: Any) -> Any:
            seen: dict[int, Any] = {}

            def pack(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    # Kept until the step is over, lest an address come again.
                    seen[storage.data_ptr()] = storage
                return tensor.detach()

            with saved_tensors_hooks(pack, lambda it: it):
                result = step(batch)
            packed = [it.packed_bytes for it in trainer.callbacks if isinstance(it, SlimFit)]  # type: ignore[attr-defined]
            self.bytes += sum(it.nbytes() for it in seen.values()) + sum(packed)
            self.steps += 1
            return result

        pl_module.training_step = counted  # type: ignore[method-assign]


def _held_bytes(batches: Batches, **settings: Any) -> float:
    """Bytes that a step keeps, the mean of so many that each layer trains in some of them."""
    held = _Held()
    slim = [] if not settings else [partial(SlimFit, interval=1, **settings)]
    fitting(_module, batches[:1] * 12, 1, *slim, lambda: held)()()
    return held.bytes / held.steps

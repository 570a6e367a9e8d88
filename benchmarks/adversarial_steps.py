"""A training step of two networks against each other under the Trainer, beside bare loops over the same networks."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from lightning_vision.generation.adversarial import AdversarialModule

from .side_by_side import Row

__all__ = ["step_rows"]

STEPS = 16
# Real and made images, what the discriminator is told besides, and what the generator minimises besides.
Made = tuple[Tensor, Tensor, Any, Tensor | float]


def step_rows(
    what: str,
    make: Callable[[], AdversarialModule],
    batch: tuple[Tensor, ...],
    forge: Callable[[AdversarialModule], Made],
    quick: bool,
) -> list[Row]:
    """A step against a loop as tutorials write it, and against one that asks for no gradients that nobody uses.

    Args:
        what: The first column.
        make: Makes the module.
        batch: Of training.
        forge: What the bare loops make of the batch.
        quick: One repetition of two steps.
    """
    steps, count = (2, 1) if quick else (STEPS, 11)
    torch.manual_seed(0)
    module, plain, lean = make(), make(), make()
    turns = {
        "ours": lambda: _under_the_trainer(module, batch, steps),
        "a bare loop": _bare(plain, lambda: forge(plain), steps, spare=False),
        "a bare loop without the discriminator's unused gradients": _bare(lean, lambda: forge(lean), steps, spare=True),
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(count + 1):
        for name, run in turns.items():
            seconds = run()
            if turn:
                times[name].append(seconds)
    ours, *peers = times
    return [Row.slowdown(what, peer, times[ours], times[peer], "cpu", "<= 1.10") for peer in peers]


class _Clock(Callback):
    """Processor time of a step, without the first one."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.begin = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:
            self.seconds = (time.process_time() - self.begin) / batch_idx


def _under_the_trainer(module: AdversarialModule, batch: tuple[Tensor, ...], steps: int) -> float:
    clock = _Clock()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=steps, callbacks=[clock], enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]  # a list will do
    return clock.seconds


def _bare(module: AdversarialModule, forge: Callable[[], Made], steps: int, spare: bool) -> Callable[[], float]:
    generator, discriminator = module.network.generator, module.network.discriminator
    adams = [torch.optim.Adam(it.parameters(), lr=2e-4, betas=(0.5, 0.999)) for it in (generator, discriminator)]

    def told(image: Tensor, condition: Any, target: float) -> Tensor:
        logits = module.judge(image, condition)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def step() -> None:
        real, fake, condition, further = forge()
        adams[1].zero_grad()
        (told(real, condition, 1.0) + told(fake.detach(), condition, 0.0)).backward()
        adams[1].step()
        discriminator.requires_grad_(not spare)
        adams[0].zero_grad()
        (told(fake, condition, 1.0) + further).backward()
        adams[0].step()
        discriminator.requires_grad_(True)

    def run() -> float:
        step()
        begin = time.process_time()
        for _ in range(1, steps):
            step()
        return (time.process_time() - begin) / (steps - 1)

    return run

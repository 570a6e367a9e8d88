"""The ways to train under which every callback is tried, as the rows of a pairwise covering array."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision

from lightning_vision.callbacks.hooks.method import Method
from support.conformance.covering import Row, covering
from support.modules import (
    AnySize,
    AnySizeDictBatches,
    AnySizeTwoOptimizers,
    Detects,
    DetectsDictBatches,
    DetectsTwoOptimizers,
    DictBatches,
    DropsPaths,
    DropsPathsDictBatches,
    DropsPathsTwoOptimizers,
    Featured,
    FeaturedDictBatches,
    FeaturedTwoOptimizers,
    Plain,
    Samples,
    SamplesDictBatches,
    SamplesTwoOptimizers,
    TwoOptimizers,
)

__all__ = ["FACTORS", "Condition", "conditions"]

# What a module has that some callbacks need (`Method.needs`), each more than the one before.
MODULES: dict[str, dict[str, type[Plain]]] = {
    "": {"plain": Plain, "dict batches": DictBatches, "manual": TwoOptimizers},
    "any size": {"plain": AnySize, "dict batches": AnySizeDictBatches, "manual": AnySizeTwoOptimizers},
    "drop paths": {"plain": DropsPaths, "dict batches": DropsPathsDictBatches, "manual": DropsPathsTwoOptimizers},
    "features": {"plain": Featured, "dict batches": FeaturedDictBatches, "manual": FeaturedTwoOptimizers},
    "samples": {"plain": Samples, "dict batches": SamplesDictBatches, "manual": SamplesTwoOptimizers},
    "detections": {"plain": Detects, "dict batches": DetectsDictBatches, "manual": DetectsTwoOptimizers},
}
# The first level of each factor is the ordinary one, under which every callback has to work.
FACTORS: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "bf16", "fp16"),
    "accumulate": (1, 2),
    "clip": ("off", "norm"),
    "module": tuple(MODULES[""]),
    "processes": (1, 2),
    "resume": ("inside an epoch", "at its end"),
}


@dataclass(frozen=True)
class Condition:
    """One way to train.

    Args:
        precision: fp32, bf16 (autocast) or fp16 (autocast and a loss scaler, on the CPU).
        accumulate: micro-batches of an optimizer step; an epoch has five, so the last window of two is short.
        clip: `norm` limits the gradient's norm to 0.5.
        module: plain (batch norm and dropout), the same on dict batches, or manual with two optimizers.
        processes: 1, or 2 that are joined by gloo.
        resume: where the killed run goes on.
        needs: what the callbacks need of the module (`Method.needs`), which is no factor.
    """

    precision: str = "fp32"
    accumulate: int = 1
    clip: str = "off"
    module: str = "plain"
    processes: int = 1
    resume: str = "inside an epoch"
    needs: str = ""

    def __str__(self) -> str:
        clip = "no clipping" if self.clip == "off" else "clipped norm"
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        parts = [self.precision, f"accumulate {self.accumulate}", clip, self.module, processes]
        return ", ".join([*parts, f"resumed {self.resume}"])

    @property
    def levels(self) -> Row:
        """Its level of every factor: a row of the covering array."""
        return {factor: getattr(self, factor) for factor in FACTORS}

    @property
    def steps_a_batch(self) -> int:
        """Optimizer steps of a batch where nothing is accumulated."""
        return 2 if self.module == "manual" else 1

    def make_module(self, **arguments: Any) -> LightningModule:
        return MODULES[self.needs][self.module](**arguments)

    def on_behalf_of(self, *kinds: type[Method]) -> "Condition":
        """The same with a module that has what all of these callbacks need."""
        return replace(self, needs=max((kind.needs for kind in kinds), key=list(MODULES).index))

    def options(self) -> dict[str, Any]:
        """Arguments of the Trainer."""
        options: dict[str, Any] = {"accumulate_grad_batches": self.accumulate}
        if self.clip == "norm":
            options["gradient_clip_val"] = 0.5
        if self.precision == "bf16":
            options["precision"] = "bf16-mixed"
        if self.precision == "fp16":
            # So high that the first step overflows and is skipped; so short a patience that later ones do again.
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
            options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
        if self.processes == 2:
            options |= {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        return options


def _possible(row: Row) -> bool:
    """Lightning forbids clipping and accumulation under manual optimisation."""
    return row["module"] != "manual" or (row["accumulate"] == 1 and row["clip"] == "off")


@cache
def conditions() -> tuple[Condition, ...]:
    """Pairwise for automatic optimisation alone, lest it lean on rows that a callback may refuse; then manual."""
    automatic = covering(FACTORS, lambda row: row["module"] != "manual")
    return tuple(Condition(**row) for row in covering(FACTORS, _possible, automatic))

"""Structured pruning: the channels that matter least leave, as many as a budget of operations or time asks for.

Aflalo, Noy, Lin, Friedman and Zelnik 2020, arXiv:2002.08258. With I_c the importance of channel c and k_c its cost, the
channels S that stay maximise the sum of I_c over S, subject to the sum of k_c over S being at most B: a 0/1 knapsack.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ..distillation.kd_loss import kd_loss
from ..hooks._checks import number, whole
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._parent import answering_layer, parents_outputs
from ..hooks.structure import Structure
from ._channels import ChannelGroup, Cut, zeroed
from ._choice import channel_importance, channels_to_cut
from ._costs import Costs, Table, flop_costs, latency_costs, latency_table
from ._groups import channel_groups, require_torch_pruning
from .inner_distillation import inner_distillation_loss
from .shrink import idle_channels

__all__ = ["StructuredPruning"]


@final
class StructuredPruning(Structure):
    """Cuts whole channels out of a network until it meets a budget, and teaches what is left by what was there.

    Channels that skip connections, depth-wise convolutions and norms tie together leave together. Their importance is
    gathered over some optimizer steps; then the least important are masked, all their weights, biases and norms, and
    training goes on. Files hold the masked network under the names of a plain run. When the fit has ended, the module
    is cut in place: its layers are ordinary, narrower ones. `shrink` does the same to a module that a file was loaded
    into. It acts at the end of a training batch, so a validation and a checkpoint see what was masked.

    Args:
        budget: Fraction of the whole network's cost that is left at most, in (0, 1]; 1 is neutral.
        cost: `flops`, operations of Linear and convolutional layers, or `latency`, seconds of these layers measured
            on this machine for a training batch.
        begin_step: Optimizer steps before importance is gathered, at least 0.
        importance_batches: Optimizer steps over which it is gathered, at least 1; the cut follows at once.
        solver: Of the knapsack: `dp` is exact, `greedy` takes importance per cost.
        floor: Fraction of each group's channels, in [0, 1], that stays in any case; one channel always does.
        include: Shell patterns of layers that may lose outputs, as `["network.layer4.*"]`; None is all.
        exclude: Shell patterns of layers that keep their outputs.
        inner_weight: Weight of the inner distillation, at least 0; 0 is none.
        inner_layers: Shell patterns of the layers whose outputs it compares; None are those that have lost inputs.
        logits_weight: Weight of the distillation of logits, at least 0; 0 is none.
        temperature: Of the distillation of logits, above 0.
        image_key: Key of the images, if batches are mappings.
        name: Part of the state key, and the name of the table's file.

    Shape:
        Images `(B, C, H, W)`; the module is called as `module(images)`.

    Raises:
        ModuleNotFoundError: from the constructor, if torch-pruning is not installed.
        ValueError: from the constructor, for a setting out of range; at set-up, for compiled parts, or for a
            distillation under manual optimisation; before the first step, if a pattern matches nothing, the module
            cannot be traced, has no channels that can be cut, or cannot meet the budget.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import StructuredPruning
        >>> trainer = Trainer(callbacks=[StructuredPruning(budget=0.5)], accelerator="cpu", logger=False)

    Reference: Aflalo et al. 2020, arXiv:2002.08258

    BibTeX:
        @article{aflalo2020knapsack,
          title = {Knapsack Pruning with Inner Distillation},
          author = {Aflalo, Yonathan and Noy, Asaf and Lin, Ming and Friedman, Itamar and Zelnik, Lihi},
          year = {2020},
          eprint = {2002.08258},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Channels are masked while the fit runs, so the child's maps are as wide as its parent's and need no 1x1
        adapters: lost channels are not compared. What a channel costs depends on how many others stay, so the
        knapsack is filled again at the widths that it found.

    See also:
        `shrink`, which cuts what is zero out of any network, and `Pruning`, which takes single weights.
    """

    neutral = ({"budget": 1.0},)
    observes = True
    changes_architecture = (
        "files hold the masked network at its full width; when a fit has ended the module is cut to narrower layers"
    )

    def __init__(
        self,
        budget: float = 0.5,
        cost: Literal["flops", "latency"] = "flops",
        begin_step: int = 0,
        importance_batches: int = 20,
        solver: Literal["dp", "greedy"] = "dp",
        floor: float = 0.1,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        inner_weight: float = 0.0,
        inner_layers: str | Sequence[str] | None = None,
        logits_weight: float = 0.0,
        temperature: float = 4.0,
        image_key: str = "image",
        name: str | None = None,
    ) -> None:
        kind = "StructuredPruning"
        number(kind, "inner_weight", inner_weight, 0)
        number(kind, "logits_weight", logits_weight, 0)
        weights = {"inner_distillation": inner_weight, "logit_distillation": logits_weight}
        super().__init__(image_key=image_key, include=include, exclude=exclude, weights=weights, name=name)
        if not (isinstance(budget, (int, float)) and not isinstance(budget, bool) and 0 < budget <= 1):
            raise ValueError(f"{kind}: budget is {budget!r}; give the fraction of the cost that stays, in (0, 1].")
        if cost not in ("flops", "latency"):
            raise ValueError(f"{kind}: cost is {cost!r}; give 'flops' or 'latency'.")
        if solver not in ("dp", "greedy"):
            raise ValueError(f"{kind}: solver is {solver!r}; give 'dp' or 'greedy'.")
        whole(kind, "begin_step", begin_step, 0)
        whole(kind, "importance_batches", importance_batches, 1)
        number(kind, "floor", floor, 0, 1)
        number(kind, "temperature", temperature, 1e-3)
        require_torch_pruning(kind)
        self.budget, self.cost, self.solver, self.floor = float(budget), cost, solver, floor
        self.begin_step, self.importance_batches = begin_step, importance_batches
        self.inner_weight, self.logits_weight, self.temperature = inner_weight, logits_weight, temperature
        self.image_key = image_key
        self.inner_layers = None if inner_layers is None else patterns_of(kind, "inner_layers", inner_layers)
        self.groups: list[ChannelGroup] = []  # of the fitted module
        self.importance: dict[str, Tensor] = {}  # by group, `(size,)`, summed over steps
        self.latencies: Table = {}
        self._costs: Costs | None = None
        self._inner: list[str] = []  # layers whose maps are compared
        self._logits = ""

    def last_step(self) -> int:
        return self.begin_step + self.importance_batches

    def due(self, step: int) -> bool:
        return not self.off and self.given_at < 0 and step >= self.last_step()

    def look(self, trainer: Trainer, pl_module: LightningModule, images: Tensor) -> None:
        kind = type(self).__name__
        try:
            found = channel_groups(pl_module, images[:2].expand(2, *images.shape[1:]))
        except ValueError as error:
            raise ValueError(f"{kind}: {error}") from error
        self.groups = [group for group in found if self._may_lose(group)]
        if not self.groups:
            raise ValueError(
                f"{kind}: no channels of {type(pl_module).__name__} can be cut in the layers that include and exclude "
                "leave; widen these, or leave the callback out."
            )
        if self.cost == "latency" and not self.latencies:
            table = latency_table(pl_module, self.groups, images) if trainer.is_global_zero else {}
            self.latencies = trainer.strategy.broadcast(table)
        if self.cost == "latency":
            self._costs = latency_costs(pl_module, self.groups, self.latencies)
        else:
            self._costs = flop_costs(pl_module, self.groups, images[:1])
        alike = [torch.ones(group.size) for group in self.groups]
        self._choose(alike, "greedy")
        self._inner = self._compared(pl_module)
        self._logits = answering_layer(kind, pl_module, images[:2]) if self.logits_weight else ""

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        if self.off or self.given_at >= 0 or self._asked < self.begin_step:
            return
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        for group in self.groups:
            found = channel_importance(group, weights, gradients)
            # A step that a loss scaler will pass over has no gradient that is finite.
            if found.isfinite().all():
                self.importance[group.name] = self.importance.get(group.name, 0) + found

    def masks(self, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        importance = [self.importance.get(it.name, torch.zeros(it.size)) for it in self.groups]
        gone = self._choose(importance, self.solver)
        kept = sum(float(it.sum() - it[gone[group]].sum()) for group, it in zip(self.groups, importance, strict=True))
        everything = sum(float(it.sum()) for it in importance)
        rank_zero_info(
            f"StructuredPruning: {sum(map(len, gone.values()))} of {sum(group.size for group in self.groups)} channels "
            f"go after {step} optimizer steps; {self.left(gone):.2%} of the {self.cost} and "
            f"{kept / everything if everything else 1.0:.2%} of the importance stay."
        )
        return zeroed(weights, gone)

    def left(self, gone: Mapping[ChannelGroup, Sequence[int]]) -> float:
        """The fraction of the whole cost that is left without these channels."""
        assert self._costs is not None
        sizes = self._costs.sizes
        return self._costs.total(sizes - np.array([len(gone[it]) for it in self.groups])) / self._costs.total(sizes)

    def listened(self) -> list[str]:
        return [*self._inner, *([self._logits] if self._logits and self._logits not in self._inner else [])]

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        images = self.fields.image(batch)
        nothing = torch.zeros((), device=images.device)
        if not outputs:
            return {"inner_distillation": nothing, "logit_distillation": nothing}
        parent = parents_outputs(pl_module, self.parent, images, list(outputs))
        inner, logits = nothing, nothing
        if self._inner:
            inner = inner_distillation_loss([outputs[it][-1] for it in self._inner], [parent[it] for it in self._inner])
        if self._logits:
            logits = kd_loss(outputs[self._logits][-1], parent[self._logits], self.temperature)
        return {"inner_distillation": inner, "logit_distillation": logits}

    def narrow(self, pl_module: LightningModule) -> Callable[[], None]:
        gone = idle_channels(self.groups, dict(pl_module.named_parameters()), ["reads"])
        return Cut(pl_module, {group: channels for group, channels in gone.items() if channels}).undo

    def forget(self) -> None:
        super().forget()
        self.importance, self.latencies = {}, {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "importance": dict(self.importance),
            "latencies": dict(self.latencies),
            "budget": self.budget,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.importance, self.latencies = dict(state_dict["importance"]), dict(state_dict["latencies"])
        if self.kept_masks and self.budget != state_dict["budget"] and not self.off:
            rank_zero_warn(
                f"StructuredPruning: the checkpoint's channels were cut for budget={state_dict['budget']:g} and stay "
                f"so, whatever budget={self.budget:g} asks for; begin a new fit with these weights to cut again."
            )

    def _may_lose(self, group: ChannelGroup) -> bool:
        makers = [name for it in group.members if it.role == "makes" for name in it.tensors if name.endswith(".weight")]
        return all(name in self.chosen for name in makers)

    def _choose(self, importance: Sequence[Tensor], solver: Literal["dp", "greedy"]) -> dict[ChannelGroup, list[int]]:
        assert self._costs is not None
        try:
            return channels_to_cut(self.groups, importance, self._costs, self.budget, self.floor, solver)
        except ValueError as error:
            raise ValueError(f"StructuredPruning: {error}") from error

    def _compared(self, pl_module: LightningModule) -> list[str]:
        if not self.inner_weight:
            return []
        if self.inner_layers is not None:
            names = [name for name, _ in pl_module.named_modules() if name]
            return that_match("StructuredPruning", "inner_layers", self.inner_layers, names, "layers")
        readers = [it.layer for group in self.groups for it in group.members if it.role == "reads"]
        return list(dict.fromkeys(readers))

"""The gates seam: predictors decide, image by image, which filters of a convolution go on, and learn it meanwhile.

Public hooks used: `setup`, `on_fit_start`, start and end of training batches, start and epoch end of evaluations,
`state_dict`, `load_state_dict`; torch's forward hooks, from the start of a run, when all callbacks have been set up.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ._gated_units import GatedUnit, gated_units
from .evaluation import Stage
from .method import Method, Place

__all__ = ["Gates"]


class Gates(Method):
    """Masks filters by what predictors say of a layer's input, in training and evaluation, and trains the predictors.

    Predictors belong to the callback: the module, its optimizers and files know nothing of them. They learn after each
    optimizer step's last micro-batch, from inputs and targets that the batches' own forward passes brought (replays
    of a batch are masked and not learned from), with an optimizer of their own; so no gradient of theirs reaches the
    module, and none of the module's loss reaches them. Gradients are averaged over processes. What is kept is counted
    in validations and tests, and logged: `STAGE/filters_kept` and `STAGE/flops_saved`, shares of the masked layers.

    Args:
        patterns: On names of convolutions; none takes all that can be masked.
        lr: Learning rate of the predictors' Adam.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: before the first step, if there is no such layer, or a checkpoint's predictors are of other layers.
    """

    place = Place.NETWORK

    def __init__(self, *, patterns: Sequence[str], lr: float, **others: Any) -> None:
        super().__init__(**others)
        self.patterns, self.lr = tuple(patterns), lr
        self.predictors: dict[str, nn.Module] = {}  # by the name of the convolution
        self._hooks = ExitStack()
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] = {}
        self._stepped, self._batches = -1, 0
        # Of the forward pass at hand, summaries and what is kept; of the batch that trains, summaries and targets.
        self._asked: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] | None = None
        # Filters kept, filters, multiplications kept and multiplications of each layer, while an evaluation counts.
        self._counts: dict[str, Tensor] | None = None

    @abstractmethod
    def predictor(self, unit: GatedUnit) -> nn.Module:
        """A new predictor, from the summary of a layer's input to logits `(B, C)`; it draws nothing."""

    @abstractmethod
    def summary(self, image: Tensor) -> Tensor:
        """What a predictor is given of a layer's input `(B, I, h, w)`, small enough to be kept: `(B, I)`."""

    @abstractmethod
    def decided(self, logits: Tensor) -> Tensor:
        """Which filters are kept, boolean `(B, C)`."""

    @abstractmethod
    def target(self, heat: Tensor) -> Tensor:
        """What predictors are to learn of absolute heat maps `(B, C, H, W)`: boolean `(B, C)`."""

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one layer's predictor, a scalar."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._leave)
        if stage == "fit" and trainer.global_step == 0:
            self.predictors, self._optimizer, self._restored, self._stepped = {}, None, {}, -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._begin(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._seen = {}
        if self._stepped < 0:
            self._stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        seen, self._seen = self._seen, None
        if self._optimizer is None:
            return
        losses = [self.loss(self.predictors[name](inputs), target) for name, (inputs, target) in (seen or {}).items()]
        if losses:
            total = torch.stack(losses).sum()
            total.backward()
            self._batches += 1
            pl_module.log("train/mask_loss", total.detach())
        if trainer.global_step != self._stepped:
            self._stepped = trainer.global_step
            self._step(self._optimizer, trainer.world_size)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._begin(pl_module)
        self._counts = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._begin(pl_module)
        self._counts = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._begin(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._tell(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_epoch_end(trainer, pl_module)
        self._tell(trainer, pl_module, "test")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self.predictors, self._optimizer, self._restored = {}, None, {}

    def state_dict(self) -> dict[str, Any]:
        if not self.predictors:
            return {**super().state_dict(), **self._restored}
        return {
            **super().state_dict(),
            "predictors": {name: dict(it.state_dict()) for name, it in self.predictors.items()},
            "optimizer": self._optimizer.state_dict() if self._optimizer is not None else {},
            # Of an accumulation window that a checkpoint may fall into.
            "gradients": [] if not self._batches else [it.grad for it in self._parameters()],
            "batches": self._batches,
            "stepped": self._stepped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._restored = dict(state_dict)

    def _begin(self, pl_module: LightningModule) -> None:
        """Put the hooks on, and predictors on the module's device: those of the last fit, of a file, or new ones."""
        self._hooks.close()
        if self.off:
            return
        units = gated_units(type(self).__name__, pl_module, self.patterns)
        names = [it.name for it in units]
        saved = self._restored.get("predictors", self.predictors)
        if not saved and not pl_module.trainer.training:
            rank_zero_warn(
                f"{type(self).__name__}: its predictors were never trained and keep every filter, so nothing is "
                "masked; give ckpt_path= of a whole checkpoint of a fit with it, or the callback of that fit."
            )
        if saved and list(saved) != names:
            raise ValueError(
                f"{type(self).__name__}: its predictors are of {', '.join(saved)}, and the layers that it would mask "
                f"are {', '.join(names)}; give the module and `layers` with which they were trained."
            )
        if not self.predictors:
            self.predictors = {it.name: self.predictor(it) for it in units}
        for predictor in self.predictors.values():
            predictor.to(pl_module.device)
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self._parameters(), lr=self.lr)
        if self._restored:
            self._restore()
        for unit in units:
            self._hooks.callback(unit.conv.register_forward_pre_hook(self._ask(unit)).remove)
            self._hooks.callback(unit.tail.register_forward_hook(self._mask(unit)).remove)

    def _restore(self) -> None:
        for name, values in self._restored["predictors"].items():
            self.predictors[name].load_state_dict(values)
        assert self._optimizer is not None
        if self._restored["optimizer"]:
            self._optimizer.load_state_dict(self._restored["optimizer"])
            for group in self._optimizer.param_groups:
                group["lr"] = self.lr
        for parameter, gradient in zip(self._parameters(), self._restored["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter)
        self._batches, self._stepped = self._restored["batches"], self._restored["stepped"]
        self._restored = {}

    def _parameters(self) -> list[nn.Parameter]:
        return [it for predictor in self.predictors.values() for it in predictor.parameters()]

    def _ask(self, unit: GatedUnit) -> Callable[[nn.Module, Any], None]:
        def ask(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            # In whole precision: what is masked is to be what a network with these predictors masks elsewhere.
            with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
                summary = self.summary(inputs[0].detach()).float()
                self._asked[unit.name] = summary, self.decided(self.predictors[unit.name](summary))

        return ask

    def _mask(self, unit: GatedUnit) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def mask(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            summary, kept = self._asked.pop(unit.name)
            if self._seen is not None and unit.name not in self._seen:
                with torch.no_grad():
                    self._seen[unit.name] = summary, self.target(unit.heat(output))
            if self._counts is not None:
                self._count(unit, kept, output)
            return output * kept[:, :, None, None].to(output.dtype)

        return mask

    def _count(self, unit: GatedUnit, kept: Tensor, output: Tensor) -> None:
        assert self._counts is not None
        kernel = unit.conv.weight[0].numel()
        each = kernel * output.shape[2] * output.shape[3]
        asked = len(kept) * sum(it.numel() for it in self.predictors[unit.name].parameters() if it.ndim == 2)
        some, dense = kept.sum(dtype=torch.float64), kept.numel()
        counts = torch.stack([some, some.new_tensor(dense), some * each + asked, some.new_tensor(dense * each)])
        self._counts[unit.name] = self._counts.get(unit.name, 0) + counts

    def _step(self, optimizer: torch.optim.Optimizer, processes: int) -> None:
        """One step along the mean over batches and processes, all of which call this."""
        parameters = self._parameters()
        gradients = [torch.zeros_like(it) if it.grad is None else it.grad for it in parameters]
        flat = torch.cat([*(it.flatten() for it in gradients), gradients[0].new_tensor([self._batches])])
        if processes > 1:
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat[:-1].split([it.numel() for it in parameters]), strict=True):
            parameter.grad = (part / flat[-1].clamp_min(1)).view_as(parameter)
        optimizer.step()
        optimizer.zero_grad()
        self._batches = 0

    def _tell(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        counts, self._counts = self._counts, None
        if not counts or trainer.sanity_checking:
            return
        summed = trainer.strategy.reduce(torch.stack(list(counts.values())).sum(0), reduce_op="sum")
        kept, filters, computed, dense = summed.tolist()
        pl_module.log(f"{stage}/filters_kept", kept / filters, sync_dist=True)
        pl_module.log(f"{stage}/flops_saved", 1 - computed / dense, sync_dist=True)

    def _leave(self) -> None:
        self._hooks.close()
        self._asked, self._seen, self._counts = {}, None, None
        for predictor in self.predictors.values():
            predictor.cpu()

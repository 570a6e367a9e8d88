"""The sparsity seam: masks over Linear and convolutional weights, and what is told of them.

Public hooks used: those of `masks.py`, `on_fit_start`, `on_before_backward`, `on_fit_end`; torch's forward hooks,
during one batch.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_vision.catalogue import nearest

from ._layer_table import FlopCount, layer_rows, layer_table, layers_with_weights, write_layer_table
from ._lengths import lengths
from ._live_tensors import plain_name
from ._run_folder import run_folder
from .masks import Masks

__all__ = ["Sparsity", "chosen_weights"]


def chosen_weights(
    owner: str, module: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Weights of Linear and convolutional layers by parameter name, those that patterns leave.

    Args:
        owner: Who asks; the subject of the errors.
        module: Whose weights.
        include: Shell patterns of the names of layers or their weights; None is all.
        exclude: Shell patterns of those that are left out.

    Raises:
        ValueError: there is no such weight, a pattern matches none, or nothing is left.
    """
    weights = {name: weight for name, (_, weight) in layers_with_weights(module).items()}
    if not weights:
        raise ValueError(
            f"{owner}: {type(module).__name__} has no Linear or convolutional layer when training starts, so there is "
            "nothing to prune; make them before, or leave the callback out."
        )
    names = {name: plain_name(name) for name in weights}

    def matching(pattern: str, argument: str) -> set[str]:
        found = {
            name
            for name, plain in names.items()
            if fnmatchcase(plain, pattern) or fnmatchcase(plain.removesuffix(".weight"), pattern)
        }
        if not found:
            layers = [plain.removesuffix(".weight") for plain in names.values()]
            hint = nearest(pattern, layers) or f"; they begin {', '.join(layers[:3])}."
            raise ValueError(
                f"{owner}: {argument} has {pattern!r}, which matches no Linear or convolutional layer of "
                f"{type(module).__name__}{hint}"
            )
        return found

    kept = set(weights) if include is None else set().union(*(matching(it, "include") for it in include))
    for pattern in exclude or ():
        kept -= matching(pattern, "exclude")
    if not kept:
        raise ValueError(f"{owner}: include={include!r} and exclude={exclude!r} leave no layer; widen one of them.")
    return {name: weight for name, weight in weights.items() if name in kept}


class Sparsity(Masks):
    """Masks over the weights of Linear and convolutional layers, with a log and a table.

    When masks change, the loggers get the share of zeros in `chosen` as `pruning/sparsity`. At the end of a fit a table
    of all such layers is printed and written as `report/NAME.csv` into the run's folder, `NAME` being the callback's
    name or else `pruning`; its operations an image are counted in the fit's first batch. A rehearsal (`fast_dev_run`)
    writes nothing.

    Args:
        include: Shell patterns of the names of layers or their weights; None is all.
        exclude: Shell patterns of those that are left out.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: before the first step, if a pattern matches nothing or no weight is left.
    """

    def __init__(self, *, include: Sequence[str] | None, exclude: Sequence[str] | None, **others: Any) -> None:
        super().__init__(**others)
        for argument, patterns in (("include", include), ("exclude", exclude)):
            listed = patterns is None or (isinstance(patterns, Sequence) and not isinstance(patterns, str))
            if not listed or not all(isinstance(it, str) for it in patterns or ()):
                raise ValueError(
                    f"{type(self).__name__}: {argument} is {patterns!r}; give a list of shell patterns, as "
                    "['layer4.*']."
                )
        self.include, self.exclude = include, exclude
        # Names of the weights that may be pruned, known from the fit's start on.
        self.chosen: list[str] = []
        self._total = 0
        self._flops: dict[str, int] | None = None  # of all layers together, for an image
        self._count: FlopCount | None = None

    @abstractmethod
    def last_step(self) -> int:
        """Optimizer steps after which masks change no more; a fit that ends before is warned of."""

    def choose(self, pl_module: LightningModule, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those of these weights that may be pruned; what cannot be done to them is refused by a ValueError.

        Args:
            pl_module: Whose weights.
            weights: Those that `include` and `exclude` leave, by name, before the first step.
        """
        return weights

    def plan(self, pl_module: LightningModule, epoch: int | None, training: int | None) -> str | None:
        """Refuse what does not fit before the first batch, or return a warning.

        Args:
            pl_module: What is trained.
            epoch: Optimizer steps of an epoch; None if they are not known or not always the same.
            training: Optimizer steps of the whole training, from its first epoch on; None if it has no end, or is a
                rehearsal (`fast_dev_run`) whose end says nothing of the training's.
        """
        if training is None or training >= self.last_step():
            return None
        return (
            f"{type(self).__name__}: training ends after {training} optimizer steps, and masks change until step "
            f"{self.last_step()}; train for longer, or let them change earlier."
        )

    @property
    def sparsity_now(self) -> float:
        """Share of the chosen weights that is masked, in [0, 1]; during a fit or after it."""
        masked = sum(int((~self.kept_masks[name]).sum()) for name in self.chosen if name in self.kept_masks)
        return masked / self._total if self.chosen else 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        weights = self.choose(pl_module, chosen_weights(type(self).__name__, pl_module, self.include, self.exclude))
        self.chosen, self._total = list(weights), sum(it.numel() for it in weights.values())
        if trainer.global_step == 0:
            self._flops = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.off:
            # What a checkpoint of a run with another setting held is let go.
            self.kept_masks = {}
        elif (warning := self.plan(pl_module, *lengths(trainer, pl_module))) is not None:
            rank_zero_warn(warning)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.off and self._flops is None:
            self._count = FlopCount(pl_module)
            self.undo_later(self._count.stop)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss)
        # What is computed again in backward is no second time of it.
        if self._count is not None:
            self._count.stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._count is not None:
            self._count.stop()
            try:
                images = extract_batch_size(batch)
                self._flops = {name: it // images for name, it in self._count.flops.items()}
            except MisconfigurationException:
                self._flops = {}
            self._count = None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if self.off or trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            return
        if trainer.global_step < self.last_step():
            rank_zero_warn(
                f"{type(self).__name__}: the fit ended after {trainer.global_step} optimizer steps, but masks change "
                f"until step {self.last_step()}; {self.sparsity_now:.2%} of the weights are zero."
            )
        if trainer.is_global_zero:
            rows = layer_rows(pl_module, self.kept_masks, self._flops or None)
            file = run_folder(trainer) / "report" / f"{self.name or 'pruning'}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_layer_table(rows, file)
            print(f"{layer_table(rows)}\nFLOPs are those of one image, also in {file}")

    def given(self, trainer: Trainer) -> None:
        super().given(trainer)
        share = self.sparsity_now
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/sparsity": share}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"flops": self._flops}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._flops = state_dict["flops"]

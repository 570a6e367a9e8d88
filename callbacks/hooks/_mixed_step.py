"""A training step whose labels are mixed: the loss that it returns, and what is said of what it does with labels."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ._around import Around
from ._fields import Fields
from ._halves import clean_half_counts, metrics_of
from ._mixed_labels import MixedTensor, Mixture, resolved

__all__ = ["MixedStep"]


class MixedStep:
    """Stands around the strategy's `training_step`; batches whose labels are plain go through.

    Args:
        pl_module: Whose step it is.
        fields: Where a batch has its labels.

    Attributes:
        untried: Whether no loss was mixed yet.
    """

    def __init__(self, pl_module: LightningModule, fields: Fields) -> None:
        self.pl_module, self.fields = pl_module, fields
        self.metrics = metrics_of(pl_module)
        self.untried, self.warned = True, False

    def __call__(self, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = args[0] if args else next(iter(kwargs.values()))
        labels = self.fields.target(batch)
        if not isinstance(labels, MixedTensor):
            return proceed(*args, **kwargs)
        mixture, module = labels.mixture, self.pl_module
        with mixture.live():
            # Of its own for each step, also of a replay: it becomes plain when the step ends, wherever it was put.
            fresh = MixedTensor.of(labels.own, labels.twin, mixture, mixture.lam)
            batch = self.fields.replaced(batch, self.fields.image(batch), fresh)
            if args:
                args = (batch, *args[1:])
            else:
                kwargs |= {next(iter(kwargs)): batch}
            # Inside DDP's forward, which may copy what comes out of the module.
            around = Around(module, "training_step", lambda own, *a, **k: resolved(own(*a, **k)))
            try:
                with self._counting(mixture):
                    output = proceed(*args, **kwargs)
            finally:
                around.undo()
        if not mixture.losses and not (output is None and module.automatic_optimization):
            raise ValueError(
                f"{mixture.owner}: no loss of this step was computed by torch functions from the batch's labels "
                f"(B = {len(labels)}), so it cannot be mixed; {mixture.way_out}."
            )
        if mixture.losses:
            self.untried = False
        if mixture.left_torch:
            self._warn(mixture)
        return output

    def _counting(self, mixture: Mixture) -> Any:
        if mixture.beside is None:
            return nullcontext()
        return clean_half_counts(self.pl_module, self.metrics, mixture, lambda name: self._warn(mixture, name))

    def _warn(self, mixture: Mixture, name: str = "") -> None:
        if self.warned:
            return
        self.warned = True
        if mixture.beside is None:
            rank_zero_warn(
                f"{mixture.owner}: training_step reads labels out of torch (as `tolist()` and `item()` do), and what "
                "is computed from those is not mixed; if it enters a loss, pass targets='soft' or targets='sampled'."
            )
            return
        what = f"{name!r} is" if name else "numbers that leave torch (as by `item()`) are"
        rank_zero_warn(
            f"{mixture.owner}: {what} computed from the labels of plain and mixed images together; a torchmetrics "
            "object of the module or a mean over samples is that of the plain images alone."
        )

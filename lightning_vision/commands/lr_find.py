"""Raise the learning rate step by step and suggest the one at which the loss falls fastest."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_vision.callbacks.hooks.schedule import Schedule
from lightning_vision.commands._files import output_folder
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.commands._trial import trial_trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG = "lr_find.png"
# Memory of the smoothed loss: about ten steps, a tenth of the default test.
SMOOTHING = 0.9
# A loss that has grown by so much over its best will not come back.
DIVERGED = 4.0
# Losses of which the smoothed one says something: as many as it remembers.
FEWEST = 10


def run(
    cli: Any,
    min_lr: float = 1e-6,
    max_lr: float = 1.0,
    num_steps: int = 100,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train for a few steps with growing rates (Smith 2015, arXiv:1506.01186, section 3.3) and draw the losses.

    The run's callbacks that change the training act, its schedule does not, and no checkpoint is written. Rates of
    parameter groups keep their proportions, as those of layer-wise decay; what is tested is the `lr` given to the
    optimizer.

    Args:
        min_lr: Rate of the first step.
        max_lr: Rate of the last step; the test ends before where the loss diverges.
        num_steps: Optimizer steps.
        output: Folder for the picture; without it the run's folder or the current one.
        overwrite: Replace the picture of an earlier test.

    Returns:
        `suggestion`, the rate; `rates` and `losses` of each step; `png`, the path of the picture.

    Raises:
        ValueError: an option is out of its range, several processes, the loss diverged at once, or it fell at no rate.
        FileExistsError: the picture exists and `overwrite` is off.
    """
    require(cli, "model", "data")
    if not 0 < min_lr < max_lr:
        raise ValueError(f"--min_lr {min_lr} must be above 0 and below --max_lr {max_lr}")
    if num_steps < 20:
        raise ValueError(f"--num_steps {num_steps}: at least 20 are needed to see where the loss falls")
    require_one_process(cli, "lr_find")
    path = output_folder(cli, output, [PNG], overwrite) / PNG
    test = RangeTest(min_lr, max_lr, num_steps)
    trainer = trial_trainer(cli, test, without=(Schedule,), max_epochs=-1, max_steps=num_steps, limit_val_batches=0)
    trainer.fit(cli.model, datamodule=cli.datamodule)
    rates = [test.rate(step) for step in range(len(test.losses))]
    if len(rates) < FEWEST:
        raise ValueError(
            f"the test ended after {len(rates)} of {num_steps} steps, too few to see where the loss falls; lower "
            f"--min_lr {min_lr} and --max_lr {max_lr}"
        )
    best = steepest(rates, smoothed(test.losses))
    if best is None:
        raise ValueError(f"the loss fell at no rate from {min_lr} to {max_lr}; widen the range or raise --num_steps")
    draw_test(rates, test.losses, best).savefig(path, dpi=150)
    print_table("suggested learning rate", {"flag": f"--model.optimizer.lr {rates[best]:.2g}", "picture": str(path)})
    return {"suggestion": rates[best], "rates": rates, "losses": test.losses, "png": str(path)}


def smoothed(losses: Sequence[float], beta: float = SMOOTHING) -> list[float]:
    """Exponential moving average with Adam's correction of its start, `m_t / (1 - beta ** t)`."""
    average, result = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = beta * average + (1 - beta) * loss
        result.append(average / (1 - beta**step))
    return result


def steepest(rates: Sequence[float], losses: Sequence[float]) -> int | None:
    """Where the loss falls fastest as the logarithm of the rate grows, a position; None where it falls nowhere.

    The first tenth is left out, where few steps make the average, and what comes after the lowest loss.
    """
    first, last = len(losses) // 10, min(range(len(losses)), key=lambda step: losses[step])
    if last - first < 2:
        return None
    slopes = torch.gradient(torch.tensor(losses), spacing=(torch.tensor(rates).log(),))[0][first : last + 1]
    return first + int(slopes.argmin()) if slopes.min() < 0 else None


def draw_test(rates: Sequence[float], losses: Sequence[float], best: int) -> "Figure":
    """The losses of the steps over their rates, smoothed and raw, with the suggestion, position `best`."""
    from matplotlib.figure import Figure  # a third of a second that nothing else needs

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    mean = smoothed(losses)
    axes.semilogx(rates, losses, color="lightgray", label="each step")
    axes.semilogx(rates, mean, label="smoothed")
    axes.axvline(rates[best], color="tab:red", linestyle=":")
    axes.plot(rates[best], mean[best], "o", color="tab:red", label=f"falls fastest, {rates[best]:.2g}")
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.legend()
    return figure


@final
class RangeTest(Schedule):
    """Rates that grow by the same factor every optimizer step, and the loss of each step.

    Args:
        low: Rate of the first step, of parameter groups at the optimizer's own `lr`.
        high: Rate of the last step.
        num_steps: Optimizer steps, at least 2.
    """

    neutral = "a test of rates has no setting that tests none"

    def __init__(self, low: float, high: float, num_steps: int) -> None:
        super().__init__(replace=True)
        self.low, self.high, self.num_steps = low, high, num_steps
        self.losses: list[float] = []
        self.base, self._window, self._seen = 1.0, 0.0, 0

    def rate(self, step: int) -> float:
        """Learning rate of a parameter group with factor 1 in `step`, from 0."""
        return float(self.low * (self.high / self.low) ** (step / (self.num_steps - 1)))

    def factor(self, step: int) -> float:
        return self.rate(step) / self.base

    def plan(self, epoch: int | None, training: int | None) -> str | None:
        return None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.base = float(trainer.optimizers[0].defaults["lr"])
        if not self.base:
            raise ValueError(
                "lr_find: the optimizer's lr is 0, so rates cannot stand in proportion to it; give another"
            )
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loss = outputs if isinstance(outputs, torch.Tensor) else (outputs or {}).get("loss")
        if loss is None:
            raise ValueError(f"lr_find: training_step of {type(pl_module).__name__} returns no loss to look at")
        self._window, self._seen = self._window + float(loss), self._seen + 1
        if trainer.global_step > len(self.losses):
            # Lightning divides by the micro-batches of a whole window, the last one of an epoch may have fewer.
            mean = self._window * trainer.accumulate_grad_batches / self._seen
            if mean < DIVERGED * min(self.losses, default=math.inf):
                self.losses.append(mean)
            else:  # also where it is no number
                trainer.should_stop = True
            self._window, self._seen = 0.0, 0

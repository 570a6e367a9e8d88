"""Activation sparsity: how many of its hidden activations a network uses, MLP by MLP.

Li et al. 2023, arXiv:2210.06313: in trained transformers few entries behind the ReLU of an MLP are not zero.
"""

import csv
from collections.abc import Iterable
from typing import final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..hooks._activations import activations_of
from ..hooks._checks import number
from ..hooks._layer_names import patterns_of
from ..hooks._run_folder import run_folder
from ..hooks.evaluation import Stage
from ..hooks.outputs import Outputs

__all__ = ["ActivationSparsity", "count_nonzero"]


def count_nonzero(activation: Tensor, tolerance: float = 0.0) -> Tensor:
    """How many entries lie further from zero than the tolerance, and how many there are, int64 `(2,)`, on its device.

    Args:
        activation: Any shape.
        tolerance: An entry whose absolute value is at most this counts as zero, >= 0.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import count_nonzero
        >>> count_nonzero(torch.tensor([0.0, -2.0, 0.1]), tolerance=0.5)
        tensor([1, 3])
    """
    away = (activation.abs() > tolerance).sum() if tolerance else torch.count_nonzero(activation)
    return torch.stack([away, torch.full_like(away, activation.numel())])


@final
class ActivationSparsity(Outputs):
    """Logs for each MLP block the fraction of its hidden activations that are not zero over a validation or test.

    Numbers are `val/nonzero/LAYER`, the fraction for a layer, and `val/nonzero` for all of them together (or
    `test/...`), so that a checkpoint may be monitored by them; 1 minus a number is the sparsity. They are sums over all
    batches of the first loader and all processes, counted on the device while the steps run. A table of the latest
    watched validation, and of a test, is written to `report/val_activation_sparsity.csv` beside the run's checkpoints;
    `validate` and `test` also print it. Training sees nothing of it.

    Args:
        layers: Names of the layers whose outputs are counted, a shell pattern or a list; None takes the activation of
            each MLP block (`fc1`, `act`, `fc2`), and where there is none, each ReLU and GELU.
        tolerance: Entries of at most this absolute value count as zero, >= 0. A ReLU's zeros are exact; a GELU has
            hardly any, so that it takes a tolerance to say something of it.
        every_n_epochs: While fitting, validations of every n-th epoch are counted, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which counts nothing.
        name: Part of the state key, and what numbers and file are called instead of `nonzero` and
            `activation_sparsity`.

    Shape:
        Outputs of any shape; two int64 a layer on the device.

    Raises:
        ValueError: from the constructor, for a setting out of range; before the first step, if a pattern matches no
            layer, or there is no MLP block, ReLU or GELU.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import ActivationSparsity
        >>> trainer = Trainer(callbacks=[ActivationSparsity()], accelerator="cpu", logger=False)

    Reference: Li et al. 2023, arXiv:2210.06313

    BibTeX:
        @inproceedings{li2023lazy,
          title = {The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers},
          author = {Li, Zonglin and You, Chong and Bhojanapalli, Srinadh and Li, Daliang and Rawat, Ankit Singh and
            Reddi, Sashank J. and Ye, Ke and Chern, Felix and Yu, Felix and Guo, Ruiqi and Kumar, Sanjiv},
          booktitle = {International Conference on Learning Representations},
          year = {2023},
          eprint = {2210.06313},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There the share is that of training batches, here of a whole validation or test.

    See also:
        `TopKActivations`, which trains with few of them.
    """

    def __init__(
        self,
        layers: str | list[str] | None = None,
        tolerance: float = 0.0,
        every_n_epochs: int = 1,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, name=name)
        number("ActivationSparsity", "tolerance", tolerance, 0.0)
        self._patterns = () if layers is None else patterns_of("ActivationSparsity", "layers", layers)
        self.layers, self.tolerance = layers, tolerance
        self._counts: dict[str, Tensor] = {}

    def watched(self, pl_module: LightningModule) -> Iterable[str]:
        return activations_of("ActivationSparsity", pl_module, self._patterns)

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._counts = {
            name: torch.zeros(2, dtype=torch.int64, device=pl_module.device) for name in self.watched(pl_module)
        }

    def read(self, layer: str, output: Tensor) -> None:
        self._counts[layer] += count_nonzero(output, self.tolerance)

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        counted = torch.stack(list(self._counts.values()))
        summed = trainer.strategy.reduce(counted, reduce_op="sum")
        rows = [(name, *it) for name, it in zip(self._counts, summed.tolist(), strict=True) if it[1]]
        uncalled = self._counts.keys() - {name for name, *_ in rows}
        self._counts = {}
        if trainer.sanity_checking:
            return
        if uncalled:
            rank_zero_warn(
                f"ActivationSparsity: {', '.join(sorted(uncalled))} put out nothing, so nothing was counted there; "
                "name layers that the forward calls with layers=."
            )
        if not rows:
            return
        label = self.name or "nonzero"
        for name, nonzero, entries in rows:
            pl_module.log(f"{stage}/{label}/{name}", nonzero / entries, sync_dist=True)
        pl_module.log(f"{stage}/{label}", sum(it[1] for it in rows) / sum(it[2] for it in rows), sync_dist=True)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # declared nowhere
            self._write(trainer, stage, rows)

    def _write(self, trainer: Trainer, stage: Stage, rows: list[tuple[str, int, int]]) -> None:
        file = run_folder(trainer) / "report" / f"{stage}_{self.name or 'activation_sparsity'}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(["layer", "entries", "nonzero", "fraction"])
            writer.writerows([name, entries, nonzero, f"{nonzero / entries:.6f}"] for name, nonzero, entries in rows)
        if trainer.state.fn != "fit":
            lines = [f"{nonzero / entries:8.2%}  {name}" for name, nonzero, entries in rows]
            print("\n".join(["not zero  layer", *lines, f"in {file}"]))

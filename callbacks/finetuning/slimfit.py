"""Freezing the layers that move least, anew while training goes on, and keeping activations in fewer bytes.

Ardakani et al. 2023, arXiv:2305.18513. A layer has moved by d = ||W_t - W_(t-1)||_1 / ||W_(t-1)||_1. Before each
interval the layers with the smallest d are frozen; a frozen layer keeps the d that it had, so it comes back once those
that train have slowed down more. What a frozen linear layer would keep for its gradient is not kept; what other
functions keep however much is frozen is kept in few bits, or in part.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ..hooks._checks import number, whole
from ..hooks._frozen import lies_in
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._live_tensors import plain_name
from ..hooks.freezing import Freezing
from ._classifier import classifier_of
from ._held_activations import HeldActivations

__all__ = ["SlimFit", "layers_that_move_least", "relative_movement"]


def relative_movement(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """How far a layer has moved, the sum of |after - before| over the sum of |before|.

    >>> relative_movement([torch.tensor([3.0, -1.0])], [torch.tensor([3.0, -2.0])])
    tensor(0.2500)

    Args:
        before: The layer's parameters, at least one.
        after: The same later, not all at zero before.
    """
    moved = torch._foreach_norm(torch._foreach_sub(list(after), list(before)), 1)
    return torch.stack(moved).sum() / torch.stack(torch._foreach_norm(list(before), 1)).sum()


def layers_that_move_least(movements: Mapping[str, float], freeze_rate: float) -> list[str]:
    """Names of the layers with the smallest movement, rounded down to whole layers.

    Of layers that moved alike, such as those that have not been measured and stand at infinity, the first are named.

    >>> layers_that_move_least({"stem": 0.3, "block": 0.1, "head": 0.2}, freeze_rate=0.7)
    ['block', 'head']

    Args:
        movements: By layer, from the input on.
        freeze_rate: Share of the layers, in [0, 1).
    """
    return sorted(movements, key=lambda name: movements[name])[: math.floor(freeze_rate * len(movements) + 1e-9)]


@final
class SlimFit(Freezing):
    """Freezes the layers that have moved least, anew after each interval, and holds activations in fewer bytes.

    A layer is a part that itself holds parameters. A frozen one has no gradient, so the optimizer passes it over, and
    torch keeps no input of a linear layer for it; its mode stays, so batch norm's statistics go on. Frozen layers keep
    their distance, so they return when it is no longer among the smallest; those never measured are the last to be
    frozen. The set changes after an optimizer step, where no accumulation window is open, is that of rank 0 on all
    ranks, and is saved. The number of frozen layers is logged at the end of each epoch as `train/layers_frozen`, and if
    activations are packed, their size as `train/activation_mb` and `train/activation_mb_held`, of the last step.

    Args:
        freeze_rate: Share of the layers that is frozen, in [0, 1); 0.9 as the authors' ViT on CIFAR-10. Neutral: 0,
            with nothing packed.
        interval: Optimizer steps from one choice to the next, at least 1, as in the paper. Several processes make a
            new DDP wrapper for each new choice, so give them many.
        warmup_steps: Optimizer steps before the first choice, >= 0, as many as the learning rate rises.
        exclude: Shell patterns on the names of layers that are never frozen; `[]` for none. None: the classifier.
        activation_bits: 8 or 4, in which inputs of GELU, layer norm and matrix products are held; None leaves them.
        softmax_keep: Share of each row of a softmax that is held, its largest, in (0, 1]; 1 leaves them.
        name: Part of the state key.

    Shape:
        Parameters of any shape; activations of two axes or more.

    Raises:
        ValueError: a setting is out of its range; before training, if `exclude` matches nothing, if fewer than one
            layer would be frozen, or if the classifier is not found; after the first step, if it called no function
            whose activations were to be packed; a second callback that freezes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import SlimFit
        >>> trainer = Trainer(callbacks=[SlimFit(freeze_rate=0.5, interval=10)], accelerator="cpu", logger=False)

    Reference: Ardakani et al. 2023, arXiv:2305.18513

    BibTeX:
        @inproceedings{ardakani2024slimfit,
          title = {SlimFit: Memory-Efficient Fine-Tuning of Transformer-based Models Using Training Dynamics},
          author = {Ardakani, Arash and Haan, Altan and Tan, Shangyin and Popovici, Doru Thom and Cheung, Alvin and
            Iancu, Costin and Sen, Koushik},
          booktitle = {Conference of the North American Chapter of the Association for Computational Linguistics},
          year = {2024},
          eprint = {2305.18513},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Their code always trains biases and begins with a random order; here a layer's bias goes with it, and layers
        near the head train first. Their numbers have a fixed point; here each row has a scale, the largest entries are
        chosen by row, and layer norm is held in bits where they drop its small entries.

    See also:
        `Unfreeze`, which freezes by the epoch.
    """

    neutral = ({"freeze_rate": 0.0, "activation_bits": None, "softmax_keep": 1.0},)
    rests = ""

    def __init__(
        self,
        freeze_rate: float = 0.9,
        interval: int = 1,
        warmup_steps: int = 0,
        exclude: str | list[str] | None = None,
        activation_bits: int | None = None,
        softmax_keep: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        number("SlimFit", "freeze_rate", freeze_rate, 0.0, 1.0)
        if freeze_rate == 1.0:
            raise ValueError("SlimFit: freeze_rate is 1, so nothing would train; give a number from 0 to below 1.")
        whole("SlimFit", "interval", interval, 1)
        whole("SlimFit", "warmup_steps", warmup_steps, 0)
        if activation_bits not in (None, 4, 8):
            raise ValueError(f"SlimFit: activation_bits is {activation_bits!r}; give 4, 8 or None.")
        number("SlimFit", "softmax_keep", softmax_keep, 0.0, 1.0)
        if softmax_keep == 0.0:
            raise ValueError("SlimFit: softmax_keep is 0, so nothing would be held; give a number above 0, up to 1.")
        self._exclude = None if exclude is None else patterns_of("SlimFit", "exclude", exclude)
        self.freeze_rate, self.interval, self.warmup_steps = freeze_rate, interval, warmup_steps
        self.exclude, self.activation_bits, self.softmax_keep = exclude, activation_bits, softmax_keep
        self._layers: dict[str, dict[str, nn.Parameter]] = {}
        self._others: tuple[str, ...] = ()
        self._held: HeldActivations | None = None
        self._movements: dict[str, float] = {}
        self._frozen_layers: list[str] = []
        self._before: dict[str, Tensor] = {}

    @property
    def packed_bytes(self) -> int:
        """Bytes in which the activations that the latest `training_step` packed are held."""
        return 0 if self._held is None else self._held.held_bytes

    def plan(self, pl_module: LightningModule, epochs: int | None) -> str | None:
        if self.activation_bits is not None or self.softmax_keep < 1.0:
            self._held = HeldActivations("SlimFit", pl_module, self.activation_bits, self.softmax_keep)
        if self.freeze_rate:
            self._find_layers(pl_module)
        self.undo_later(self._let_go)
        return None

    def begin(self, pl_module: LightningModule) -> None:
        self._movements = dict.fromkeys(self._layers, math.inf)
        self._choose(0)

    def trained(self, epoch: int) -> tuple[str, ...] | None:
        frozen = set(self._frozen_layers)
        if not frozen & self._layers.keys():
            return None
        return (*self._others, *(name for layer in self._layers if layer not in frozen for name in self._layers[layer]))

    def due(self, before: int, step: int) -> bool:
        return self.freeze_rate > 0.0 and step // self.interval > before // self.interval

    @torch.no_grad()
    def measured(self) -> dict[str, float]:
        moved = {
            layer: relative_movement([self._before[name] for name in parameters], list(parameters.values()))
            for layer, parameters in self._layers.items()
            if parameters.keys() <= self._before.keys()
        }
        # One transfer for all; a layer of zeros that stays so has not moved.
        values = torch.stack(list(moved.values())).nan_to_num(0.0, math.inf).tolist() if moved else []
        return dict(zip(moved, values, strict=True))

    def settle(self, step: int, measured: dict[str, float]) -> None:
        # Nothing moved: a loss scaler has skipped the step, or the rate was 0, of which no order follows.
        if any(measured.values()):
            self._movements |= measured
        self._choose(step)

    def surroundings(self) -> AbstractContextManager[Any] | None:
        return self._held

    def numbers(self) -> Mapping[str, float]:
        numbers = {"layers_frozen": float(len(self._frozen_layers))} if self.freeze_rate else {}
        if self._held is not None:
            numbers |= {
                "activation_mb": self._held.plain_bytes / 1e6,
                "activation_mb_held": self._held.held_bytes / 1e6,
            }
        return numbers

    def state_dict(self) -> dict[str, Any]:
        if not self.freeze_rate:
            return {}
        return {"movements": self._movements, "frozen": self._frozen_layers, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._movements, self._frozen_layers = dict(state_dict.get("movements", {})), state_dict.get("frozen", [])
        self._before = dict(state_dict.get("before", {}))

    def _choose(self, step: int) -> None:
        """Choose what is frozen from now on, and remember the other layers as they are."""
        chosen = layers_that_move_least(self._movements, self.freeze_rate) if step >= self.warmup_steps else []
        self._frozen_layers = chosen
        self._before = {
            name: it.detach().clone()
            for layer, parameters in self._layers.items()
            if layer not in chosen
            for name, it in parameters.items()
        }

    def _find_layers(self, pl_module: LightningModule) -> None:
        kind = type(pl_module).__name__
        layers = _layers(pl_module)
        if self._exclude is None:
            head = classifier_of("SlimFit", pl_module)
            spared = [name for name in layers if lies_in(name, head)]
        else:
            spared = that_match("SlimFit", "exclude", self._exclude, layers, f"layers of {kind}")
        self._layers = {name: it for name, it in layers.items() if name not in spared}
        self._others = tuple(name for layer in spared for name in layers[layer])
        count = len(layers_that_move_least(dict.fromkeys(self._layers, 0.0), self.freeze_rate))
        if not count:
            raise ValueError(
                f"SlimFit: freeze_rate={self.freeze_rate} of the {len(self._layers)} layers of {kind} that may be "
                "frozen is less than one; raise it, or exclude fewer."
            )
        # What another run or a file has of other layers is of no use here.
        self._movements = {name: self._movements.get(name, math.inf) for name in self._layers}
        self._frozen_layers = [name for name in self._frozen_layers if name in self._layers]
        names = {name: it for parameters in self._layers.values() for name, it in parameters.items()}
        self._before = {name: it.to(names[name].device) for name, it in self._before.items() if name in names}
        rank_zero_info(f"SlimFit: {count} of {len(self._layers)} layers are frozen at a time, {len(spared)} never.")

    def _let_go(self) -> None:
        self._layers, self._others, self._held = {}, (), None


def _layers(pl_module: LightningModule) -> dict[str, dict[str, nn.Parameter]]:
    """The trained parameters by name, by the part that holds them; what the module itself holds, one by one."""
    layers: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in pl_module.named_parameters():
        if parameter.requires_grad:
            plain = plain_name(name)
            layers.setdefault(plain.rpartition(".")[0] or plain, {})[plain] = parameter
    return layers

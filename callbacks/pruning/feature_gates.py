"""Feature-selection gates: each channel of a residual branch is weighed by a sigmoid that learns in a pass of its own.

Roffo, Biffi, Salvagnini and Cherubini 2024, arXiv:2407.04400 (hard-attention gates, HAG, with gradient routing, GR).
Symbols: raw gates w `raw`, one a channel; scores f = sigma(w) in (0, 1).
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import final

import torch
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim import Adam, Optimizer

from ..hooks._checks import number, whole
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks.folded import Addition
from ..hooks.routed import Routed

__all__ = ["FeatureGates", "gated", "gated_weights", "residual_branches"]


def gated(output: Tensor, raw: Tensor, channel: int) -> Tensor:
    """A layer's output with each channel times its score sigma(w); of the output's shape and type.

    Args:
        output: `(B, C, ...)` or, with `channel` -1, `(..., C)`.
        raw: w `(C,)`, where infinity leaves a channel as it is.
        channel: The dimension of the channels.

    >>> gated(torch.ones(1, 2), torch.tensor([0.0, math.inf]), channel=1).tolist()
    [[0.5, 1.0]]
    """
    shape = [1] * output.ndim
    shape[channel] = -1
    return (output * raw.sigmoid().view(shape)).to(output.dtype)


def gated_weights(layer: nn.Module, raw: Tensor) -> dict[str, Tensor]:
    """Weight and bias, by name, with which a layer alone puts out what it and its gates do.

    Args:
        layer: Linear, convolution or batch norm; the first dimension of its weight and bias is its channels.
        raw: w `(C,)`.
    """
    scores = raw.sigmoid()
    own = dict(layer.named_parameters(recurse=False))
    return {name: it * scores.view(-1, *[1] * (it.ndim - 1)) for name, it in own.items()}


def residual_branches(module: nn.Module) -> list[str]:
    """Names of the layers that end the residual branches of a module's blocks, or its batch norms if it has no such.

    The branches are known by timm's names: `attn.proj` and `mlp.fc2` of transformers, and the last of `bn1`, `bn2` and
    `bn3` of a ResNet's blocks.
    """
    parts = {part_name(name): part for name, part in module.named_modules()}
    names = [name for name, part in parts.items() if takes_gates(part)]
    ends = [name for name in names if any(fnmatchcase(f".{name}", end) for end in ("*.attn.proj", "*.mlp.fc2"))]
    blocks: dict[str, str] = {}
    for name in names:
        block, _, last = name.rpartition(".")
        if last in ("bn2", "bn3") and f"{block}.bn1".lstrip(".") in names:
            blocks[block] = max(blocks.get(block, ""), name)
    return [*ends, *blocks.values()] or [name for name in names if isinstance(parts[name], _BatchNorm)]


def takes_gates(layer: nn.Module) -> bool:
    """Whether weight and bias of a layer multiply with its channels, so that it can absorb gates of its output."""
    own = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    # A standardised weight undoes its gates; MultiheadAttention reads its projection past the layer.
    plain = type(layer).forward in own and not isinstance(layer, NonDynamicallyQuantizableLinear)
    return (plain or isinstance(layer, _BatchNorm)) and isinstance(layer.weight, nn.Parameter)


class _Gates(Addition):
    """Raw gates of one layer's channels."""

    def __init__(self, layer: nn.Module, raw: Tensor) -> None:
        super().__init__()
        self.channel = -1 if isinstance(layer, nn.Linear) else 1
        self.raw = nn.Parameter(raw)

    def forward(self, layer: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        return gated(output, self.raw, self.channel)

    def folded(self, layer: nn.Module) -> dict[str, Tensor]:
        return gated_weights(layer, self.raw)


@final
class FeatureGates(Routed):
    """Weighs the channels of residual branches by sigmoid gates that are trained apart from the weights (HAG, FSG).

    A gate multiplies each channel of a branch's last layer. The module's optimizer trains the weights with the gates as
    they are; then the same batch is computed once more and the callback's own Adam trains the gates with the weights as
    they are (gradient routing). In checkpoints, and in the module after the fit, the gates are folded into the gated
    layers' weights and biases, the same function under the names of the network itself; the gates stand in the
    callback's state and in `scores`. A step costs about two forward passes and two backward.

    Args:
        layers: Patterns of the names of the layers to gate, each a linear one, a convolution or a batch norm, as
            `*.mlp.fc2`; where a batch norm follows a convolution, name the batch norm. None finds the last layers of
            the residual branches of timm's transformers and ResNets, or in other networks all batch norms.
        gate_lr: Learning rate of the gates' Adam, >= 0; 0.01 as the authors' configuration for CIFAR-100. 0 leaves the
            gates as they begin, at no cost. Neutral: 0 with `init` infinite.
        init: Raw gate w at which all begin; infinity is an open gate, for good. None: drawn as the authors do, from
            Xavier's normal distribution of a matrix `(1, C)`, so that scores begin near one half.
        every_n_steps: Optimizer steps from one step of the gates to the next, >= 1.
        seed: Of the first gates, >= 0.
        name: Part of the state key.

    Shape:
        A gate for each output of a linear layer `(..., C)` or channel of `(B, C, ...)`.

    Raises:
        ValueError: an argument out of its range; at set-up, if a pattern fits nothing or a layer that cannot absorb a
            gate, or nothing to gate is found; otherwise as `Routed` says.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import FeatureGates
        >>> trainer = Trainer(callbacks=[FeatureGates(gate_lr=0.01)], accelerator="cpu", logger=False)

    Reference: Roffo et al. 2024, arXiv:2407.04400

    BibTeX:
        @misc{roffo2024hardattention,
          title = {Hard-Attention Gates with Gradient Routing for Endoscopic Image Computing},
          author = {Roffo, Giorgio and Biffi, Carlo and Salvagnini, Pietro and Cherubini, Andrea},
          year = {2024},
          eprint = {2407.04400},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There the gates step before the weights in each batch, here after them, so that a step may span several
        micro-batches; the gates' gradient is not clipped, and their rate has no schedule. The authors' ResNets gate
        the output of each stage behind its last sum, which no layer can absorb; here each block's branch is gated.

    See also:
        `lightning_vision.callbacks.hooks.ascent.replaying`, which is true in the gates' pass, too.
    """

    neutral = ({"gate_lr": 0.0, "init": math.inf},)
    adds_parameters = "gates and their optimizer stand in the callback's state; keys of module and optimizers are plain"

    def __init__(
        self,
        layers: str | list[str] | None = None,
        gate_lr: float = 0.01,
        init: float | None = None,
        every_n_steps: int = 1,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, name=name)
        self._layers = None if layers is None else patterns_of("FeatureGates", "layers", layers)
        if self._layers == ():
            raise ValueError(
                "FeatureGates: layers is empty, so nothing would be gated; give a pattern, or leave it out."
            )
        number("FeatureGates", "gate_lr", gate_lr, 0)
        whole("FeatureGates", "seed", seed, 0)
        if init is not None and (isinstance(init, bool) or not isinstance(init, int | float) or math.isnan(init)):
            raise ValueError(f"FeatureGates: init is {init!r}; give a number, infinity for open gates, or None.")
        self.layers, self.gate_lr, self.init, self.seed = layers, gate_lr, init, seed

    @property
    def scores(self) -> dict[str, Tensor]:
        """Scores in (0, 1) of the channels `(C,)`, by layer: during a fit as they are, after it as they were last."""
        return {path: values["raw"].sigmoid() for path, values in self.state_dict().get("additions", {}).items()}

    def additions(self, pl_module: LightningModule) -> Mapping[str, Addition]:
        parts = {part_name(name): part for name, part in pl_module.named_modules() if name}
        names = residual_branches(pl_module) if self._layers is None else self._named(self._layers, parts)
        if not names:
            raise ValueError(
                f"FeatureGates: {type(pl_module).__name__} has neither residual branches with the names of timm's "
                "transformers and ResNets nor batch norms; name the layers to gate with layers=."
            )
        random = Generator().manual_seed(self.seed)
        return {name: _Gates(parts[name], self._first(parts[name], random)) for name in names}

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer | None:
        return Adam(parameters, lr=self.gate_lr) if self.gate_lr else None

    def _named(self, patterns: tuple[str, ...], parts: Mapping[str, nn.Module]) -> list[str]:
        """What the patterns fit among layers that have weights, and all of that must absorb a gate."""
        layers = {name: it for name, it in parts.items() if any(True for _ in it.parameters(recurse=False))}
        names = that_match("FeatureGates", "layers", patterns, layers, "layers with weights")
        for name in names:
            if not takes_gates(layers[name]):
                raise ValueError(
                    f"FeatureGates: layers= names {name!r}, a {type(layers[name]).__name__}, whose weights cannot "
                    "absorb a gate of its output; name linear layers, convolutions or batch norms with weights."
                )
        return names

    def _first(self, layer: nn.Module, random: Generator) -> Tensor:
        count = len(layer.get_parameter("weight"))
        if self.init is not None:
            return torch.full((count,), float(self.init))
        return torch.randn(count, generator=random) * math.sqrt(2 / (1 + count))

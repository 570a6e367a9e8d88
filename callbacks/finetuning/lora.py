"""Low-rank adaptation: a frozen network learns by a product of two thin matrices beside each of its layers.

Hu et al. 2021, arXiv:2106.09685, Eq. 3: h = W x + (alpha / r) B A x. Symbols: A `down` (r, I), B `up` (O, r), r `rank`;
I is a layer's fan-in (for a convolution its input channels over its groups times the kernel's area), O its outputs.
"""

import math
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Generator, Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..hooks._added import is_added
from ..hooks._checks import number, whole
from ..hooks._frozen import lies_in, part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._live_tensors import plain_name
from ..hooks._moment import seed_of
from ..hooks.ascent import Ascent
from ..hooks.folded import Addition, Folded
from ..hooks.masks import Masks
from ._classifier import classifier_of

__all__ = ["LoRA", "low_rank_output", "low_rank_weight"]


def low_rank_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The weight with a low-rank update merged into it: W + s B A in the weight's shape.

    Args:
        weight: W `(O, I)`, or of a convolution `(O, C, h, w)` with C h w = I.
        down: A `(r, I)`.
        up: B `(O, r)`.
        scale: s, which is alpha / r.

    >>> low_rank_weight(torch.zeros(2, 1), torch.ones(3, 1), torch.ones(2, 3), 0.5).tolist()
    [[1.5], [1.5]]
    """
    return weight + scale * (up @ down).view_as(weight)


def low_rank_output(layer: nn.Linear | nn.Conv2d, images: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """What an update B A makes of a layer's input x, B (A x), in two thin steps; of the shape of the layer's output.

    Args:
        layer: Whose stride, padding, dilation and groups a convolution takes; its weights are not read.
        images: x, the layer's input.
        down: A `(r, I)`.
        up: B `(O, r)`.
    """
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(images, down), up)
    shape = layer.weight.shape[1:]
    # Every group has the same A, which reads its own channels, and its own rows of B.
    thin = down.view(-1, *shape).repeat(layer.groups, 1, 1, 1)
    inner = F.conv2d(images, thin, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.conv2d(inner, up[:, :, None, None], groups=layer.groups)


class _LowRank(Addition):
    """A and B of one layer; B is zero, so that nothing changes at first."""

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, rank: int, scale: float, dropout: float, seed: int, random: Generator
    ) -> None:
        super().__init__()
        outputs, fan_in = len(layer.weight), layer.weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, fan_in, generator=random) / math.sqrt(3 * fan_in))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.scale, self.dropout, self.seed = scale, dropout, seed
        self.random: Generator | None = None

    def begin(self, *moment: int) -> None:
        if self.dropout:
            self.random = Generator(self.down.device).manual_seed(seed_of(self.seed, *moment))

    def forward(self, layer: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        if self.training and self.random is not None:
            kept = torch.rand(given.shape, generator=self.random, device=given.device) >= self.dropout
            given = given * kept / (1 - self.dropout)
        return output + self.scale * low_rank_output(layer, given, self.down, self.up)

    def folded(self, layer: nn.Module) -> dict[str, Tensor]:
        return {"weight": low_rank_weight(layer.get_parameter("weight"), self.down, self.up, self.scale)}


@final
class LoRA(Folded):
    """Fine-tunes by low-rank updates of a frozen network's layers, merged into its weights wherever they are written.

    Beside each chosen layer two thin matrices train, and the classifier as usual; all other parameters are frozen
    before optimizers are made, so these pass them over and keep no state for them. The first outputs are the
    network's own, bit for bit. Checkpoints, weights-only or not, hold merged weights under the names of the network
    itself: they load, predict and export without this callback, and so does the module after the fit. A resumed fit
    goes on from the factors in the callback's state. Merging rounds: outputs before and after it differ by some
    1e-7 of the largest in float32, by 1e-5 at worst in 20 trained networks. Batch norm's statistics move as ever.

    Args:
        layers: Patterns of the names of `Linear` and `Conv2d` layers to update, as `*.qkv`. The default takes all
            outside of what trains as usual: adapters on every layer, more than a higher rank, are what it takes to
            match full fine-tuning (Dettmers et al. 2023, arXiv:2305.14314, section 4).
        rank: r, the rank of an update, a whole number >= 0. Neutral: 0, with which nothing is added or frozen.
        alpha: The update is scaled by alpha / rank, above 0; 16, with which rank 8 is scaled by 2.
        dropout: Fraction of an update's inputs that is left out in training, in [0, 1).
        train: Patterns of parameters that train as usual, as `*.norm*`. None: the classifier, which is found as
            `HeadFirst` finds it. An empty list: none.
        seed: Of the first A and of the dropout, >= 0.
        name: Part of the state key; two, each with layers of its own, may differ in rank.

    Shape:
        For a weight `(O, I)`, A `(rank, I)` and B `(O, rank)`; for a convolution's `(O, C, h, w)`, I = C h w.

    Raises:
        ValueError: an argument out of its range; at set-up, if a pattern fits nothing or only layers that take no
            update, if the classifier is not clear, beside a callback that masks weights, or beside a second `LoRA` with
            another `train`; with dropout, also beside one that computes a step twice (`SAM`); otherwise as `Folded`
            says.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import LoRA
        >>> trainer = Trainer(callbacks=[LoRA(layers="*.qkv", rank=4)], accelerator="cpu", logger=False)

    Reference: Hu et al. 2021, arXiv:2106.09685

    BibTeX:
        @inproceedings{hu2022lora,
          title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
          author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang,
            Shean and Wang, Lu and Chen, Weizhu},
          booktitle = {International Conference on Learning Representations},
          year = {2022},
          eprint = {2106.09685},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There the query and value projections alone are updated; timm has them in one layer with the keys, and the
        default takes every layer. The paper says of A's first values that they are normal; their variance here,
        1 / (3 I), is that of the authors' code. Convolutions are updated like matrices of their kernels.

    See also:
        `HeadFirst`, which trains the classifier alone for a while and then everything.
    """

    neutral = ({"rank": 0},)
    adds_parameters = (
        "optimizers hold two factors a layer besides the module's parameters; files have them in the callback's state"
    )

    def __init__(
        self,
        layers: str | list[str] = "*",
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        train: str | list[str] | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._layers = patterns_of("LoRA", "layers", layers)
        self._train = None if train is None else patterns_of("LoRA", "train", train)
        whole("LoRA", "rank", rank, 0)
        number("LoRA", "alpha", alpha, 0)
        number("LoRA", "dropout", dropout, 0, 1)
        whole("LoRA", "seed", seed, 0)
        if not self._layers or alpha == 0 or dropout == 1:
            wrong, wanted = ("alpha is 0", "a number above 0") if alpha == 0 else ("dropout is 1", "a number below 1")
            if not self._layers:
                wrong, wanted = "layers is empty", "a pattern, or rank=0 to add nothing"
            raise ValueError(f"LoRA: {wrong}, so nothing would be learned; give {wanted}.")
        self.layers, self.rank, self.alpha, self.dropout = layers, rank, alpha, dropout
        self.train, self.seed = train, seed

    def refuses(self, trainer: Trainer) -> str | None:
        for other in self.rivals(trainer, Masks):
            return (
                f"the Trainer also has {other.state_key}, and a weight that it masks is not zero once an update is "
                "merged into it; prune in a fit of its own"
            )
        for other in self.rivals(trainer, Ascent) if self.dropout else ():
            return f"{other.state_key} computes a step twice, and dropout={self.dropout} would differ; give dropout=0"
        for other in self.rivals(trainer, LoRA):
            if isinstance(other, LoRA) and other.train != self.train:
                return (
                    f"train is {self.train!r}, that of {other.state_key} is {other.train!r}, and each would freeze "
                    "what the other trains; give both the same"
                )
        return None

    def additions(self, pl_module: LightningModule) -> Mapping[str, Addition]:
        trained = self.trained(pl_module)
        parts = {part_name(name): part for name, part in pl_module.named_modules() if name}
        free = {
            name: part
            for name, part in parts.items()
            if isinstance(part, nn.Linear | nn.Conv2d) and f"{name}.weight" not in trained
        }
        layers = {name: part for name, part in free.items() if _takes_an_update(part)}
        for pattern in self._layers:
            if not any(fnmatchcase(name, pattern) for name in layers):
                self._refuse_wrong(pattern, parts, free)
        random = Generator().manual_seed(self.seed)
        names = that_match("LoRA", "layers", self._layers, layers, "Linear and Conv2d layers outside of what trains")
        scale = self.alpha / self.rank
        return {name: _LowRank(layers[name], self.rank, scale, self.dropout, self.seed, random) for name in names}

    def trained(self, pl_module: LightningModule) -> Collection[str]:
        own = [(name, it) for name, it in pl_module.named_parameters() if not is_added(name)]
        names = [plain_name(name) for name, it in own if it.requires_grad]
        if self._train is None:
            classifier = classifier_of("LoRA", pl_module, "train")
            return [name for name in names if lies_in(name, classifier)]
        return that_match("LoRA", "train", self._train, names, "parameters that train")

    def _refuse_wrong(self, pattern: str, parts: Mapping[str, nn.Module], free: Mapping[str, nn.Module]) -> None:
        for name, part in parts.items():
            if fnmatchcase(name, pattern) and any(True for _ in part.parameters(recurse=False)):
                what = (
                    "trains as usual"
                    if isinstance(part, nn.Linear | nn.Conv2d) and name not in free
                    else f"is a {type(part).__name__}, whose output is not its weight times its input alone"
                )
                raise ValueError(
                    f"LoRA: layers {pattern!r} fits {name!r}, which {what}; name Linear or Conv2d layers that are "
                    "frozen."
                )


def _takes_an_update(layer: nn.Module) -> bool:
    """Whether it is called, and computes what torch's own layer does, on a weight that is a parameter."""
    own = type(layer).forward in (nn.Linear.forward, nn.Conv2d.forward) and isinstance(layer.weight, nn.Parameter)
    # MultiheadAttention reads the weight of its projection past the layer.
    return own and not isinstance(layer, NonDynamicallyQuantizableLinear) and _pads_with_zeros(layer)


def _pads_with_zeros(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Conv2d) or layer.padding_mode == "zeros"

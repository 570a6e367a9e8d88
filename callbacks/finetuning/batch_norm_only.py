"""Training batch norm alone: every other parameter stands still at its initialisation.

Frankle, Schwab and Morcos 2021, arXiv:2003.00152: batch norm scales and shifts each feature, y = gamma x_hat + beta.
Training only gamma and beta, on features that are random, shows what these two numbers a channel can express.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..hooks._checks import flag, number, whole
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._live_tensors import plain_name
from ..hooks.freezing import Freezing
from ._classifier import classifier_of

__all__ = ["BatchNormOnly", "random_entries"]


def random_entries(shape: torch.Size, count: int, generator: torch.Generator) -> Tensor:
    """A boolean mask with `count` entries of each output channel True, drawn without repetition.

    >>> random_entries(torch.Size([4, 3]), 2, torch.Generator().manual_seed(0)).sum(dim=1).tolist()
    [2, 2, 2, 2]

    Args:
        shape: Of a weight, `(C, ...)`, on the CPU, C output channels.
        count: Entries of each channel, at most as many as it has.
        generator: What is drawn from.
    """
    drawn = torch.rand(shape[0], shape[1:].numel(), generator=generator).topk(count, dim=1).indices
    return torch.zeros(shape[0], shape[1:].numel(), dtype=torch.bool).scatter_(1, drawn, True).reshape(shape)


@final
class BatchNormOnly(Freezing):
    """Trains batch norm's scales and shifts alone and leaves all other parameters at their initialisation.

    It freezes before `configure_optimizers` is called, so an optimizer of those parameters that want a gradient holds
    no other; one that holds all passes the frozen ones over. All parts keep their mode: batch norm's statistics go on
    moving, without which random features would not be normalised. The share of scales near zero, features that the
    network has switched off, is logged at the end of each epoch as `train/gammas_near_zero`.

    Args:
        head: Whether the classifier trains, too, found as by `HeadFirst`.
        also: Shell patterns on the names of parameters that train, too: `*downsample*` or `*.bias`.
        gamma: What all scales start from: a number, "uniform" for draws from [0, 1), or None, as the module has them.
        zero: A scale counts as near zero if its absolute value is below this, >= 0 (0.01, the paper's on CIFAR-10).
        control: Train, instead of the two numbers of each channel, two random ones of the weights that make it.
        seed: Of the random choices, a whole number >= 0.
        name: Part of the state key.

    Shape:
        Parameters of any shape.

    Raises:
        ValueError: a setting is out of its range; before training, if the module has no batch norm with parameters that
            train, if a pattern of `also` matches nothing, if the classifier is not found, or, for `control`, if no
            layer makes the channels of a batch norm; if no optimizer has what is to train; a second callback that
            freezes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import BatchNormOnly
        >>> trainer = Trainer(callbacks=[BatchNormOnly(head=True)], accelerator="cpu", logger=False)

    Reference: Frankle et al. 2021, arXiv:2003.00152

    BibTeX:
        @inproceedings{frankle2021training,
          title = {Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs},
          author = {Frankle, Jonathan and Schwab, David J. and Morcos, Ari S.},
          booktitle = {International Conference on Learning Representations},
          year = {2021},
          eprint = {2003.00152},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The scales start as the module made them, often at 1; the paper's networks draw them uniformly, which is
        `gamma="uniform"`. The layer that makes the channels of a batch norm is the last one before it, in the order in
        which the module made its parts, with as many outputs.

    See also:
        `HeadFirst` and `Unfreeze`, which freeze for some epochs.
    """

    neutral = "a setting that trains everything would not be training batch norm alone; leave it out instead"
    rests = ""
    for_good = True

    def __init__(
        self,
        head: bool = False,
        also: str | list[str] | None = None,
        gamma: float | str | None = None,
        zero: float = 0.01,
        control: bool = False,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        flag("BatchNormOnly", "head", head)
        flag("BatchNormOnly", "control", control)
        number("BatchNormOnly", "zero", zero, 0.0)
        whole("BatchNormOnly", "seed", seed, 0)
        if gamma is not None and gamma != "uniform":
            if isinstance(gamma, str):
                raise ValueError(f"BatchNormOnly: gamma is {gamma!r}; give a number, 'uniform' or None.")
            number("BatchNormOnly", "gamma", gamma, 0.0)
        self._also = () if also is None else patterns_of("BatchNormOnly", "also", also)
        self.head, self.also, self.gamma, self.zero = head, also, gamma, zero
        self.control, self.seed = control, seed
        self._trains: tuple[str, ...] = ()
        self._masks: dict[str, Tensor] = {}
        self._norms: list[_BatchNorm] = []

    def plan(self, pl_module: LightningModule, epochs: int | None) -> str | None:
        kind = type(pl_module).__name__
        norms = {
            part_name(name): part
            for name, part in pl_module.named_modules()
            if isinstance(part, _BatchNorm) and part.affine and part.weight.requires_grad
        }
        if not norms:
            raise ValueError(
                f"BatchNormOnly: {kind} has no batch norm with a scale and a shift that train; train a network that "
                "has, or leave it out."
            )
        names = [plain_name(name) for name, it in pl_module.named_parameters() if it.requires_grad]
        random = torch.Generator().manual_seed(self.seed)
        self._masks = self._drawn(pl_module, norms, random) if self.control else {}
        affine = [name for name in names if name.rpartition(".")[0] in norms]
        also = that_match("BatchNormOnly", "also", self._also, names, f"parameters of {kind} that train")
        others = classifier_of("BatchNormOnly", pl_module) if self.head else ()
        self._trains = tuple(dict.fromkeys((*(self._masks or affine), *also, *others)))
        self._norms = list(norms.values())
        self.undo_later(self._norms.clear)
        channels = sum(it.num_features for it in norms.values())
        what = "random weights" if self.control else "scales and shifts"
        beside = f"; {' and '.join((*also, *others))} train, too" if also or others else ""
        rank_zero_info(f"BatchNormOnly: {2 * channels} {what} of {len(norms)} batch norms train{beside}.")
        return None

    def trained(self, epoch: int) -> tuple[str, ...] | None:
        return self._trains

    @torch.no_grad()
    def begin(self, pl_module: LightningModule) -> None:
        if self.gamma is None:
            return
        random = torch.Generator().manual_seed(self.seed + 1)
        for norm in self._norms:
            values = torch.rand(norm.num_features, generator=random)
            norm.weight.copy_(values if self.gamma == "uniform" else torch.full_like(values, float(self.gamma)))

    def entries(self) -> Mapping[str, Tensor]:
        return self._masks

    def numbers(self) -> Mapping[str, float]:
        if self.control:
            return {}
        gammas = torch.cat([it.weight.detach() for it in self._norms])
        return {"gammas_near_zero": (gammas.abs() < self.zero).float().mean().item()}

    def _drawn(
        self, pl_module: LightningModule, norms: Mapping[str, nn.Module], random: torch.Generator
    ) -> dict[str, Tensor]:
        """Masks with two entries for each channel of each norm, of the weights that make the channel."""
        makers: dict[int, list[str]] = {}
        masks: dict[str, Tensor] = {}
        for path, part in pl_module.named_modules():
            if hasattr(part, "_orig_mod"):
                continue
            weight: Any = getattr(part, "weight", None)
            if (norm := norms.get(part_name(path))) is not None:
                width: Any = norm.num_features
                if not makers.get(width):
                    raise ValueError(
                        f"BatchNormOnly: no convolution or linear layer before {part_name(path)} makes its {width} "
                        "channels from two weights or more each, so control has none to train; leave control False."
                    )
                name = makers[width].pop()
                masks[name] = random_entries(pl_module.get_parameter(_own(pl_module, name)).shape, 2, random)
            elif isinstance(weight, Tensor) and weight.requires_grad and weight.ndim > 1 and weight[0].numel() > 1:
                makers.setdefault(len(weight), []).append(f"{part_name(path)}.weight")
        return masks


def _own(pl_module: LightningModule, name: str) -> str:
    """A parameter's name in the module, wrappers included."""
    return next(it for it, _ in pl_module.named_parameters() if plain_name(it) == name)

"""Pruning a robust network without adversarial examples: it is taught by what it was, and kept from knowing too much.

Jian et al. 2022, arXiv:2210.04311 (PwoA). The loss is lambda_x sum_l HSIC(X, Z_l) - lambda_y sum_l HSIC(Y, Z_l) plus
self-distillation; weights are pulled towards their sparse projection by ADMM before they are pruned. Letters: X images,
Y labels, Z_l what layer l puts out; W, Z, U weights, their projection and the scaled multipliers of ADMM.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..distillation.kd_loss import kd_loss
from ..hooks._checks import above_zero, number, whole
from ..hooks._fields import Fields
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._layer_table import layers_with_weights
from ..hooks.distilling import Distilling
from ..hooks.masks import Masks
from .magnitude import magnitude_masks
from .pruning import Pruning

__all__ = ["RobustPruning", "admm_projection", "gaussian_kernel", "hsic", "linear_kernel"]


def gaussian_kernel(samples: Tensor, sigma: float = 5.0) -> Tensor:
    """Similarities exp(-|a - b|^2 / (2 sigma^2 d)) of samples `(B, ...)` with d numbers each: `(B, B)`.

    The bandwidth is sigma sqrt(d), so that one value suits layers of any width.

    >>> gaussian_kernel(torch.tensor([[0.0], [0.0]]))
    tensor([[1., 1.],
            [1., 1.]])
    """
    flat = _flat(samples)
    flat = flat - flat.mean(dim=0)
    squares = flat.square().sum(dim=1)
    # Not `cdist`, whose gradient is not a number where two samples are equal.
    distances = (squares[:, None] + squares - 2 * flat @ flat.T).clamp(min=0)
    return torch.exp(distances / (-2 * sigma**2 * flat.shape[1]))


def linear_kernel(samples: Tensor) -> Tensor:
    """Inner products of samples `(B, ...)`: `(B, B)`.

    >>> linear_kernel(torch.eye(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    flat = _flat(samples)
    return flat @ flat.T


def hsic(kernel_x: Tensor, kernel_y: Tensor) -> Tensor:
    """Dependence of two quantities by their kernels over the same B samples, `(B, B)` each: tr(K H L H) / (B - 1)^2.

    H takes the mean away. It is 0 if one of the two is constant, and for a single sample.

    >>> hsic(torch.eye(2), torch.eye(2))
    tensor(1.)
    """
    centred = kernel_y - kernel_y.mean(dim=0) - kernel_y.mean(dim=1, keepdim=True) + kernel_y.mean()
    return (kernel_x * centred).sum() / max(len(kernel_x) - 1, 1) ** 2


def admm_projection(weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The nearest tensors with `count` numbers that are not zero, over all of them: the largest stay.

    >>> admm_projection({"w": torch.tensor([0.5, -2.0, 1.0])}, count=2)
    {'w': tensor([ 0., -2.,  1.])}
    """
    every = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    kept = magnitude_masks(weights, every, count)
    return {name: torch.where(kept[name], weight, 0) for name, weight in weights.items()}


@final
class RobustPruning(Distilling):
    """Keeps a network robust while it is pruned, by what it answered before and by a bottleneck, on clean images alone.

    Put it beside `Pruning`, which decides what goes and when, and begin with robust weights. It adds to the loss of
    each batch: the divergence from what the network answered before the first step; how much of the images layers know,
    times `lambda_x`; and, taken away, how much of the labels they know, times `lambda_y`. With `rho` weights are pulled
    towards the sparse ones next to them until `Pruning` prunes (ADMM). The loss of `training_step` stays.

    Args:
        kd_weight: Factor of the self-distillation, at least 0; 10 as the authors' scripts.
        temperature: Temperature T of its softmax, above 0; 30 as the authors' scripts.
        lambda_x: Factor of the dependence between images and layers, at least 0; the authors' scripts have 2e-5 for
            CIFAR-10 and 2e-4 for MNIST.
        lambda_y: Factor of the dependence between labels and layers, at least 0; there 1e-4 and 5e-5.
        sigma: Bandwidth of the Gaussian kernels of images and layers, times the root of their numbers a sample; above
            0, 5 as the authors. Labels have a linear kernel.
        layers: Shell patterns of the names of layers, below `network`, whose outputs are looked at; None is all Linear
            and convolutional ones.
        rho: Pull of ADMM, at least 0; 0 leaves it out, the authors begin with 0.01.
        admm_steps: Optimizer steps from one update of the projection to the next, at least 1; three epochs there.
        network: Path of the part of the module that makes logits of images, as `network`; empty is the module itself,
            whose forward `training_step` calls.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`, integer labels `(B,)`, logits `(B, K)`; kernels are `(B, B)`, one for each layer.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the network or a pattern names
            nothing; before the first step, for ADMM without a `Pruning` that prunes once, at a later step; in the first
            batch, if there are no logits `(B, K)` or integer labels.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import Pruning, RobustPruning
        >>> trainer = Trainer(callbacks=[Pruning(0.75), RobustPruning()], accelerator="cpu", logger=False)

    Reference: Jian et al. 2022, arXiv:2210.04311

    BibTeX:
        @inproceedings{jian2022pruning,
          title = {Pruning Adversarially Robust Neural Networks without Adversarial Examples},
          author = {Jian, Tong and Wang, Zifeng and Wang, Yanzhi and Dy, Jennifer and Ioannidis, Stratis},
          booktitle = {IEEE International Conference on Data Mining},
          year = {2022},
          eprint = {2210.04311},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The module's own loss stays, where the authors have none, and is small beside `kd_weight` and T^2. Magnitudes
        are compared over all layers unless `Pruning` says otherwise, ADMM's projection always is; there each layer has
        the same share. `rho` is constant; there it grows.

    See also:
        `Pruning`, which holds the masks.
    """

    neutral = ({"kd_weight": 0.0, "lambda_x": 0.0, "lambda_y": 0.0, "rho": 0.0},)

    def __init__(
        self,
        kd_weight: float = 10.0,
        temperature: float = 30.0,
        lambda_x: float = 2e-5,
        lambda_y: float = 1e-4,
        sigma: float = 5.0,
        layers: Sequence[str] | None = None,
        rho: float = 0.0,
        admm_steps: int = 100,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        factors = {"kd_weight": kd_weight, "lambda_x": lambda_x, "lambda_y": lambda_y, "rho": rho}
        for argument, value in factors.items():
            number("RobustPruning", argument, value, 0)
        for argument, value in (("temperature", temperature), ("sigma", sigma)):
            above_zero("RobustPruning", argument, value)
        whole("RobustPruning", "admm_steps", admm_steps, 1)
        terms = {"distillation": kd_weight, "hsic_x": lambda_x, "hsic_y": -lambda_y, "admm": rho}
        super().__init__(weights={term: it for term, it in terms.items() if it}, network=network, name=name)
        self.kd_weight, self.temperature, self.rho, self.admm_steps = kd_weight, temperature, rho, admm_steps
        self.lambda_x, self.lambda_y, self.sigma, self.layers = lambda_x, lambda_y, sigma, layers
        self._patterns = None if layers is None else patterns_of("RobustPruning", "layers", layers)
        self.fields = Fields("RobustPruning", image_key, target_key)
        self._pruning: Pruning | None = None
        self._pulled: dict[str, Tensor] = {}  # the weights W
        self._projected: dict[str, Tensor] = {}  # Z
        self._multipliers: dict[str, Tensor] = {}  # U

    def looked_at(self, network: nn.Module) -> Sequence[str]:
        if not (self.lambda_x or self.lambda_y):
            return ()
        if self._patterns is None:
            return [name.removesuffix(".weight") for name in layers_with_weights(network)]
        names = [it for it, _ in network.named_modules() if it]
        return that_match("RobustPruning", "layers", self._patterns, names, "layers")

    def ready(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        masks = self.rivals(trainer, Masks)
        self._pruning = cast(Pruning, next((it for it in masks if isinstance(it, Pruning)), None))
        if self.rho:
            self._begin_admm(trainer, pl_module)
        if masks:
            return None
        return (
            "RobustPruning: nothing on this Trainer prunes, so the network is only taught to stay as it is; add "
            "Pruning(sparsity=...)."
        )

    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        images, terms = self.fields.image(batch), dict[str, Tensor]()
        logits = outputs[self.outputs_of[0]][0]
        if not (isinstance(logits, Tensor) and logits.ndim == 2):
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"RobustPruning: the network answers with {came} and not with logits (B, K); name with network= the "
                "part of the module that does."
            )
        if self.kd_weight:
            terms["distillation"] = kd_loss(logits, self.taught(images), self.temperature)
        # In full precision, whatever the rest is in: kernels are differences of large numbers.
        with torch.autocast(images.device.type, enabled=False):
            if self.lambda_x or self.lambda_y:
                kernels = [
                    gaussian_kernel(self._features(it, outputs[it][0], images), self.sigma) for it in self._looked
                ]
                every = torch.stack(kernels).sum(dim=0)
                if self.lambda_x:
                    terms["hsic_x"] = hsic(every, gaussian_kernel(images, self.sigma))
                if self.lambda_y:
                    labels = self._labels(batch, logits.shape[1])
                    terms["hsic_y"] = hsic(every, linear_kernel(labels))
            if self.rho:
                terms["admm"] = self._pull(logits)
        return {term: terms[term] for term in self.weights}

    def after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pulls and trainer.global_step % self.admm_steps == 0:
            with torch.no_grad():
                moved = {name: weight + self._multipliers[name] for name, weight in self._pulled.items()}
                self._projected = admm_projection(moved, self._count)
                self._multipliers = {name: it - self._projected[name] for name, it in moved.items()}

    def state_dict(self) -> dict[str, Any]:
        parts = {"projected": self._projected, "multipliers": self._multipliers}
        return super().state_dict() | {
            key: {name: it.cpu() for name, it in part.items()} for key, part in parts.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._projected, self._multipliers = dict(state_dict["projected"]), dict(state_dict["multipliers"])

    @property
    def _looked(self) -> tuple[str, ...]:
        return self.outputs_of[1:]

    @property
    def _pulls(self) -> bool:
        """Whether ADMM is at work: until the weights are pruned."""
        return self._pruning is not None and bool(self.rho) and not self._pruning.kept_masks

    def _pull(self, like: Tensor) -> Tensor:
        """|W - Z + U|^2 / 2 over all pulled weights."""
        if not self._pulls:
            return like.new_zeros((), dtype=torch.float32)
        found = [
            (weight - self._projected[name] + self._multipliers[name]).square().sum()
            for name, weight in self._pulled.items()
        ]
        return torch.stack(found).sum() / 2

    def _begin_admm(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pruning = self._pruning
        if pruning is None or pruning.begin_step == 0 or pruning.end_step is not None or pruning.pattern is not None:
            raise ValueError(
                f"RobustPruning: rho={self.rho} pulls weights towards what Pruning will leave, until it does; add "
                "Pruning(sparsity=..., begin_step=...) with a begin_step above 0, no end_step and no pattern, or give "
                "rho=0."
            )
        named = dict(pl_module.named_parameters())
        self._pulled = {name: named[name] for name in pruning.chosen}
        self.undo_later(self._pulled.clear)
        total = sum(it.numel() for it in self._pulled.values())
        self._count = total - round(pruning.sparsity * total)
        if trainer.global_step == 0 or self._projected.keys() != self._pulled.keys():
            with torch.no_grad():
                self._projected = admm_projection(self._pulled, self._count)
                self._multipliers = {name: torch.zeros_like(it) for name, it in self._pulled.items()}
        for part in (self._projected, self._multipliers):
            part.update({name: it.to(self._pulled[name].device) for name, it in part.items()})

    def _features(self, layer: str, output: Any, images: Tensor) -> Tensor:
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == len(images):
            return output
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"RobustPruning: the layer {layer!r} puts out {came} for {len(images)} images and not a row for each; "
            "choose others with layers=."
        )

    def _labels(self, batch: Any, classes: int) -> Tensor:
        target = self.fields.target(batch)
        if not (isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()):
            came = f"{tuple(target.shape)} {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(
                f"RobustPruning: lambda_y={self.lambda_y} needs integer labels (B,), and the batch has {came}; say "
                "with target_key= where they are, or give lambda_y=0."
            )
        return F.one_hot(target, classes).float()


def _flat(samples: Tensor) -> Tensor:
    wide = samples.to(torch.promote_types(samples.dtype, torch.float32))
    return wide.reshape(len(wide), -1)

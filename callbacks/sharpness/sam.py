"""Sharpness-Aware Minimization, its adaptive form ASAM and LookSAM, which reuses the ascent's direction.

Foret et al. 2020, arXiv:2010.01412, Eq. 2; Kwon et al. 2021, arXiv:2102.11600; Liu et al. 2022, arXiv:2203.02714,
Algorithm 1. Symbols: w `weights`, g `gradients` at w, g_s `sharp`, the gradients at w + e, g_v `direction`. The norm is
that of all of them together.
"""

from collections.abc import Generator
from typing import final

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ..hooks._checks import number, whole
from ..hooks.ascent import Ascent

__all__ = ["SAM", "asam_perturbation", "looksam_direction", "looksam_gradient", "sam_perturbation"]


def sam_perturbation(gradients: list[Tensor], rho: float) -> list[Tensor]:
    """The perturbation of SAM: a step of length `rho` along the gradient.

    e = rho g / ||g||, Foret et al. Eq. 2 with p = 2; written into `gradients`, which is returned (in float32 where it
    is float16).
    """
    gradients = _widened(gradients)
    torch._foreach_mul_(gradients, _over(rho, get_total_norm(gradients)))
    return gradients


def asam_perturbation(weights: list[Tensor], gradients: list[Tensor], rho: float, eta: float) -> list[Tensor]:
    """The perturbation of ASAM: SAM's, with lengths measured relative to each weight's size.

    e = rho T^2 g / ||T g|| with T = |w| + eta elementwise, Kwon et al. Algorithm 1; written into `gradients`, which is
    returned (in float32 where it is float16).
    """
    gradients = _widened(gradients)
    scale = torch._foreach_abs(_widened(weights))
    torch._foreach_add_(scale, eta)
    torch._foreach_mul_(gradients, scale)
    norm = get_total_norm(gradients)
    torch._foreach_mul_(gradients, scale)
    torch._foreach_mul_(gradients, _over(rho, norm))
    return gradients


def looksam_direction(sharp: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """The direction that LookSAM keeps: what of SAM's gradient is orthogonal to the plain one.

    g_v = g_s - (g_s . u) u with u = g / ||g||, Liu et al. Algorithm 1; `gradients` is overwritten. In float32
    where they are float16.
    """
    sharp, gradients = _widened(sharp), _widened(gradients)
    torch._foreach_mul_(gradients, _over(1.0, get_total_norm(gradients)))
    along = torch.stack([part.sum() for part in torch._foreach_mul(sharp, gradients)]).sum()
    torch._foreach_mul_(gradients, along)
    return list(torch._foreach_sub(sharp, gradients))


def looksam_gradient(gradients: list[Tensor], direction: list[Tensor], alpha: float) -> list[Tensor]:
    """The gradient of LookSAM between its ascents: the plain one and a share of the kept direction.

    g + alpha ||g|| / ||g_v|| g_v, Liu et al. Algorithm 1; written into `gradients`, which is returned.
    """
    direction = _widened(direction)
    scale = get_total_norm(_widened(gradients)) * _over(alpha, get_total_norm(direction))
    torch._foreach_add_(gradients, torch._foreach_mul(direction, scale))
    return gradients


def _over(length: float, norm: Tensor) -> Tensor:
    """`length / norm`; 0 for a zero gradient, which has no direction, and for one that is not finite."""
    return (length / norm).nan_to_num(0.0, 0.0, 0.0)


def _widened(tensors: list[Tensor]) -> list[Tensor]:
    """The list itself, or with float16 in it one in float32: neither a norm nor one over it need fit into float16."""
    if all(it.dtype != torch.float16 for it in tensors):
        return tensors
    return [it.float() for it in tensors]


@final
class SAM(Ascent):
    """Steps with the gradient taken where the loss is highest near the weights; seeks flat minima (SAM, ASAM, LookSAM).

    It acts when the last micro-batch of a step has gone backward: the weights move by a perturbation of norm `rho`
    along the gradient, the step's micro-batches are computed again with the same random draws, the weights come back
    exactly, and the module's own optimizer steps with the second gradient. Precision, clipping, schedules and counters
    are Lightning's; buffers (batch norm), torchmetrics and logs keep what the first pass left.

    Args:
        rho: Norm of the perturbation over all perturbed weights, in their units, >= 0. 0.05 is the paper's choice
            without tuning; ASAM's authors use 0.5 on CIFAR-10 and 1.0 on CIFAR-100 and ImageNet. Neutral: 0.
        adaptive: ASAM: distances are measured relative to each weight's size, so that rescaled layers perturb alike.
        every_n_steps: Optimizer steps from one ascent to the next, >= 1. 1 is SAM; above it LookSAM, the steps between
            reuse the direction of the last ascent (its authors use 5).
        alpha: LookSAM's share of the reused direction relative to the gradient's norm, >= 0; 0.7 as its authors.
            Without meaning for `every_n_steps=1`.
        eta: ASAM adds it to |w|, so that weights at zero are perturbed too, >= 0; 0.01 as its authors.
        skip_bn_bias: Leave biases and the weights of normalisation layers (one dimension or none) unperturbed.
        synchronise: Over several processes, perturb along the gradient of all of them, which equals one process with
            the whole batch. False: each along its own, the paper's m-sharpness, and one synchronisation less a step.
        name: Part of the state key.

    Shape:
        Parameters of any shape; those without a gradient are left alone.

    Raises:
        ValueError: an argument out of its range; `every_n_steps > 1` without `synchronise`; two of the family in one
            Trainer; LBFGS; a `training_step` with `dataloader_iter`; a strategy that owns gradients; manual
            optimisation whose `optimizer.step()` has no closure.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import SAM
        >>> trainer = Trainer(callbacks=[SAM(rho=0.05)], accelerator="cpu", logger=False)

    Reference: Foret et al. 2020, arXiv:2010.01412

    BibTeX:
        @inproceedings{foret2021sam,
          title = {Sharpness-Aware Minimization for Efficiently Improving Generalization},
          author = {Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam},
          booktitle = {International Conference on Learning Representations},
          year = {2021},
          eprint = {2010.01412},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The default perturbs along the gradient of all processes; the paper's accelerators each use their own. ASAM's
        elementwise scale applies to all parameters as its equations have it, where its authors' code leaves biases
        out. A zero gradient, which has no direction, perturbs nothing.

    See also:
        `lightning_vision.callbacks.hooks.ascent.replaying`, for modules that count or collect in `training_step`.
    """

    neutral = ({"rho": 0.0},)

    def __init__(
        self,
        rho: float = 0.05,
        adaptive: bool = False,
        every_n_steps: int = 1,
        alpha: float = 0.7,
        eta: float = 0.01,
        skip_bn_bias: bool = False,
        synchronise: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(synchronise=synchronise, name=name)
        number("SAM", "rho", rho, 0)
        whole("SAM", "every_n_steps", every_n_steps, 1)
        number("SAM", "alpha", alpha, 0)
        number("SAM", "eta", eta, 0)
        if every_n_steps > 1 and not synchronise:
            raise ValueError(
                f"SAM: every_n_steps is {every_n_steps}, which reuses a direction that all processes must share; leave "
                "synchronise=True, or give every_n_steps=1."
            )
        self.rho, self.adaptive, self.every_n_steps = rho, adaptive, every_n_steps
        self.alpha, self.eta, self.skip_bn_bias = alpha, eta, skip_bn_bias

    def ascend(
        self, weights: list[Tensor], gradients: list[Tensor], step: int
    ) -> Generator[list[Tensor], list[Tensor], list[Tensor]]:
        direction = self.recall(weights) if step % self.every_n_steps else None
        if direction is not None:
            return looksam_gradient(gradients, direction, self.alpha)
        at_weights = list(torch._foreach_clone(gradients)) if self.every_n_steps > 1 else []
        if self.skip_bn_bias and (skipped := [it for it in gradients if it.ndim < 2]):
            torch._foreach_zero_(skipped)
        sharp = yield (
            asam_perturbation(weights, gradients, self.rho, self.eta)
            if self.adaptive
            else sam_perturbation(gradients, self.rho)
        )
        if at_weights:
            direction = looksam_direction(sharp, at_weights)
            # Gradients are those of all processes, so all decide alike; an overflow must not outlive its step.
            if torch.isfinite(get_total_norm(direction)):
                self.keep(weights, direction)
        return sharp

"""The style of features, mean and deviation of each channel, and moving it by noise that learns to hurt.

Zhang, Deng, Li, Jia and Zhang 2023, arXiv:2301.12643. Symbols: mu, sigma the mean and standard deviation of each
channel of each sample's features x, its style; s_mu, s_sigma how strong the noise on them is; letters: B samples, C
channels, H and W of the maps.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["StyleIntensity", "beside", "feature_style", "gradient_reversal", "restyle", "style_spread"]


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * -ctx.weight, None


class _Beside(torch.autograd.Function):
    """Its first argument; the others, which have no part in it, get gradients of zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *beside: Tensor) -> Tensor:
        ctx.save_for_backward(*beside)
        # No view: the next layer may work in place.
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (gradients[0], *(torch.zeros_like(it) for it in ctx.saved_tensors))


def gradient_reversal(values: Tensor, weight: float = 1.0) -> Tensor:
    """The values themselves, whose gradient is multiplied by -weight on the way back."""
    return cast(Tensor, _Reversed.apply(values, weight))


def beside(values: Tensor, *parameters: Tensor) -> Tensor:
    """The values themselves, by whose way back the parameters, which have no part in them, get gradients of zeros."""
    return cast(Tensor, _Beside.apply(values, *parameters))


def feature_style(features: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each sample, `(B, C, 1, 1)` both.

    Args:
        features: `(B, C, H, W)`, with H W of at least 2.
        eps: Added to the variance, which is the unbiased one.
    """
    var, mean = torch.var_mean(features, dim=(2, 3), keepdim=True)
    return mean, (var + eps).sqrt()


def style_spread(features: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """How far the styles of a batch's samples are apart: standard deviations of mean and of standard deviation, `(C,)`.

    Args:
        features: `(B, C, H, W)`; of one sample the spread is taken for 0.
        eps: Added to the variances, which are the unbiased ones.
    """
    if len(features) < 2:
        nothing = features.new_full(features.shape[1:2], eps).sqrt()
        return nothing, nothing.clone()
    mean, std = (it.flatten(1).var(0) for it in feature_style(features, eps))
    return (mean + eps).sqrt(), (std + eps).sqrt()


def restyle(features: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Features with the style mu + shift, sigma + scale in the place of mu, sigma.

    `(sigma + scale) (x - mu) / sigma + mu + shift`, computed as `x + scale (x - mu) / sigma + shift`, which for a shift
    and a scale of 0 is x, bit for bit.

    Args:
        features: `(B, C, H, W)`.
        shift: `(B, C, 1, 1)`.
        scale: `(B, C, 1, 1)`.
        eps: Added to the variance.
    """
    mean, std = feature_style(features, eps)
    return features + scale * ((features - mean) / std) + shift


class StyleIntensity(nn.Module):
    """How strong the noise on the style of one layer's features is, for each channel; it learns to hurt.

    Args:
        channels: C.
        init: What both begin with; None waits for `begin`, and until then there is no noise.

    Attributes:
        mean: s_mu `(C,)`, of the noise on the mean.
        std: s_sigma `(C,)`, of the noise on the standard deviation.
        begun: Whether they have their first values, for a resumed run.
        waits: The contrary, which nobody has to ask a device for.
    """

    begun: Tensor

    def __init__(self, channels: int, init: float | None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((channels,), init or 0.0))
        self.std = nn.Parameter(torch.full((channels,), init or 0.0))
        self.waits = init is None
        self.register_buffer("begun", torch.tensor(init is not None))
        self.register_load_state_dict_post_hook(_know)

    @torch.no_grad()
    def begin(self, features: Tensor, eps: float) -> None:
        """Take the spread of the styles in this batch, in DDP the mean over all ranks, which all call this."""
        for own, found in zip((self.mean, self.std), style_spread(_wide(features), eps), strict=True):
            if dist.is_initialized():
                dist.all_reduce(found)
                found /= dist.get_world_size()
            own.copy_(found)
        self.begun.fill_(True)
        self.waits = False

    def forward(self, features: Tensor, noise: Tensor, adv_weight: float, eps: float) -> Tensor:
        """Features `(B, C, H, W)` in a style that is moved by noise `(2, B, C, 1, 1)`, for mean and deviation."""
        mean, std = (gradient_reversal(_wide(it), adv_weight)[:, None, None] for it in (self.mean, self.std))
        return restyle(_wide(features), noise[0] * mean, noise[1] * std, eps).type_as(features)


def _wide(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _know(intensity: StyleIntensity, incompatible_keys: Any) -> None:
    intensity.waits = not bool(intensity.begun)

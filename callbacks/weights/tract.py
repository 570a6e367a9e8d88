"""TrAct: the first layer learns as if its pre-activations were trained themselves, not its weights.

Petersen, Borgelt and Ermon 2024, arXiv:2410.23970, section 3, the closed form of its update. Symbols: W the weight
`(m, n)`, X what the layer is given `(n, b)`, a column for each of b positions, z = W X, lambda `lam`.
"""

from collections.abc import Iterable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks.first_layer import FirstLayer

__all__ = ["TrAct", "layer_columns", "second_moment", "tract_gradient"]

# Numbers in the unfolded patches that are held at once.
HELD = 1 << 24


def tract_gradient(gradient: Tensor, moment: Tensor, lam: float = 0.1) -> Tensor:
    """The weight's gradient that makes pre-activations descend: grad_W (X X^T / b + lambda I)^-1.

    It is solved in float32 at least, and given back in the gradient's type.

    Args:
        gradient: Of the loss by the weight, `(m, ...)` with n numbers a row.
        moment: X X^T / b, `(n, n)`.
        lam: Lambda, above 0.

    >>> tract_gradient(torch.tensor([[3.0, 1.0]]), torch.diag(torch.tensor([2.0, 0.0])), lam=1.0)
    tensor([[1., 1.]])
    """
    exact = moment.dtype
    raised = moment + lam * torch.eye(len(moment), dtype=exact, device=moment.device)
    factor = torch.linalg.cholesky_ex(raised).L
    solved = torch.cholesky_solve(gradient.reshape(len(gradient), -1).to(exact).T, factor).T
    return solved.reshape(gradient.shape).to(gradient.dtype)


def second_moment(columns: Iterable[Tensor]) -> Tensor:
    """X X^T / b of columns that come in parts, `(n, n)`, in float32 or float64.

    Args:
        columns: Parts of X, at least one, each `(n, b_i)`.
    """
    total, count = None, 0
    for part in columns:
        exact = part.to(torch.promote_types(part.dtype, torch.float32))
        total = exact @ exact.T if total is None else total.addmm_(exact, exact.T)
        count += part.shape[1]
    assert total is not None
    return total / count


def layer_columns(layer: nn.Module, given: Tensor) -> Tensor:
    """What each output position of a Linear or Conv2d layer sees: X, `(n, b)`.

    Args:
        layer: Linear, n = features; or Conv2d in one group, n = channels * height * width of the kernel.
        given: Features `(..., n)`, or images `(B, C, H, W)`; then b = B times the positions of the output.
    """
    if not isinstance(layer, nn.Conv2d):
        return given.reshape(-1, given.shape[-1]).T
    images, padding = given, layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        sides = _sides(layer)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        images, padding = F.pad(given, sides, mode=mode), (0, 0)
    patches = F.unfold(images, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.transpose(0, 1).flatten(1)


def _sides(layer: nn.Conv2d) -> list[int]:
    """Left, right, top and bottom padding, pixels."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    sides = []
    for axis in (1, 0):
        if layer.padding == "same":
            whole = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [whole // 2, whole - whole // 2]
        else:
            sides += [int(layer.padding[axis])] * 2
    return sides


@final
class TrAct(FirstLayer):
    """Trains the first layer by its pre-activations: its weight's gradient is divided by the inputs' second moment.

    The gradient of a first layer's weight is proportional to the pixels, so bright and contrasty images weigh more.
    Here it becomes grad_W (X X^T / b + lambda I)^-1, which moves the pre-activations W X the way that gradient descent
    on themselves would, as nearly as one W can. The forward, the bias and all other layers are as they were, and any
    optimizer works on top. Each micro-batch is divided by its own moment, on each process.

    Args:
        lam: Lambda in the paper: above 0; 0.1 as the authors. There is no neutral value: a large one leaves the
            gradient's direction and divides it by lambda.
        layer: Name of the layer, as `network.conv1` or `network.patch_embed.proj`; None takes the Linear or Conv2d that
            is called first in training.
        name: Part of the state key.

    Shape:
        A Linear on `(..., n)`, or a Conv2d in one group on `(B, C, H, W)`; one matrix `(n, n)` a micro-batch, with n
        the inputs of one output: 27 for a 3x3 kernel on RGB, 768 for patches of 16 pixels.

    Raises:
        ValueError: `lam` is not above 0, or `layer` is no name; before the first step, if there is no such layer,
            it is neither a Linear nor a Conv2d in one group, or its weight is frozen.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import TrAct
        >>> trainer = Trainer(callbacks=[TrAct(lam=0.1)], accelerator="cpu", logger=False)

    Reference: Petersen et al. 2024, arXiv:2410.23970

    BibTeX:
        @inproceedings{petersen2024tract,
          title = {{TrAct}: Making First-layer Pre-Activations Trainable},
          author = {Petersen, Felix and Borgelt, Christian and Ermon, Stefano},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2024},
          eprint = {2410.23970},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Nothing in the formula. A layer that is called several times in a step has one moment over all its calls.

    See also:
        `SAM`, whose second gradient is changed alike.
    """

    neutral = "any lambda divides the gradient: where it is large, by lambda itself, so leave the callback out"

    def __init__(self, lam: float = 0.1, layer: str | None = None, name: str | None = None) -> None:
        super().__init__(layer=layer, name=name)
        if isinstance(lam, bool) or not (isinstance(lam, (int, float)) and 0.0 < lam < float("inf")):
            raise ValueError(f"TrAct: lam is {lam!r}; give a finite number above 0, such as 0.1.")
        self.lam = lam

    def admit(self, layer: nn.Module) -> str | None:
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            return f"is a {type(layer).__name__}; name a Linear or Conv2d layer"
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            return f"is a convolution in {layer.groups} groups, which see different inputs; name one in a single group"
        return None

    def change(self, layer: nn.Module, gradient: Tensor, given: list[Tensor]) -> Tensor:
        with torch.autocast(gradient.device.type, enabled=False):
            columns = (layer_columns(layer, part) for images in given for part in _parts(layer, images))
            return tract_gradient(gradient, second_moment(columns), self.lam)


def _parts(layer: nn.Module, given: Tensor) -> tuple[Tensor, ...]:
    """Images in parts whose patches are not too many to be held."""
    if not isinstance(layer, nn.Conv2d):
        return (given,)
    a_image = given[0].numel() * layer.kernel_size[0] * layer.kernel_size[1] // (layer.stride[0] * layer.stride[1])
    return given.split(max(1, HELD // max(1, a_image)))

"""Linear interpreters: the affine map that a network is for one input, f(x) = A(x) x + b(x), by rows and columns.

Navarrete Michelini et al. 2019, arXiv:1908.05168. For an image x every non-linear unit takes a decision, such as which
inputs a ReLU lets through; with all decisions kept the network is affine. Symbols: A `(K, C H W)` for an answer
`(B, K)`, a row of it for each class and a column for each number of the image; b `(K,)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.scores import class_scores

from ._frozen_decisions import FrozenDecisions, SuspiciousFunctions
from ._map_logger import MapLogger
from .sheet import signed_picture

__all__ = ["AffineTerms", "LinearInterpreter", "LinearInterpreterLogger"]


@dataclass(frozen=True)
class AffineTerms:
    """What the score of a class is made of, for each image of a batch: score = sum of contributions + bias.

    Args:
        row: That class's row of A, `(B, C, H, W)`.
        contributions: The row times the image, `(B, C, H, W)`: what each number of the image adds to the score.
        bias: What is added whatever the image is, as long as the decisions are these, `(B,)`.
        logits: Answer of the model `(B, K)`.
        class_index: Whose score it is, int64 `(B,)`.
    """

    row: Tensor
    contributions: Tensor
    bias: Tensor
    logits: Tensor
    class_index: Tensor


class LinearInterpreter:
    """Writes a network's answer to an image as a sum over the image's pixels and a bias, by keeping all its decisions.

    Kept are: of ReLU, leaky ReLU, ReLU6, clamp and their like the straight piece; of max-pooling the place of the
    maximum; of SiLU, GELU, hard-swish, ELU, tanh, softplus and their like the slope from act(0) to act(x); of sigmoids,
    softmax and attention weights their value; of layer, group, instance and RMS normalisation mean and deviation; of
    divisions the divisor. They are kept wherever they are called, in modules or as functions. Everything else has to be
    linear. That it was is checked each time by the sum: score = row · x + bias.

    The model is run in eval mode and left as it was; its parameters may be frozen. Two runs are needed, and one
    backward.

    Args:
        model: Any module that is called as `model(images)`.
        tolerance: How far the sum may be from the score, as a share of the largest of score, row · x and bias, > 0.
            Rounding gives some 1e-6 in float32; the bound is no lower than ten times the eps of the precision, which on
            GPUs is taken to be TF32's, 1e-3.

    Raises:
        ValueError: `tolerance` is not > 0; when asked, if the sum is not the score, with the functions that are not
            linear, or if no decision left depends on the image.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import LinearInterpreter
        >>> network, images = timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)
        >>> LinearInterpreter(network).contributions(images).shape
        torch.Size([2, 3, 64, 64])

    Reference: Navarrete Michelini et al. 2019, arXiv:1908.05168
    """

    def __init__(self, model: nn.Module, tolerance: float = 1e-4) -> None:
        if not tolerance > 0:
            raise ValueError(f"LinearInterpreter: tolerance is {tolerance}; give a share > 0.")
        self.model, self.tolerance = model, tolerance

    def terms(self, images: Tensor, class_index: int | Tensor | None = None) -> AffineTerms:
        """A class's row, its contributions and the bias.

        Args:
            images: `(B, C, H, W)`, normalised as the model takes them.
            class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.
        """
        with self._frozen(images) as frozen:
            _, chosen = class_scores(frozen.answer, class_index)
            row = self._row(frozen, torch.zeros_like(frozen.answer).scatter_(1, chosen[:, None], 1))
            bias = frozen.bias.gather(1, chosen[:, None]).squeeze(1)
            return AffineTerms(row, row * images, bias, frozen.answer.detach(), chosen)

    def contributions(self, images: Tensor, class_index: int | Tensor | None = None) -> Tensor:
        """What each number of the images adds to the score of a class, `(B, C, H, W)`; arguments as of `terms`."""
        return self.terms(images, class_index).contributions

    def row(self, images: Tensor, weights: Tensor) -> Tensor:
        """The rows of A summed by `weights`, `(B, C, H, W)`: its transpose times `weights`, shaped as the answer."""
        with self._frozen(images) as frozen:
            return self._row(frozen, weights)

    def column(self, images: Tensor, direction: Tensor) -> Tensor:
        """A times `direction`, shaped as the answer: for one pixel of 1 among zeros a column, its impulse response.

        Args:
            images: `(B, C, H, W)`, whose decisions are kept.
            direction: `(B, C, H, W)`.
        """
        with self._frozen(images) as frozen:
            self._row(frozen, torch.ones_like(frozen.answer))
            return self._column(frozen, direction)

    def singular_vectors(
        self, images: Tensor, count: int = 1, steps: int = 30, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The largest singular values of A and their vectors, by power iteration, one after the other.

        Args:
            images: `(B, C, H, W)`, whose decisions are kept; each image has an A of its own.
            count: How many, 1 to the rank.
            steps: Of power iteration for each, >= 1; the error falls by (s2 / s1)^2 a step.
            generator: Of the normal numbers it starts with, on the CPU; None is one with seed 0.

        Returns:
            Values `(B, count)`, largest first; vectors among answers `(B, count, ...)`; vectors among images
            `(B, count, C, H, W)`, all of length 1.
        """
        if count < 1 or steps < 1:
            raise ValueError(f"LinearInterpreter: count is {count} and steps {steps}; give numbers >= 1.")
        generator = generator or torch.Generator().manual_seed(0)
        values: list[Tensor] = []
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        with self._frozen(images) as frozen:
            self._row(frozen, torch.ones_like(frozen.answer))
            for _ in range(count):
                right = torch.randn(images.shape, generator=generator).to(images)
                for _ in range(steps):
                    right = _unit(_apart(right, rights))
                    right = self._row(frozen, self._column(frozen, right), check=False)
                right = _unit(_apart(right, rights))
                left = self._column(frozen, right)
                values.append(left.flatten(1).norm(dim=1))
                lefts.append(_unit(left))
                rights.append(right)
        return torch.stack(values, 1), torch.stack(lefts, 1), torch.stack(rights, 1)

    @contextmanager
    def _frozen(self, images: Tensor) -> Iterator["_Frozen"]:
        # Whole precision: an automatic one rounds what is to be an identity.
        with at_rest(self.model), torch.autocast(images.device.type, enabled=False):
            leaf = images.detach().clone().requires_grad_()
            decisions = FrozenDecisions()
            with decisions:
                answer = self.model(leaf * 1)
            if not isinstance(answer, Tensor):
                raise ValueError(
                    f"LinearInterpreter: {type(self.model).__name__} answers a {type(answer).__name__}; wrap it in a "
                    "module that answers one tensor."
                )
            if not bool(answer.isfinite().all()):
                raise ValueError(
                    f"LinearInterpreter: the answer of {type(self.model).__name__} is not a finite number everywhere "
                    "(NaN or infinite), so it is no sum; look at its weights and at the images."
                )
            if not answer.requires_grad:
                raise ValueError(
                    f"LinearInterpreter: no number of the answer of {type(self.model).__name__} is left that depends "
                    "on the image; a softmax or sigmoid at the end is a decision, too, so interpret the logits."
                )
            nothing = torch.zeros_like(leaf)
            with torch.no_grad(), decisions.replay():
                bias = self.model(nothing)
            yield _Frozen(leaf, decisions, answer, bias)

    def _row(self, frozen: "_Frozen", weights: Tensor, check: bool = True) -> Tensor:
        (row,) = torch.autograd.grad(frozen.answer, frozen.images, weights, retain_graph=True)
        if check:
            said, voted, added = (
                (one.detach() * other).flatten(1).sum(1)
                for one, other in ((frozen.answer, weights), (row, frozen.images.detach()), (frozen.bias, weights))
            )
            largest = torch.stack([said, voted, added]).abs().amax(0).clamp_min(1e-12)
            residual = float(((said - voted - added).abs() / largest).max())
            rounding = max(torch.finfo(row.dtype).eps, 2**-10 if row.is_cuda else 0)
            if not residual <= max(self.tolerance, 10 * rounding):
                raise ValueError(self._blame(frozen.images, residual))
        return row

    def _column(self, frozen: "_Frozen", direction: Tensor) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(frozen.images.detach().clone(), direction)
            with frozen.decisions.replay():
                answer = self.model(dual)
            tangent: Tensor | None = forward_ad.unpack_dual(answer).tangent
        return torch.zeros_like(frozen.answer) if tangent is None else tangent

    def _blame(self, images: Tensor, residual: float) -> str:
        suspicious = SuspiciousFunctions()
        with suspicious:
            answer = self.model(images * 1)
        outputs = [output for _, output in suspicious.found]
        reached = torch.autograd.grad(answer.sum(), outputs, allow_unused=True) if outputs else ()
        names = [name for (name, _), it in zip(suspicious.found, reached, strict=True) if it is not None]
        named = ", ".join(dict.fromkeys(names)) or "one that torch does not show"
        return (
            f"LinearInterpreter: {type(self.model).__name__} is not linear with its known decisions kept: row · x + "
            f"bias misses the score by {residual:.2g} of it; a function with decisions of its own is {named}."
        )


@dataclass(frozen=True)
class _Frozen:
    images: Tensor
    decisions: FrozenDecisions
    answer: Tensor
    bias: Tensor


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.flatten(1), dim=1).view_as(vectors)


def _apart(vectors: Tensor, others: list[Tensor]) -> Tensor:
    """`vectors` less what they have of `others`, image by image."""
    for other in others:
        share = (vectors * other).flatten(1).sum(1)
        vectors = vectors - share.view(-1, *[1] * (vectors.ndim - 1)) * other
    return vectors


@final
class LinearInterpreterLogger(MapLogger):
    """Logs what each pixel adds to or takes from a class's score, on fixed samples after each validation.

    Each image stands beside its contributions, summed over channels: red for the class, blue against it. The bar at
    their right is the bias, which no pixel accounts for: red or blue likewise, and as high as its share of |bias| +
    |sum of contributions|. It draws when a validation or test is over; gradients, modes, random streams, hooks and what
    waits to be accumulated are left as they were.

    Args:
        target: The class that a map explains: each image's `predicted` one, its `label`, or a class by number.
        samples: Images on the sheet, chosen once, spread over the classes, >= 1.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Images `(B, C, H, W)`, logits `(B, K)`.

    Raises:
        ValueError: an argument out of its range; in the sanity check, a `validate` or a `test`, if the module decides
            by functions that cannot be kept. In a later validation of a fit that is told once, and the training goes
            on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import LinearInterpreterLogger
        >>> trainer = Trainer(callbacks=[LinearInterpreterLogger(samples=8)], accelerator="cpu", logger=False)

    Reference: Navarrete Michelini et al. 2019, arXiv:1908.05168

    BibTeX:
        @inproceedings{michelini2019tour,
          title = {A Tour of Convolutional Networks Guided by Linear Interpreters},
          author = {Navarrete Michelini, Pablo and Liu, Hanwen and Lu, Yunhua and Jiang, Xingqun},
          booktitle = {International Conference on Computer Vision},
          year = {2019},
        }

    Differs from the paper:
        Decisions are recorded in one run and kept in another, where the paper runs both in one batch; it is also done
        for networks newer than the paper, with attention and smooth activations.

    See also:
        `LinearInterpreter`, rows, columns and singular vectors themselves.
    """

    title: ClassVar[str] = "linear_interpreter"

    def explain(
        self, pl_module: LightningModule, images: Tensor, class_index: int | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        terms = LinearInterpreter(pl_module).terms(images, class_index)
        voted = terms.contributions.sum(1)
        share = terms.bias / (terms.bias.abs() + voted.sum((1, 2)).abs()).clamp_min(1e-12)
        # The share travels as a map of one number, for it belongs to its image.
        return torch.stack([voted, share[:, None, None].expand_as(voted)], 1), terms.logits

    def paint(self, image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
        voted, share = values[0], float(values[1, 0, 0])
        height, width = voted.shape
        bar = np.zeros((height, max(2, width // 16)))
        bar[height - round(abs(share) * height) :] = np.sign(share)
        gap = np.full((height, max(1, width // 32), 3), 255, dtype=np.uint8)
        return np.concatenate([signed_picture(voted), gap, signed_picture(bar)], 1)

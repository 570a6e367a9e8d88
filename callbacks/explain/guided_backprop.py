"""Guided backpropagation: what in the image a network's features answer to, as a gradient that only ever adds.

Springenberg et al. 2014, arXiv:1412.6806, section 3.4. Symbols: f `x` is a ReLU's input, R the gradient that arrives at
its output; back goes R where f > 0 and R > 0, else 0.
"""

from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.scores import class_scores

from ._map_logger import MapLogger

__all__ = ["GuidedBackpropLogger", "gradient_picture", "guided_backprop"]

IN_PLACE = (torch.relu_, Tensor.relu_)
RELUS = (F.relu, torch.relu, Tensor.relu, *IN_PLACE)


class GuidedReLUs(TorchFunctionMode):
    """Inside, a ReLU that is called, in whatever way, later passes back what is positive only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in RELUS:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        rectified = torch.relu(x)
        if rectified.requires_grad:
            self.seen += 1
            rectified.register_hook(torch.relu)
        # Written back, not computed in place: x may be a view, whose hooks would never be called.
        return x.copy_(rectified) if func in IN_PLACE or kwargs.get("inplace") or True in args[1:] else rectified


def leaf_of(images: Tensor) -> Tensor:
    """A copy of images that gradients can be asked of, also of those that were made in inference mode.

    Raises:
        ValueError: they are whole numbers.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}, which has no gradient; give floating ones, as the model takes them."
        )
    return images.detach().clone().requires_grad_()


def guided_backprop(model: nn.Module, images: Tensor, class_index: int | Tensor | None = None) -> Tensor:
    """Guided gradients of a class score by the image, `(B, C, H, W)`, signed, in the unit of logit per image value.

    Every ReLU passes a gradient back only where its input and the gradient are positive, be it a module, a function or
    in place. The model is run once, in eval mode, and left as it was, gradients and train flags included.

    Args:
        model: Any module that answers logits `(B, K)` to images and has ReLUs; its parameters may be frozen.
        images: `(B, C, H, W)`, floating, normalised as the model takes them.
        class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.

    Raises:
        ValueError: there is no ReLU between images and answer; a class is outside 0..K-1; the answer is no `(B, K)`.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import guided_backprop
        >>> guided_backprop(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 3, 64, 64])

    Reference: Springenberg et al. 2014, arXiv:1412.6806
    """
    return _gradient_and_answer(model, images, class_index)[0]


def gradient_picture(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A signed gradient `(C, H, W)` as a picture around grey, `(H, W, 3)`: brighter where more of a colour speaks for.

    Black and white are the 99.5th percentile of the absolute values. Of one or two channels the first is shown, of more
    than three the first three.
    """
    values = np.asarray(values, dtype=np.float32)
    colours = values[:3] if len(values) >= 3 else values[:1].repeat(3, axis=0)
    largest = max(float(np.percentile(np.abs(colours), 99.5)), 1e-12)
    picture = np.round((np.clip(colours / largest, -1, 1) + 1) * 127.5)
    return np.ascontiguousarray(picture.transpose(1, 2, 0)).astype(np.uint8)


@final
class GuidedBackpropLogger(MapLogger):
    """Logs which strokes and edges of an image a class score answers to, as guided gradients beside fixed samples.

    It draws when a validation or test is over, with one forward and one backward of the samples; gradients, modes,
    random streams, hooks and what waits to be accumulated are left as they were. Each gradient is a picture around
    grey, scaled by itself.

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
        ValueError: an argument out of its range; in the sanity check, a `validate` or a `test`, if the module calls no
            ReLU. In a later validation of a fit that is told once, and the training goes on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import GuidedBackpropLogger
        >>> trainer = Trainer(callbacks=[GuidedBackpropLogger(samples=8)], accelerator="cpu", logger=False)

    Reference: Springenberg et al. 2014, arXiv:1412.6806

    BibTeX:
        @article{springenberg2014striving,
          title = {Striving for Simplicity: The All Convolutional Net},
          author = {Springenberg, Jost Tobias and Dosovitskiy, Alexey and Brox, Thomas and Riedmiller, Martin},
          journal = {arXiv preprint arXiv:1412.6806},
          year = {2014},
        }

    Differs from the paper:
        It starts from a class score; the paper also starts from a single unit of a layer.

    See also:
        `guided_backprop`, the gradients themselves; `GradCAMLogger` with `guided`, where they are weighted by place.
    """

    title: ClassVar[str] = "guided_backprop"

    def explain(
        self, pl_module: LightningModule, images: Tensor, class_index: int | Tensor | None
    ) -> tuple[Tensor, Any]:
        return _gradient_and_answer(pl_module, images, class_index)

    def paint(self, image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
        return gradient_picture(values)


def _gradient_and_answer(model: nn.Module, images: Tensor, class_index: int | Tensor | None) -> tuple[Tensor, Tensor]:
    with at_rest(model):
        leaf = leaf_of(images)
        with GuidedReLUs() as relus:
            # A copy, for the first layer may write in place, which a leaf does not allow.
            answer = model(leaf.clone())
        if not relus.seen:
            raise ValueError(
                f"{type(model).__name__} calls no ReLU that gradients pass on their way to the images, so there is "
                "nothing to guide; take Grad-CAM or an attribution such as IntegratedGradients."
            )
        scores, _ = class_scores(answer, class_index)
        found = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if scores.requires_grad else None
    if found is None and isinstance(answer, Tensor):
        raise ValueError(f"the answer of {type(model).__name__} does not depend on the images; check its forward.")
    # Of a detector nothing may have been found.
    gradient = torch.zeros_like(images) if found is None else found
    return gradient.float(), apply_to_collection(answer, Tensor, Tensor.detach)

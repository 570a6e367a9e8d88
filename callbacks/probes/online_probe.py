"""Online probe: a linear classifier of a module's features, trained beside it and out of its sight.

Softmax regression on features x `(B, D)` with classes y: P = softmax(x W + b) and, summed over the batch, the gradients
x^T (P - Y) and P - Y. Nothing of these reaches the features.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ..hooks._checks import above_zero, number, whole
from ..hooks.companion import Companion
from ..hooks.probing import Read

__all__ = ["OnlineProbe", "softmax_gradient"]


def softmax_gradient(head: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the cross entropies' gradients of a linear classifier, like `head`, and how many images it is of.

    Args:
        head: Weights, and in the last row biases, `(D + 1, C)`.
        features: `(B, D)`.
        targets: Classes, int64 `(B,)`; images of others than 0 .. C - 1 have no part.
    """
    inputs = F.pad(features, (0, 1), value=1.0)
    known = (targets >= 0) & (targets < head.shape[1])
    error = (inputs @ head).softmax(1) - F.one_hot(targets.where(known, 0), head.shape[1])
    error = error * known[:, None]
    return inputs.T @ error, known.sum()


@final
class OnlineProbe(Companion):
    """Logs how many validation images a linear classifier gets right that is trained on the features meanwhile.

    Before each training batch its images go through `features` once more, in evaluation mode and without gradients, and
    the classifier takes one step of Adam. `probe/online` is its share of right answers on the validation's images, of
    tests `probe/test/online`; the last one is printed when the fit ends. The classifier lies in the callback's state:
    the module, its gradients, its optimizers and its files are those of a run without it, and a resumed run goes on
    with it. It costs a forward pass a micro-batch, of each image once, not of its views.

    Args:
        num_classes: C; None asks the datamodule and then the module for their `num_classes`.
        lr: Learning rate of Adam, above 0.
        weight_decay: Of Adam's gradients, >= 0.
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last, >=
            0; `validate` and `test` always. Neutral: 0, which learns and measures nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the number is called instead of `online`.

    Shape:
        Features `(B, D)` of the module's `features(images)`; labels int `(B,)`, those outside 0 .. C - 1 have no part.

    Raises:
        ValueError: from the constructor, for a number out of range; at set-up, if the module has no `features` or
            `training_step` fetches its batches itself; before the first step, if nobody tells C; in the first batch,
            sanity check included, if it has no labels.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import OnlineProbe
        >>> trainer = Trainer(callbacks=[OnlineProbe(num_classes=10)], accelerator="cpu", logger=False)

    Reference: Chen et al. 2020, arXiv:2002.05709

    BibTeX:
        @inproceedings{chen2020simclr,
          title = {A Simple Framework for Contrastive Learning of Visual Representations},
          author = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
          booktitle = {International Conference on Machine Learning},
          year = {2020},
          eprint = {2002.05709},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There, and in lightly and solo-learn, the classifier sees the features of every training view, with the module's
        own optimizer; here those of the batch's images in evaluation mode, as validation sees them, with an Adam of its
        own. Under averaged weights it learns from those that train and is measured on the average.

    See also:
        `softmax_gradient`, its mathematics; `KNNProbe`, which trains nothing.
    """

    title: ClassVar[str] = "online"
    protocol = "online_linear"

    def __init__(
        self,
        num_classes: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name)
        if num_classes is not None:
            whole("OnlineProbe", "num_classes", num_classes, 2)
        above_zero("OnlineProbe", "lr", lr)
        number("OnlineProbe", "weight_decay", weight_decay, 0)
        self.num_classes, self.lr, self.weight_decay = num_classes, lr, weight_decay
        self._classes = num_classes
        self._head: nn.Parameter | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "optimizer": "adam",
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "num_classes": self._classes,
            "trained_on": "each training batch as its step gets it",
        }

    def ready(self, trainer: Trainer, pl_module: LightningModule, bank_size: int | None) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        told = [self.num_classes, *(getattr(it, "num_classes", None) for it in (data, pl_module))]
        found = [it for it in told if isinstance(it, int) and it > 1]
        if not found:
            raise ValueError(
                "OnlineProbe: how many classes there are is not known, for neither datamodule nor module has "
                "`num_classes`; give num_classes=."
            )
        self._classes = found[0]

    @property
    def begun(self) -> bool:
        return self._head is not None

    def begin(self, features: Tensor) -> None:
        assert self._classes is not None
        # Zeros: its loss is convex, so no draw is needed.
        self._head = nn.Parameter(features.new_zeros(features.shape[1] + 1, self._classes))
        self._optimizer = torch.optim.Adam([self._head], lr=self.lr, weight_decay=self.weight_decay)

    def gradient(self, features: Tensor, targets: Tensor) -> Tensor:
        assert self._head is not None
        gradient, count = softmax_gradient(self._head.detach(), features, targets)
        return torch.cat([gradient.flatten(), count.to(gradient)[None]])

    def step(self, gradient: Tensor) -> None:
        assert self._head is not None and self._optimizer is not None
        self._head.grad = (gradient[:-1] / gradient[-1].clamp_min(1)).view_as(self._head)
        self._optimizer.step()
        self._head.grad = None

    def forget(self) -> None:
        self._head = self._optimizer = None

    def kept(self) -> dict[str, Any]:
        assert self._head is not None and self._optimizer is not None
        state = self._optimizer.state[self._head]
        return {"head": self._head.detach().cpu(), "adam": {key: value.cpu() for key, value in state.items()}}

    def take_back(self, kept: Mapping[str, Any]) -> None:
        assert self._head is not None and self._optimizer is not None
        if kept["head"].shape != self._head.shape:
            size, classes = kept["head"].shape
            raise ValueError(
                f"OnlineProbe: the checkpoint's classifier is of {size - 1} features and {classes} classes, and here "
                f"are {len(self._head) - 1} and {self._head.shape[1]}; go on with the network and classes of that run."
            )
        with torch.no_grad():
            self._head.copy_(kept["head"])
        state = {key: value.to(self._head.device) if key != "step" else value for key, value in kept["adam"].items()}
        self._optimizer.state[self._head] = {key: value.clone() for key, value in state.items()}

    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        if self._restored:
            self._classes = self._restored["head"].shape[1]
            self.prepare(images.features)
        if self._head is None or images.targets is None:
            if not self.rehearsing:
                rank_zero_warn("OnlineProbe: its classifier was never trained, so nothing was measured; fit with it.")
            return {}
        asked = images.targets >= 0
        answers = F.pad(images.features[asked], (0, 1), value=1.0) @ self._head.detach()
        right = answers.argmax(1) == images.targets[asked]
        return {"": float(right.double().mean())} if len(right) else {}

"""Any attribution of captum by name: what each image value adds to the score of a class."""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.layers import find_layer
from lightning_vision.inspection.maps import as_maps, layout_of
from lightning_vision.inspection.scores import class_scores

from ..hooks._checks import whole
from ..hooks._replay import read_streams, rewind
from ..hooks._unnoticed import hooks_of
from ._cam import check_layer, layer_or_last, upsampled
from ._captum import Recipe, read_recipe
from ._map_logger import MapLogger
from .guided_backprop import leaf_of
from .sheet import signed_picture

__all__ = ["AttributionLogger", "attribute"]


class Copying(nn.Module):
    """Hands a model copies, for its first layer may write in place, which an image that needs a gradient forbids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images.clone())


def attribute(
    model: nn.Module,
    images: Tensor,
    attribution: str = "IntegratedGradients",
    class_index: int | Tensor | None = None,
    init_args: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    layer: str | None = None,
    seed: int = 0,
) -> Tensor:
    """An attribution of captum for a batch, `(B, C, H, W)`, signed; of a layer `(B, 1, H, W)`, stretched to the images.

    The model is run in eval mode and left as it was: gradients, train flags, hooks and attributes included, and so are
    the global random streams. A layer's attribution is summed over its channels and upsampled bilinearly.

    Args:
        model: Any module that answers logits `(B, K)` to images; its parameters may be frozen.
        images: `(B, C, H, W)`, floating, normalised as the model takes them.
        attribution: Name in `captum.attr`, or the dotted path of a class like those.
        class_index: Class explained, one for all or int64 `(B,)`; None is each image's predicted one.
        init_args: Of the attribution's constructor, without model and layer. `NoiseTunnel` takes the name of what it
            wraps as `attribution_method`, or `class_path` with `init_args`.
        arguments: Of its `attribute`, without images and class. Lists become tuples; `baselines` that have to be given
            are zeros unless they are, and may be a number; `feature_mask` may be the side of squares, in pixels.
        layer: Dotted name, for attributions of a layer; None takes the last one that has maps.
        seed: Of what the attribution draws, >= 0.

    Raises:
        ModuleNotFoundError: captum is not installed.
        ValueError: there is no such attribution of images, layer or argument; a class is outside 0..K-1; the answer is
            no `(B, K)`; captum refuses the model; the result holds no value for each pixel.

    Example:
        >>> import timm, torch
        >>> from lightning_vision.callbacks import attribute
        >>> attribute(timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 64, 64), "Saliency").shape
        torch.Size([2, 3, 64, 64])
    """
    recipe = read_recipe("attribute", attribution, init_args, arguments)
    _refuse_layer("attribute", recipe, layer)
    return _explained(model, images, recipe, class_index, layer, seed)[0]


@final
class AttributionLogger(MapLogger):
    """Logs any attribution of captum on fixed samples after each validation: red speaks for a class, blue against it.

    It draws when a validation or test is over; what an attribution costs is the attribution's matter (50 forwards and
    backwards for `IntegratedGradients`, a forward for every place of the window for `Occlusion`). Gradients, modes,
    random streams, hooks and what waits to be accumulated are left as they were. Needs captum:
    `pip install "lightning_vision[explain]"`.

    Args:
        attribution: Name in `captum.attr`, or the dotted path of a class like those.
        init_args: Of the attribution's constructor, without model and layer. `NoiseTunnel` takes the name of what it
            wraps as `attribution_method`, or `class_path` with `init_args`.
        arguments: Of its `attribute`, without images and class. Lists become tuples; `baselines` that have to be given
            are zeros unless they are, and may be a number; `feature_mask` may be the side of squares, in pixels.
        layer: Dotted name inside the module, for attributions of a layer; None takes the last one that has maps.
        seed: Of what the attribution draws, the same in every picture, >= 0.
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
        ModuleNotFoundError: captum is not installed.
        ValueError: there is no such attribution of images, or it does not take an argument, or lacks one; before the
            first step, if there is no such layer; in the sanity check, a `validate` or a `test`, if captum refuses the
            module. In a later validation of a fit that is told once, and the training goes on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import AttributionLogger
        >>> occlusion = AttributionLogger(attribution="Occlusion", arguments={"sliding_window_shapes": [3, 8, 8]})
        >>> trainer = Trainer(callbacks=[occlusion], accelerator="cpu", logger=False)

    Reference: Kokhlikyan et al. 2020, arXiv:2009.07896

    BibTeX:
        @article{kokhlikyan2020captum,
          title = {Captum: A unified and generic model interpretability library for PyTorch},
          author = {Kokhlikyan, Narine and Miglani, Vivek and Martin, Miguel and Wang, Edward and Alsallakh, Bilal and
                    Reynolds, Jonathan and Melnikov, Alexander and Kliushkina, Natalia and Araya, Carlos and
                    Yan, Siqi and Reblitz-Richardson, Orion},
          journal = {arXiv preprint arXiv:2009.07896},
          year = {2020},
        }

    Differs from the paper:
        Nothing: captum computes. Cite the attribution's own paper beside it.

    See also:
        `attribute`, the values themselves; `GradCAMLogger` and its family, which need no captum.
    """

    title: ClassVar[str] = "attribution"

    def __init__(
        self,
        attribution: str = "IntegratedGradients",
        init_args: dict[str, Any] | None = None,
        arguments: dict[str, Any] | None = None,
        layer: str | None = None,
        seed: int = 0,
        target: Literal["predicted", "label"] | int = "predicted",
        samples: int = 8,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(target, samples, every_n_epochs, image_key, target_key, name)
        kind = type(self).__name__
        whole(kind, "seed", seed, 0)
        self._recipe = read_recipe(kind, attribution, init_args, arguments)
        _refuse_layer(kind, self._recipe, layer)
        self.attribution, self.init_args, self.arguments = attribution, init_args, arguments
        self.layer, self.seed = layer, seed

    def check(self, pl_module: LightningModule) -> None:
        check_layer(type(self).__name__, pl_module, self.layer)

    def explain(
        self, pl_module: LightningModule, images: Tensor, class_index: int | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return _explained(pl_module, images, self._recipe, class_index, self.layer, self.seed)

    def paint(self, image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
        return signed_picture(values.sum(0))


def _refuse_layer(owner: str, recipe: Recipe, layer: str | None) -> None:
    if layer is not None and not recipe.at_layer:
        raise ValueError(
            f"{owner}: {recipe.core.__name__} explains by the image and takes no layer; leave layer out, or take one "
            "of a layer, as LayerGradCam."
        )


def _explained(
    model: nn.Module,
    images: Tensor,
    recipe: Recipe,
    class_index: int | Tensor | None,
    layer: str | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The attribution and the logits `(B, K)`."""
    name = layer_or_last(model, images, layer) if recipe.at_layer else None
    part = None if name is None else find_layer(model, name)
    with at_rest(model), _as_it_was(model), _draws_of(seed, images.device), warnings.catch_warnings():
        # They tell of hooks that are taken away again, and of gradients that are asked of images.
        warnings.filterwarnings("ignore", module=r"captum(\.|$)")
        leaf = leaf_of(images)
        with torch.no_grad():
            logits = model(leaf.clone())
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"{type(model).__name__} answers a {type(logits).__name__} and no logits (B, K), of which captum takes "
                "a class; explain it with Grad-CAM or guided backpropagation."
            )
        chosen = class_scores(logits, class_index)[1].clone()
        method = recipe.bound(Copying(model), part)
        try:
            values = method.attribute(leaf, **recipe.given(leaf.detach(), chosen))
        except (AssertionError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{recipe.kind.__name__} of captum refuses {type(model).__name__}: {str(error).strip()}"
            ) from error
    got = tuple(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
    if isinstance(values, Tensor) and recipe.of_layer and name is not None and part is not None:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return upsampled(as_maps(values.detach(), size, layout_of(model, part), name).sum(1), images)[:, None], logits
    if got != tuple(images.shape):
        raise ValueError(
            f"{recipe.kind.__name__} gave {got} and no value for each of the images' {tuple(images.shape)}; leave out "
            "the argument that changes that."
        )
    return values.detach().float(), logits


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """At the end, also by an exception, the parts of `model` have the hooks and attributes of before."""
    before = [(part, dict(vars(part)), [(kind, dict(kind)) for kind in hooks_of(part)]) for part in model.modules()]
    try:
        yield
    finally:
        for part, attributes, hooks in before:
            for name in vars(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)
            for kind, entries in hooks:
                kind.clear()
                kind.update(entries)


@contextmanager
def _draws_of(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global random streams begin at a seed, for captum draws from no other; at the end they are back."""
    streams = read_streams(device)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        rewind(streams)

"""Learners that hide parts of an image and predict them.

Letters: B images, C channels, H and W pixels, N patches of the network, U units of the mask.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.layers.format import Format
from torch import Tensor, nn

from .gather import quotient_of_all
from .learner import SelfSupervisedLearner, freeze_pooling
from .views import View, views_for

__all__ = ["MaskedLearner", "hidden_count", "masked_mean", "random_mask"]


def hidden_count(units: int, ratio: float) -> int:
    """How many of `units` are hidden: the smallest number that is at least `ratio` of them.

    >>> hidden_count(36, 0.6), hidden_count(100, 0.07)
    (22, 7)
    """
    # 0.07 of 100 is a little above 7 to a computer.
    return math.ceil(round(ratio * units, 6))


def random_mask(uniform: Tensor, hidden: int) -> Tensor:
    """Hide those whose numbers are smallest, in each row by itself.

    Args:
        uniform: Draws `(B, U)`.
        hidden: How many of each row, 0 to U.

    Returns:
        bool `(B, U)`, True where hidden: exactly `hidden` in each row.
    """
    smallest = uniform.argsort(dim=1, stable=True)[:, :hidden]
    return torch.zeros_like(uniform, dtype=torch.bool).scatter_(1, smallest, True)


def masked_mean(error: Tensor, hidden: Tensor) -> Tensor:
    """The mean of all processes' `error` where `hidden`, which broadcasts to it; the rest has no part in it."""
    count = hidden.sum() * (error.numel() // hidden.numel())
    return quotient_of_all(error.where(hidden, 0).sum(), count)


class MaskedLearner(SelfSupervisedLearner):
    """Base of learners that hide patches: a method predicts an image from the rest of it and says how far it is off.

    What is hidden is a function of an image's own draws. Features are those of whole images: nothing is hidden.

    Args:
        mask_ratio: Share of the units that is hidden, above 0 and below 1; parts of a unit are rounded up.
        mask_patch_size: Side of a unit, pixels: a multiple of the network's patches that divides the image; None is a
            patch.
        backbone: Name of a network of timm's that begins with patches, or such a module.
        image_size: Height and width of the images, pixels, or one number for both; the command takes it from the
            datamodule, elsewhere None is what the network is built for. A network given by name is built for it.
        views: Name of a recipe of one view (`mae`: crop and flip), or its description (`View`); None takes images as
            they are.
        backbone_settings: Further arguments of the backbone's constructor, for example `patch_size: 4` and
            `global_pool: avg`: features are then the mean of the patches and not the class token.
        **common: As `SelfSupervisedLearner`.

    Raises:
        ValueError: as `SelfSupervisedLearner`; the network has no patches; sizes do not divide one another;
            `mask_ratio` hides all or nothing; `views` gives several.
    """

    def __init__(
        self,
        mask_ratio: float,
        mask_patch_size: int | None = None,
        backbone: str | nn.Module = "vit_base_patch16_224",
        image_size: int | tuple[int, int] | None = None,
        views: str | Sequence[View | Mapping[str, Any]] | None = None,
        backbone_settings: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        name, made = type(self).__name__, None if views is None else views_for(views)
        if made is not None and sum(view.count for view in made.views) != 1:
            raise ValueError(f"{name} predicts parts of one view and `views` gives several; give one")
        size = image_size if made is None or made.views[0].size is None else made.views[0].size
        sides = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
        settings = dict(backbone_settings or {})
        if sides is not None and _built_for_a_size(backbone):
            settings = {"img_size": sides} | settings
        super().__init__(backbone=backbone, backbone_settings=settings, **common)
        self.views = made
        self.resizes = made is not None and made.views[0].size is not None
        embed = _patch_embedding(self.backbone, name)
        self.image_size = _seen(embed, sides)
        self.patch: tuple[int, int] = (embed.patch_size[0], embed.patch_size[1])
        unit = self.patch if mask_patch_size is None else (mask_patch_size, mask_patch_size)
        for side, long, short in zip(self.image_size, unit, self.patch, strict=True):
            _check_sides(name, side, long, short)
        self.grid = (self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1])
        self.units = (self.image_size[0] // unit[0], self.image_size[1] // unit[1])
        count = math.prod(self.units)
        if not (0 < mask_ratio < 1 and hidden_count(count, mask_ratio) < count):
            raise ValueError(
                f"{name}: mask_ratio is {mask_ratio} of {count} units; give a share above 0 that leaves one to be seen"
            )
        self.mask_ratio, self.hidden = mask_ratio, hidden_count(count, mask_ratio)
        freeze_pooling(self.backbone)

    @property
    def draws(self) -> int:
        return math.prod(self.units) + (0 if self.views is None else self.views.draws)

    @abstractmethod
    def error(self, image: Tensor, mask: Tensor) -> Tensor:
        """What is minimised: how far the prediction of what `mask`, bool `(B, N)`, hides is off."""

    @abstractmethod
    def predicted(self, image: Tensor, mask: Tensor) -> Tensor:
        """The whole images `(B, C, H, W)` as predicted from the patches that `mask`, bool `(B, N)`, does not hide."""

    def losses(self, image: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        units = math.prod(self.units)
        if self.views is not None:
            (image,) = self.views(image, uniform[:, units:], *self.statistics())
        self._check(image)
        return {"loss": self.error(image, self.mask(uniform[:, :units].to(image.device)))}

    def mask(self, uniform: Tensor) -> Tensor:
        """Which patches are hidden, bool `(B, N)`, row by row of the image, by draws `(B, U)` in [0, 1)."""
        mask = random_mask(uniform, self.hidden).unflatten(1, self.units)
        for axis, (patches, units) in enumerate(zip(self.grid, self.units, strict=True), 1):
            mask = mask.repeat_interleave(patches // units, axis)
        return mask.flatten(1)

    def hidden_pixels(self, mask: Tensor) -> Tensor:
        """The pixels, bool `(B, 1, H, W)`, of hidden patches, bool `(B, N)`."""
        rows = mask.unflatten(1, self.grid).repeat_interleave(self.patch[0], 1)
        return rows.repeat_interleave(self.patch[1], 2)[:, None]

    @torch.no_grad()
    def reconstruct(self, image: Tensor, mask: Tensor) -> Tensor:
        """Images `(B, C, H, W)` in which what `mask`, bool `(B, N)`, hides is as predicted."""
        self._check(image)
        return self.predicted(image, mask).to(image.dtype).where(self.hidden_pixels(mask), image)

    def setup(self, stage: str) -> None:
        """Compare sizes with the datamodule and take over its preprocessing.

        Raises:
            ValueError: as `VisionModule.setup`; the network is built for images of another size.
        """
        super().setup(stage)
        given = self.data_size()
        if stage == "fit" and not self.resizes and given and given != self.image_size:
            ours, theirs = type(self).__name__, type(self.trainer.datamodule).__name__  # type: ignore[attr-defined]
            raise ValueError(f"{ours} sees image_size={self.image_size} and {theirs} has {given}; make them agree")

    def _check(self, image: Tensor) -> None:
        if image.shape[2:] != self.image_size:
            (height, width), (rows, columns) = image.shape[2:], self.image_size
            name = type(self).__name__
            raise ValueError(f"{name} sees {rows} x {columns} pixels and got {height} x {width}; set image_size")


def _built_for_a_size(backbone: Any) -> bool:
    """Whether timm builds the network of this name for images of one size, which its `img_size` says."""
    known = isinstance(backbone, str) and ":" not in backbone
    return bool(known and getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False))


def _patch_embedding(backbone: nn.Module, name: str) -> PatchEmbed:
    """What cuts images into patches.

    Raises:
        ValueError: `backbone` does not begin with patches that do not overlap.
    """
    embed = getattr(backbone, "patch_embed", None)
    ordered = isinstance(embed, PatchEmbed) and (embed.flatten or embed.output_fmt == Format.NHWC)
    if not (isinstance(embed, PatchEmbed) and ordered and hasattr(backbone, "forward_features")):
        raise ValueError(
            f"{name} hides patches, and this {type(backbone).__name__} does not begin with plain patches; give a "
            "vision transformer of timm's, for example backbone: vit_small_patch16_224"
        )
    return embed


def _seen(embed: PatchEmbed, sides: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images that the network sees.

    Raises:
        ValueError: it is built for others than `sides`, or nobody says.
    """
    built = embed.img_size or sides
    if built is None:
        raise ValueError("nothing says how large images are; pass image_size")
    if sides is not None and sides != built:
        raise ValueError(
            f"the backbone is built for {built[0]} x {built[1]} pixels and would see {sides[0]} x {sides[1]}; make "
            "img_size in backbone_settings and image_size agree"
        )
    return built[0], built[1]


def _check_sides(name: str, image: int, unit: int, patch: int) -> None:
    if image % patch:
        raise ValueError(
            f"{name}: patches of {patch} pixels do not divide {image}; choose image_size, or patch_size in "
            "backbone_settings, so that they do"
        )
    if unit < 1 or unit % patch or image % unit:
        raise ValueError(
            f"{name}: mask_patch_size is {unit}; give a multiple of the backbone's patches of {patch} pixels that "
            f"divides the image's {image}"
        )

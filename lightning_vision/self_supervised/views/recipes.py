"""The views of the papers, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from .view import View
from .views import Views

__all__ = ["views_for"]

Size = int | Sequence[int] | None


def simclr(size: Size = None, strength: float = 1.0) -> list[View]:
    """SimCLR's two views.

    Args:
        size: Pixels of a view, the paper's are 224; None is the image's own size.
        strength: Of the colour jitter, the paper's s: 1 on ImageNet, 0.5 on CIFAR-10.

    Reference: Chen et al. 2020, arXiv:2002.05709, appendix A. On CIFAR-10 it leaves out the blur.
    """
    main, hue = 0.8 * strength, 0.2 * strength
    return [View(size, count=2, brightness=main, contrast=main, saturation=main, hue=hue, grey=0.2, blur=0.5)]


def moco_v2(size: Size = None) -> list[View]:
    """MoCo v2's two views.

    Reference: Chen et al. 2020, arXiv:2003.04297, section 3, and its code: jitter of 0.4, 0.4, 0.4 and 0.1.
    """
    return [
        View(size, count=2, crop=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.5)
    ]


def byol(size: Size = None) -> list[View]:
    """BYOL's two views, of which the first is always blurred and the second sometimes solarised.

    Reference: Grill et al. 2020, arXiv:2006.07733, appendix B, Table 6.
    """
    return [_of_byol(size, blur=1.0, solarise=0.0), _of_byol(size, blur=0.1, solarise=0.2)]


def dino(
    global_size: Size = None,
    local_size: Size = 96,
    local_count: int = 8,
    global_crop: tuple[float, float] = (0.4, 1.0),
    local_crop: tuple[float, float] = (0.05, 0.4),
) -> list[View]:
    """DINO's two views of most of the image, and eight of small parts of it.

    Args:
        global_size: Pixels of the first two, the paper's are 224; None is the image's own size.
        local_size: Pixels of the others.
        local_count: How many others.
        global_crop: Area of the first two, fractions of the image's.
        local_crop: Area of the others.

    Reference: Caron et al. 2021, arXiv:2104.14294, section 3.2 and its code. Differs: resized bilinearly, not bicubic.
    """
    return [
        _of_byol(global_size, blur=1.0, solarise=0.0, crop=global_crop),
        _of_byol(global_size, blur=0.1, solarise=0.2, crop=global_crop),
        _of_byol(local_size, blur=0.5, solarise=0.0, crop=local_crop, count=local_count),
    ]


def vicreg(size: Size = None) -> list[View]:
    """VICReg's two views: BYOL's made symmetric, blurred and solarised alike.

    Reference: Bardes et al. 2022, arXiv:2105.04906, appendix C.1.
    """
    return [_of_byol(size, blur=0.5, solarise=0.1, count=2)]


def mae(size: Size = None) -> list[View]:
    """MAE's one view, cropped and flipped.

    Reference: He et al. 2022, arXiv:2111.06377, appendix A.1. Differs: resized bilinearly, not bicubic.
    """
    return [View(size, crop=(0.2, 1.0), jitter=0.0, grey=0.0)]


def digits(size: Size = None) -> list[View]:
    """Two views of a handwritten digit on a small canvas: never mirrored, and mostly still to be read."""
    return [
        View(
            size, count=2, crop=(0.4, 1.0), flip=0.0, brightness=0.4, contrast=0.4, grey=0.0, blur=0.5,
            blur_sigma=(0.1, 1.0),
        )
    ]  # fmt: skip


RECIPES: dict[str, Callable[..., list[View]]] = {
    recipe.__name__: recipe for recipe in (simclr, moco_v2, byol, dino, vicreg, mae, digits)
}


def views_for(views: str | View | Mapping[str, Any] | Sequence[View | Mapping[str, Any]]) -> Views:
    """The views that a config names or lists.

    Args:
        views: The name of a recipe, or Views, or mappings of their arguments, or `{class_path: View, init_args: ...}`.

    Raises:
        ValueError: no such name, or no such arguments.
    """
    if isinstance(views, str):
        if views not in RECIPES:
            raise ValueError(f"views is {views!r}; give one of {', '.join(RECIPES)}, or a list of View.")
        return Views(RECIPES[views]())
    listed = [views] if isinstance(views, View | Mapping) else views
    return Views([view if isinstance(view, View) else _described(view) for view in listed])


def _of_byol(size: Size, blur: float, solarise: float, **others: Any) -> View:
    colours: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grey": 0.2}
    return View(size, blur=blur, solarise=solarise, **colours, **others)


def _described(view: Mapping[str, Any]) -> View:
    given = dict(view)
    kind = str(given.pop("class_path", "View"))
    arguments = given.pop("init_args", {}) | given
    known = [field.name for field in fields(View)]
    if kind.rpartition(".")[2] != "View":
        raise ValueError(f"views lists a {kind}; give Views, whose arguments are {', '.join(known)}.")
    if unknown := [name for name in arguments if name not in known]:
        raise ValueError(f"views: a View has no {', '.join(unknown)}; it has {', '.join(known)}.")
    return View(**arguments)

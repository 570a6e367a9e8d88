"""Random views of a batch beside torchvision's transforms image by image, v2 and Pillow's, and kornia's for a batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import kornia.augmentation as kornia
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.views import View, Views
from lightning_vision.self_supervised.views.recipes import byol, digits, simclr

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT = 128


def rows(quick: bool) -> list[Row]:
    """Make two views of a batch of bytes, normalised floats.

    Args:
        quick: One repetition with 8 images, of 64 pixels where the others are large.
    """
    count, side = (8, 64) if quick else (COUNT, 224)
    large, small = _photographs(count, side), _photographs(count, 32)
    datamodule = PlacedDigits(canvas="plain", batch_size=count)
    canvases = next(iter(datamodule.val_dataloader()))[0]
    pillow = [v2.functional.to_pil_image(image) for image in small]
    plain = [View(count=2, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)]
    steps = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((32, 32), align_corners=False),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        same_on_batch=False,
    )
    runs: dict[str, Callable[[], Any]] = {
        "simclr": partial(_ours, simclr(), large),
        "v2 simclr": partial(_one_by_one, _theirs(simclr()[0], side, v2), large),
        "byol": partial(_ours, byol(), large),
        "v2 byol": partial(_by_view, [_theirs(view, side, v2) for view in byol()], large),
        "crop": partial(_ours, [View(count=2, jitter=0.0, grey=0.0)], large),
        "v2 crop": partial(_one_by_one, _theirs(View(jitter=0.0, grey=0.0), side, v2), large),
        "small": partial(_ours, plain, small),
        "v2 small": partial(_one_by_one, _theirs(plain[0], 32, v2), small),
        "pillow small": partial(_one_by_one, _theirs(plain[0], 32, transforms), pillow),
        "kornia small": lambda: [steps(small / 255) for _ in range(2)],
        "digits": partial(_ours, digits(), canvases),
        "v2 digits": partial(_one_by_one, _theirs(digits()[0], 24, v2), canvases),
    }
    assert [view.shape for view in runs["small"]()] == [view.shape for view in runs["kornia small"]()]
    sides: dict[str, Side] = {name: unprepared(run) for name, run in runs.items()}
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    against = "torchvision v2, image by image"
    cifar = "SimCLR's without blur, 32 x 32"
    return [
        Row.slowdown("`simclr`, 224 x 224", against, cpu["simclr"], cpu["v2 simclr"], "cpu", "<= 0.60"),
        Row.slowdown("`byol`, 224 x 224", against, cpu["byol"], cpu["v2 byol"], "cpu", "<= 0.60"),
        Row.slowdown("crop and flip, 224 x 224", against, cpu["crop"], cpu["v2 crop"], "cpu"),
        Row.speedup(cifar, "torchvision on Pillow", cpu["small"], cpu["pillow small"], "cpu", ">= 10"),
        Row.speedup(cifar, against, cpu["small"], cpu["v2 small"], "cpu"),
        Row.speedup(cifar, "kornia, a batch", cpu["small"], cpu["kornia small"], "cpu", ">= 4"),
        Row.speedup("`digits`, 24 x 24 grey", against, cpu["digits"], cpu["v2 digits"], "cpu"),
    ]


def _photographs(count: int, side: int) -> Tensor:
    """Windows of scikit-learn's photograph of a temple, uint8 `(count, 3, side, side)`."""
    photograph = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    windows = photograph.unfold(1, side, 10).unfold(2, side, 10).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return windows[torch.linspace(0, len(windows) - 1, count).long()].contiguous()


def _ours(kinds: Sequence[View], images: Tensor) -> list[Tensor]:
    """From bytes on, as the datamodule's transfer leaves them normalised."""
    mean, std = (torch.tensor(it[: images.shape[1]]) for it in (MEAN, STD))
    views = Views(kinds)
    image = images.float().div_(255).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    return views(image, torch.rand(len(images), views.draws), mean, std)


def _theirs(view: View, side: int, library: Any) -> Callable[[Any], Tensor]:
    """torchvision's transforms of a view, of `torchvision.transforms` or of its `v2`."""
    steps = [library.RandomResizedCrop(side, scale=view.crop), library.RandomHorizontalFlip(view.flip)]
    if view.brightness:
        jitter = library.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
        steps.append(library.RandomApply([jitter], view.jitter))
    if view.grey:
        steps.append(library.RandomGrayscale(view.grey))
    if view.blur:
        blur = library.GaussianBlur(view.kernel((side, side)), view.blur_sigma)
        steps.append(library.RandomApply([blur], view.blur))
    if view.solarise:
        steps.append(library.RandomSolarize(128, view.solarise))
    channels = 1 if side == 24 else 3
    floats = [v2.ToDtype(torch.float32, scale=True)] if library is v2 else [transforms.ToTensor()]
    return library.Compose([*steps, *floats, library.Normalize(MEAN[:channels], STD[:channels])])


def _one_by_one(transform: Callable[[Any], Tensor], images: Any) -> list[Tensor]:
    return _by_view([transform, transform], images)


def _by_view(steps: Sequence[Callable[[Any], Tensor]], images: Any) -> list[Tensor]:
    return [torch.stack([transform(image) for image in images]) for transform in steps]

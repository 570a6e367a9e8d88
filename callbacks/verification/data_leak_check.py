"""Data leak check: validation and test images that stand among the training images, or nearly do.

With x an image made grey and averaged to 8x8 pixels, and m its mean, two images are near duplicates if

    cos(x - m, x' - m') = (x - m) . (x' - m') / (|x - m| |x' - m'|) >= similarity

which neither brightness nor contrast changes. An image whose x varies by less than 4 of 255 shows nothing to compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks._findings import Action
from ..hooks._metadata import Pixels, as_pixels, normalised_by
from ..hooks._sheet import contact_sheet
from ..hooks._still_images import Still, StillImages
from ..hooks.data_sets import DataSets

__all__ = ["DataLeakCheck", "digest", "nearest", "thumbnails"]

SIDE, CONTRAST, BLOCK = 8, 4 / 255, 512
NUMBERS = 2**22  # of the images that are made small at once
SHOWN = 12  # pairs on the sheet


def digest(image: Tensor) -> bytes:
    """16 bytes that tell an image's pixels, shape and type apart from all others."""
    kept = image.detach().cpu().contiguous()
    head = f"{tuple(kept.shape)} {kept.dtype}".encode()
    return blake2b(head + kept.view(-1).view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def thumbnails(images: Tensor) -> Tensor:
    """Grey images of 8x8 pixels as unit vectors around 0: float32 `(N, 64)`; zeros where there is nothing to see.

    Args:
        images: `(N, C, H, W)`, bytes, or floats in any unit, whose contrast is taken relative to their range.
    """
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if images.dtype != torch.uint8:
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    if pixels.shape[1] == 3:
        # Here, for torchvision takes a while to import.
        from torchvision.transforms.functional import rgb_to_grayscale

        grey = rgb_to_grayscale(pixels)
    else:
        grey = pixels[:, :1]
    small = F.adaptive_avg_pool2d(grey, SIDE).flatten(1)
    centred = small - small.mean(1, keepdim=True)
    seen = centred.square().mean(1, keepdim=True).sqrt() >= CONTRAST
    return F.normalize(centred, dim=1) * seen


def nearest(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the most similar row of the bank: cosines and positions, `(N,)` each, block by block.

    Args:
        queries: Unit vectors `(N, D)`.
        bank: Unit vectors `(M, D)`, on the same device.
    """
    found = [(block @ bank.T).max(1) for block in queries.split(BLOCK)]
    return torch.cat([it.values for it in found]), torch.cat([it.indices for it in found])


@dataclass
class _Known:
    """What is kept of the images of sets."""

    name: str
    places: list[tuple[StillImages, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    thumbnails: Tensor = field(default_factory=lambda: torch.zeros(0, SIDE * SIDE))

    def called(self, place: int) -> str:
        source, position = self.places[place]
        return source.called(position)


@final
class DataLeakCheck(DataSets):
    """Says that validation or test images stand among the training images, to the byte or nearly.

    When training starts, images of all loaders are read as they lie there, without augmentation, those of tests if
    `test_dataloader` can be called by then, else it is told. Two are the same if their pixels are,
    and near duplicates if small grey copies of them are similar, so that a picture that was saved anew, made smaller or
    brighter is found. Also told, never an error: training images that stand there twice with different labels, and a
    dataset that augments by itself, in which copies may be missed. The first pairs stand on a sheet in the run's
    folder, `media/train/data_leak/`.

    Args:
        exact: Share of the validation images, and of the test images, that may stand among the training images to the
            byte, 0 to 1.
        near: Share that may have a near duplicate there beside those, 0 to 1; 1 looks for none.
        similarity: From which cosine on two images are near duplicates, 0 to 1.
        max_samples: Images read of each set at most, evenly spread; None takes all.
        action: `error` ends the fit before its first step, `warn` says it. Neutral: `off`.
        image_key: Key of the images, if samples are mappings; in others they come first.
        target_key: Key of the labels, if samples are mappings; in others they come second.
        name: Part of the state key, and what the sheet is called instead of `data_leak`.

    Shape:
        Images `(C, H, W)` of any size, bytes or floats, arrays `(H, W, C)` or pictures of PIL.

    Raises:
        ValueError: from the constructor, for a setting out of range; when training starts, for samples without images.
        RuntimeError: when training starts, with `action="error"`, for more duplicates than may be.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DataLeakCheck
        >>> trainer = Trainer(callbacks=[DataLeakCheck(action="error")], accelerator="cpu", logger=False)

    See also:
        `MistakesLogger`, which shows validation images that are taken for another class.
    """

    title = "data_leak"

    def __init__(
        self,
        exact: float = 0.0,
        near: float = 0.01,
        similarity: float = 0.99,
        max_samples: int | None = 50_000,
        action: Action = "warn",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(action=action, image_key=image_key, target_key=target_key, name=name)
        for argument, value in (("exact", exact), ("near", near), ("similarity", similarity)):
            number("DataLeakCheck", argument, value, 0, 1)
        if max_samples is not None:
            whole("DataLeakCheck", "max_samples", max_samples, 1)
        self.exact, self.near, self.similarity, self.max_samples = exact, near, similarity, max_samples

    def look(
        self, trainer: Trainer, sets: Mapping[str, Sequence[StillImages]]
    ) -> tuple[list[str], list[str], NDArray[np.uint8] | None]:
        others = [*sets["val"], *sets["test"]]
        if not sets["train"] or not others:
            return [], ["there are no training and validation images to compare, so nothing was; leave it out"], None
        device = trainer.strategy.root_device
        bank, told, wrong, pairs = self._known("train", sets["train"]), [], [], list[tuple[Still, Still, str]]()
        if not all(it.repeats() for it in (*sets["train"], *others)):
            told.append(
                "a dataset gives another image each time it is asked, so copies may be missed; let it augment in the "
                "loader, on the device or by `transform` of a torchvision dataset, which is taken off here"
            )
        first = {it: place for place, it in reversed(list(enumerate(bank.digests)))}
        if sentence := _contradictions(bank):
            told.append(sentence)
        for source in others:
            known = self._known(source.name, [source])
            copies = {place: first[it] for place, it in enumerate(known.digests) if it in first}
            cosines, twins = nearest(known.thumbnails.to(device), bank.thumbnails.to(device))
            alike = (cosines >= self.similarity).nonzero()[:, 0].tolist() if self.near < 1 and self.similarity else []
            near = {place: int(twins[place]) for place in alike if place not in copies}
            for kind, found, most in (("to the byte", copies, self.exact), ("nearly", near, self.near)):
                if len(found) > most * len(known.digests):
                    wrong.append(_sentence(known, bank, kind, found, most))
                    pairs += _pairs(known, bank, kind, found)
        return wrong, told, _sheet(pairs[:SHOWN], normalised_by(trainer)) if pairs else None

    def _known(self, name: str, sources: Sequence[StillImages]) -> _Known:
        known, parts, waiting = _Known(name), list[Tensor](), list[Tensor]()

        def shrink() -> None:
            if waiting:
                parts.append(thumbnails(torch.stack(waiting)))
                waiting.clear()

        for source, it in ((one, it) for one in sources for it in one.read(self.max_samples)):
            if waiting:
                first, count = waiting[0], len(waiting)
                unlike = (first.shape, first.dtype) != (it.image.shape, it.image.dtype)
                if unlike or count == BLOCK or (count + 1) * first.numel() > NUMBERS:
                    shrink()
            waiting.append(it.image)
            known.places.append((source, it.position))
            known.digests.append(digest(it.image))
            known.labels.append(it.label)
        shrink()
        known.thumbnails = torch.cat([known.thumbnails, *parts])
        return known


def _sentence(known: _Known, bank: _Known, kind: str, found: Mapping[int, int], most: float) -> str:
    count, name = len(known.digests), known.name
    shown = ", ".join(f"{known.called(own)} = {bank.called(other)}" for own, other in list(found.items())[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    argument = "exact" if kind == "to the byte" else "near"
    return (
        f"{len(found):,} of {count:,} {name} images stand {kind} among the {len(bank.digests):,} training images that "
        f"were read ({len(found) / count:.1%}, {most:.1%} may): {shown}{more}; split the data by what belongs "
        f"together, or allow it with {argument}="
    )


def _contradictions(bank: _Known) -> str:
    """Training images that stand in their set again with another label, in words."""
    first: dict[tuple[StillImages, bytes], int] = {}
    own = [
        (first.setdefault((source, it), place), place)
        for place, ((source, _), it) in enumerate(zip(bank.places, bank.digests, strict=True))
    ]
    differ = [
        (a, b) for a, b in own if None not in (bank.labels[a], bank.labels[b]) and bank.labels[a] != bank.labels[b]
    ]
    if not differ:
        return ""
    shown = ", ".join(
        f"{bank.called(a)} as {bank.labels[a]} and {bank.called(b)} as {bank.labels[b]}" for a, b in differ[:3]
    )
    return f"{len(differ):,} training images stand there twice with different labels: {shown}"


def _pairs(known: _Known, bank: _Known, kind: str, found: Mapping[int, int]) -> list[tuple[Still, Still, str]]:
    """The first pairs; a loader cannot be asked again."""
    pairs = []
    for a, b in list(found.items())[:SHOWN]:
        (left, own), (right, other) = known.places[a], bank.places[b]
        if not (left.looped or right.looped):
            words = f"{known.called(a)}\n{bank.called(b)}\n{kind}"
            pairs.append((left.at([own])[0], right.at([other])[0], words))
    return pairs


def _sheet(pairs: Sequence[tuple[Still, Still, str]], pixels: Pixels | None) -> NDArray[np.uint8]:
    def drawn(image: Tensor) -> Any:
        # How a datamodule normalises holds for what it hands out, not for what its sets hold.
        return as_pixels(image[None], None if image.dtype == torch.uint8 else pixels)[0].expand(3, -1, -1)

    cells = [
        ([drawn(it.image).permute(1, 2, 0).contiguous().numpy() for it in (left, right)], words)
        for left, right, words in pairs
    ]
    return contact_sheet(cells)

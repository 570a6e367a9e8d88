"""The images and the labels of a batch, whatever container a loader yields them in."""

from collections.abc import Mapping
from copy import copy
from typing import Any

__all__ = ["Fields"]


class Fields:
    """Reads and replaces two entries of a batch.

    A list, a tuple or a namedtuple holds the images at position 0 and the labels at position 1, a mapping under its
    two keys.

    Args:
        owner: Who asks; the subject of the errors.
        image_key: Key of the images in a mapping.
        target_key: Key of the labels in a mapping.
    """

    def __init__(self, owner: str, image_key: str, target_key: str) -> None:
        self.owner, self.image_key, self.target_key = owner, image_key, target_key

    def image(self, batch: Any) -> Any:
        """The images; a ValueError says what the batch holds instead."""
        return batch[self._place(batch, 0)]

    def target(self, batch: Any) -> Any:
        """The labels; a ValueError says what the batch holds instead."""
        return batch[self._place(batch, 1)]

    def replaced(self, batch: Any, image: Any, target: Any) -> Any:
        """A container of the same type with these images and labels; the batch itself is left alone."""
        return self._rebuilt(batch, {self.image_key: image, self.target_key: target}, [image, target])

    def with_image(self, batch: Any, image: Any) -> Any:
        """A container of the same type with these images; the batch itself is left alone."""
        return self._rebuilt(batch, {self.image_key: image}, [image])

    def others(self, batch: Any) -> dict[str, Any]:
        """What else the batch holds, by words for it: a key in quotes, or a position."""
        if isinstance(batch, Mapping):
            return {repr(key): it for key, it in batch.items() if key not in (self.image_key, self.target_key)}
        return {f"entry {position}": it for position, it in enumerate(batch) if position > 1}

    def _rebuilt(self, batch: Any, named: dict[str, Any], first: list[Any]) -> Any:
        if isinstance(batch, Mapping):
            changed: Any = copy(batch)
            for key, value in named.items():
                changed[key] = value
            return changed
        values = [*first, *batch[len(first) :]]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)

    def _place(self, batch: Any, position: int) -> int | str:
        what, argument = (("images", "image_key"), ("labels", "target_key"))[position]
        if isinstance(batch, Mapping):
            key: str = getattr(self, argument)
            if key not in batch:
                found = ", ".join(map(repr, batch)) or "none"
                raise ValueError(
                    f"{self.owner}: the batch has no {what} under {key!r}, its keys are {found}; say with {argument}= "
                    "which one holds them."
                )
            return key
        if not isinstance(batch, (list, tuple)):
            raise ValueError(
                f"{self.owner}: the batch is a {type(batch).__name__}, in which no labels can be found; let the loader "
                "yield (images, labels), or a mapping whose keys are named by image_key= and target_key=."
            )
        if len(batch) <= position:
            raise ValueError(
                f"{self.owner}: the batch is a {type(batch).__name__} of {len(batch)} without {what}; let the loader "
                "yield (images, labels), or a mapping whose keys are named by image_key= and target_key=."
            )
        return position

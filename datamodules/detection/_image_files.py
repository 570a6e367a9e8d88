"""Finding the images that annotations name, without leaving the folder that holds them."""

import os
from pathlib import Path, PurePosixPath

from PIL import Image

from lightning_vision.images import EXTENSIONS

__all__ = ["ImageFiles", "upright_size"]

ORIENTATION = 0x0112
"""EXIF's tag; from 5 to 8 the image is shown after a quarter turn."""


class ImageFiles:
    """The files of a folder; each of its folders is listed once, so that no file is asked for by itself.

    Args:
        folder: Holds the images; may itself be a link, links below it must not lead out of it or of `root`.
        root: The folder of the whole data set.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder of images {folder}")
        self.folder = folder
        self._roots = [os.path.realpath(place) for place in (folder, root)]
        self._listed: dict[str, dict[str, bool]] = {}
        self._stems: dict[str, str] | None = None

    def path(self, name: str) -> str:
        """The file called `name`, a path below the folder.

        Raises:
            ValueError: there is none, or it lies elsewhere; the message is the second half of a sentence.
        """
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or os.path.isabs(name) or "\0" in name:
            raise ValueError(f"names the file {name!r}, which is no path below {self.folder}")
        parent = os.path.join(*parts[:-1]) if len(parts) > 1 else ""
        entries = self._entries(parent)
        if parts[-1] not in entries:
            raise ValueError(f"names the file {name!r}, which is not in {self.folder}")
        path = os.path.join(self.folder, parent, parts[-1])
        if entries[parts[-1]] and not self._within(path):
            raise ValueError(f"names the file {name!r}, a link that leads out of {self.folder}")
        return path

    def of_stem(self, stem: str) -> str | None:
        """The name of the image called `stem` and any ending, directly in the folder."""
        if self._stems is None:
            names = sorted(name for name in self._entries("") if name.lower().endswith(EXTENSIONS))
            self._stems = {os.path.splitext(name)[0]: name for name in names}
        return self._stems.get(stem)

    def _entries(self, parent: str) -> dict[str, bool]:
        """The files in a folder below, and whether they are links or, by that folder, lie outside."""
        if parent not in self._listed:
            place = os.path.join(self.folder, parent)
            inside = self._within(place)
            try:
                with os.scandir(place) as found:
                    self._listed[parent] = {
                        entry.name: not inside or entry.is_symlink()
                        for entry in found
                        # A link is asked apart: one that leads nowhere must not cost the listing.
                        if (os.path.isfile(entry) if entry.is_symlink() else entry.is_file())
                    }
            except OSError:
                self._listed[parent] = {}
        return self._listed[parent]

    def _within(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(os.path.commonpath([real, root]) == root for root in self._roots)


def upright_size(path: str) -> tuple[int, int]:
    """Height and width of an image as it is shown, pixels; only a PNG is decoded for it, whose EXIF may come last.

    Raises:
        OSError: it is no image.
    """
    with Image.open(path) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(ORIENTATION) in (5, 6, 7, 8) else (height, width)

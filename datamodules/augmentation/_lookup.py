"""One image on the CPU on which equalizing and stretching are done by table.

The table, 256 values a channel, is kept and not applied until an operation looks at the pixels; operations on single
values that come before that change the table alone.
"""

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Bytes", "Lookup"]

Bytes = npt.NDArray[np.uint8]
VALUES = np.arange(256, dtype=np.uint8)


class Lookup:
    """An image and the table through which its values are yet to go.

    Args:
        image: `(C, H, W)`, contiguous; left alone.
    """

    def __init__(self, image: Bytes) -> None:
        self.image = image
        self.table: Bytes | None = None
        self._found: npt.NDArray[np.int64] | None = None

    def pixels(self) -> Bytes:
        """The image after its table, which is applied now if there is one."""
        if self.table is not None:
            # Three times as fast as the values as an array's indices, which are first widened to 64 bits.
            channels = [
                np.frombuffer(own.tobytes().translate(values.tobytes()), np.uint8)
                for own, values in zip(self.image, self.table, strict=True)
            ]
            self.replace(np.stack(channels).reshape(self.image.shape))
        return self.image

    def replace(self, image: Bytes) -> None:
        """Another image takes the place of this one and its table."""
        self.image, self.table, self._found = image, None, None

    def equalize(self) -> None:
        """Spread the values of each channel so that all are about equally frequent; see `operations.equalize`."""
        counts = self._counts()
        most = 255 - (counts[:, ::-1] > 0).argmax(1)[:, None]
        step = (counts.sum(1, keepdims=True) - np.take_along_axis(counts, most, 1)) // 255
        table = np.zeros(counts.shape, np.uint8)
        table[:, 1:] = np.minimum((counts.cumsum(1)[:, :-1] + step // 2) // np.maximum(step, 1), 255)
        self._through(np.where(step > 0, table, VALUES))

    def stretch(self) -> None:
        """Stretch the values of each channel over 0 to 255; see `operations.auto_contrast`."""
        if self.table is None and self._found is None:
            least, most = (extreme(self.image, axis=(1, 2))[:, None] for extreme in (np.min, np.max))
        else:
            found = self._counts() > 0
            least, most = found.argmax(1)[:, None], 255 - found[:, ::-1].argmax(1)[:, None]
        least, most = least.astype(np.float32), most.astype(np.float32)
        scale = np.where(least == most, np.float32(1), (most - least) * np.float32(1 / 255))
        table = np.clip((VALUES.astype(np.float32) - least) / scale, 0, 255).astype(np.uint8)
        self._through(np.where(least == most, VALUES, table))

    def _through(self, table: Bytes) -> None:
        self.table = table if self.table is None else np.take_along_axis(table, self.table.astype(np.intp), 1)

    def _counts(self) -> npt.NDArray[np.int64]:
        """How often each value stands in each channel after the table: `(C, 256)`."""
        if self._found is None:
            channels = torch.from_numpy(self.image).flatten(1)
            self._found = np.stack([torch.bincount(channel, minlength=256).numpy() for channel in channels])
        if self.table is None:
            return self._found
        pairs = zip(self.table, self._found, strict=True)
        counts = [np.bincount(values, weights=before, minlength=256) for values, before in pairs]
        return np.stack(counts).astype(np.int64)

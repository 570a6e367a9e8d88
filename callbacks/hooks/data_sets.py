"""The data seam: the images of a fit are looked at once, when training starts, in the first process.

Public hook used: `on_train_start`, when loaders are there.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy import uint8
from numpy.typing import NDArray

from ._attributes_kept import data_kept
from ._fields import Fields
from ._findings import Action, known_action
from ._media import keep_picture
from ._replay import read_streams, rewind
from ._still_images import StillImages, still_sets, test_loaders
from .method import Method, Place

__all__ = ["DataSets"]


class DataSets(Method):
    """Looks at the images that train and those that validate and test, as they lie there, and leaves no trace.

    The first process reads them, while others wait; streams and counters that a dataset keeps in attributes are put
    back, a file or a Python generator stays where it was read to. Of a datamodule of this project, and of torchvision's
    datasets, no augmentation is seen; see `_still_images.py`. Test images are read if their loader can be made before a
    test, else that is told.

    Args:
        action: `error` raises what was found, `warn` says it, `off` does not look.
        image_key: Key of the images, if samples are mappings; in others they come first.
        target_key: Key of the labels, if samples are mappings; in others they come second.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for another action; when training starts, for samples without images.
        RuntimeError: when training starts, for what is found, with `action="error"`.
    """

    place = Place.OBSERVE
    neutral = ({"action": "off"},)
    # What its picture is called in files and loggers, unless the callback has a name.
    title = "data"

    def __init__(self, *, action: Action, image_key: str, target_key: str, **others: Any) -> None:
        super().__init__(**others)
        known_action(type(self).__name__, action)
        self.action: Action = action
        self.image_key, self.target_key = image_key, target_key

    @abstractmethod
    def look(
        self, trainer: Trainer, sets: Mapping[str, Sequence[StillImages]]
    ) -> tuple[list[str], list[str], NDArray[uint8] | None]:
        """What is wrong, what is told only, each a sentence without a full stop, and maybe a picture `(H, W, 3)`.

        Args:
            trainer: It is about to fit.
            sets: Under `train`, `val` and `test`, maybe none.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        wrong: list[str] = []
        if trainer.is_global_zero:
            streams = read_streams(trainer.strategy.root_device)
            try:
                fields = Fields(type(self).__name__, self.image_key, self.target_key)
                tests, unread = test_loaders(trainer, pl_module)
                loaders = [it for it in (trainer.train_dataloader, trainer.val_dataloaders, tests) if it is not None]
                with data_kept(loaders, here=True):
                    wrong, told, picture = self.look(trainer, still_sets(trainer, fields, tests))
                told += [unread] if unread else []
            finally:
                rewind(streams)
            if picture is not None:
                keep_picture(trainer, "train", self.name or self.title, picture)
            for it in told + (wrong if self.action == "warn" else []):
                rank_zero_warn(f"{type(self).__name__}: {it}.")
        wrong = trainer.strategy.broadcast(wrong)
        if wrong and self.action == "error":
            raise RuntimeError(f"{type(self).__name__}: {'; '.join(wrong)}.")

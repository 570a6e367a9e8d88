"""What `explain` explains: a checkpoint's network, and image files as it takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_vision.base.module import shortened
from lightning_vision.base.weights import mismatch
from lightning_vision.catalogue import nearest
from lightning_vision.commands._files import saved_preprocessing
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.datamodules.image_folder import ImageFolder
from lightning_vision.images import BadImageError
from lightning_vision.inspection.layers import find_layer
from lightning_vision.inspection.scores import class_scores
from lightning_vision.self_supervised.learner import SelfSupervisedLearner

__all__ = ["Files", "ImageBatch", "Subject"]


class Subject:
    """A checkpoint's network, in evaluation mode on its device, and the names of its classes.

    Args:
        cli: With a model.
        ckpt_path: Checkpoint whose weights the model takes, if it was not built from it.

    Raises:
        ValueError: the checkpoint does not fit the model or does not say how its images were prepared, or the model
            answers no logits `(B, K)`.
    """

    def __init__(self, cli: Any, ckpt_path: str) -> None:
        self.path, self.module, data = ckpt_path, cli.model, cli.datamodule
        seed = cli.config.get("seed_everything")
        self.seed: int = 0 if isinstance(seed, bool) or seed is None else seed
        if cli.config_init.get("model") is not None:
            weights = cli.checkpoint["state_dict"]
            if wrong := mismatch(self.module.state_dict(), weights):
                raise ValueError(f"{ckpt_path} does not fit {type(self.module).__name__}: {wrong}")
            self.module.load_state_dict(weights)
            self.module.on_load_checkpoint(cli.checkpoint)
        if cli.checkpoint.get("preprocessing") is not None:
            self.told = saved_preprocessing(cli, ckpt_path)
        elif isinstance(data, VisionDataModule):
            data.prepare_data()
            data.setup("predict")
            self.told = data.preprocessing
        else:
            raise ValueError(
                f"{ckpt_path} does not say how its images were prepared; add a --data that does, as --data ImageFolder "
                "--data.root FOLDER, with the arguments of the training"
            )
        self.module = self.module.float().to(cli.trainer.strategy.root_device).eval()
        generator = torch.Generator().manual_seed(0)
        # Noise says what the answers look like and which layers have maps before any file is read.
        self.probe = torch.randn(1, *self.shape, generator=generator).to(self.module.device)
        with torch.no_grad():
            answer = self.module(self.probe)
        class_scores(answer, None)
        names = [str(name) for name in self.told.get("class_names") or ()]
        self.num_classes: int = answer.shape[1]
        if isinstance(self.module, SelfSupervisedLearner):
            # It tells features; the classes of its data are not its own.
            names = [f"feature {k}" for k in range(self.num_classes)]
        self.names = names if len(names) == self.num_classes else [str(k) for k in range(self.num_classes)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        height, width = self.told["image_size"]
        return self.told["channels"], height, width

    @property
    def calibrated(self) -> bool:
        """Whether its probabilities were calibrated after training."""
        return getattr(self.module, "calibration", None) is not None

    def check_layer(self, name: str) -> None:
        """Raise a ValueError that gives the nearest names where there is no such layer."""
        find_layer(self.module, name)

    def class_number(self, given: int | str) -> int:
        """The class that `--class_index` means, by number or by name.

        Raises:
            ValueError: there is none.
        """
        if isinstance(given, str) and given in self.names:
            return self.names.index(given)
        if isinstance(given, int) and 0 <= given < self.num_classes:
            return given
        if isinstance(given, int):
            raise ValueError(f"--class_index {given}: the checkpoint has classes 0 to {self.num_classes - 1}")
        known = nearest(given, self.names) or f"; there are {shortened(self.names)}"
        raise ValueError(f"--class_index {given}: the checkpoint has no such class{known}")

    def class_numbers(self, given: Sequence[int | str] | int | str | None) -> list[int]:
        """Those of several classes; None is all."""
        if given is None:
            return list(range(self.num_classes))
        return [self.class_number(it) for it in ([given] if isinstance(given, int | str) else given)]

    def asked_class(self, given: Sequence[int | str] | int | str | None) -> int | None:
        """The one class that all maps explain; None is each image's predicted one.

        Raises:
            ValueError: there is no such class, or several are given.
        """
        if given is None or isinstance(given, int | str):
            return None if given is None else self.class_number(given)
        raise ValueError(f"--class_index {given}: maps explain one class, or each image's predicted one")

    def check_shares(self, mode: str) -> None:
        """Raise a ValueError for a mode that follows a softmax if the classes do not share one probability."""
        if getattr(self.module, "multilabel", False):
            raise ValueError(
                f"--mode {mode} follows the softmax of the logits, and {self.path} gives several labels an image, each "
                "with a probability of its own; look at it with --mode maps"
            )
        if self.num_classes < 2:
            raise ValueError(
                f"--mode {mode} follows the softmax of the logits, which is 1 whatever the image, for {self.path} "
                "answers one logit; look at it with --mode maps"
            )

    def classes(self, probabilities: Tensor, asked: int | None) -> Tensor:
        """The class explained of each image, int64 `(B,)`: `asked`, or the most probable one."""
        predicted = probabilities.argmax(1)
        return predicted if asked is None else torch.full_like(predicted, asked)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """As the checkpoint predicts them, `(B, K)`: calibrated, and where several labels apply each on its own."""
        own = getattr(self.module, "probabilities", None)
        found: Tensor = self.module(images).softmax(1) if own is None else own(images)
        return found.float()

    def pixels(self, images: Tensor) -> list[NDArray[np.uint8]]:
        """Normalised images `(B, C, H, W)` as pictures `(H, W, 3)`."""
        mean, std = (torch.tensor(self.told[name]).view(-1, 1, 1) for name in ("mean", "std"))
        bytes_ = (images.detach().float().cpu() * std + mean).mul(255).round().clamp(0, 255).byte()
        return [it.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy() for it in bytes_]


@dataclass(frozen=True)
class ImageBatch:
    """Some of the files, decoded.

    Args:
        images: Normalised, on the subject's device, `(B, C, H, W)`.
        index: Places among all files, B numbers.
        paths: The files.
        targets: Name of the class folder that each lies in; None where it lies in none.
    """

    images: Tensor
    index: list[int]
    paths: list[str]
    targets: list[str | None]


class Files:
    """Image files of a folder in batches, prepared as a checkpoint was trained; memory holds one batch.

    Args:
        subject: Whose images they become.
        folder: Folder, or one file.
        reading: `batch_size` and `on_bad_image`, as far as they were given.

    Raises:
        ValueError: it holds no images.
        FileNotFoundError: there is none.
    """

    def __init__(self, subject: Subject, folder: str, reading: dict[str, Any]) -> None:
        self.subject, self.folder = subject, Path(folder)
        prepared = {name: subject.told[name] for name in ("channels", "image_size", "resize", "mean", "std")}
        self.data = ImageFolder(predict_root=folder, **{"batch_size": 64, **prepared, **reading})
        self.data.setup()
        self.paths: list[str] = self.data.predict_paths or []

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self._decoded():
            index: list[int] = batch["index"].tolist()
            images = self.data.normalise(batch["image"].to(self.subject.module.device))
            paths = [self.paths[place] for place in index]
            yield ImageBatch(images, index, paths, [self.target(path) for path in paths])

    def _decoded(self) -> Iterator[dict[str, Tensor]]:
        """Batches of the datamodule, whose refusals name arguments of Python, with those of the command."""
        try:
            for batch in self.data.predict_dataloader():
                assert isinstance(batch, dict)
                yield batch
        except BadImageError as error:
            told = str(error).replace("pass on_bad_image='skip'", "add --on_bad_image skip")
            raise BadImageError(told.replace("pass a larger batch_size", "raise --batch_size")) from error

    def first(self, count: int) -> Iterator[ImageBatch]:
        """The first images, in batches; no more are decoded than a batch beyond them."""
        for batch in self:
            yield ImageBatch(batch.images[:count], batch.index[:count], batch.paths[:count], batch.targets[:count])
            count -= len(batch.paths)
            if count <= 0:
                return

    def target(self, path: str) -> str | None:
        """The class whose folder, the outermost below the searched one, a file lies in."""
        parents = Path(path).parent.parts[len(self.folder.parts) :] if self.folder.is_dir() else ()
        return next((name for name in parents if name in self.subject.names), None)

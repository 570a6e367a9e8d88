"""Open Images: boxes, and labels of whole images that people verified."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_vision.images import Fit, Resize

from .augmentation.policies import augmentation_for
from .common._loader import Batch, Sampler
from .common._sets import FileImages, OnBadImage
from .common.datamodule import Split, VisionDataModule
from .detection._file_source import BoxedFileSource, BoxesFound, unlabelled
from .detection._findings import OnBadAnnotation
from .detection._image_files import ImageFiles
from .detection._objects import Objects
from .detection._open_images_classes import Classes, find_file, read_classes
from .detection._open_images_csv import FLAGS, SplitImages, draw_images, read_split
from .detection._verified import FractionFiles, Verified, VerifiedFiles
from .detection.datamodule import DetectionDataModule
from .detection.policies import BoxAugment

__all__ = ["OpenImages"]

SPLITS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}


class OpenImages(BoxedFileSource):
    """Open Images V4 to V7, 1.7 million images with boxes of 600 classes, 9 million with labels that people verified.

    In `root`, its `annotations` or `metadata` lie the published tables: `class-descriptions-boxable.csv`, for each
    split `train-annotations-bbox.csv` and `train-annotations-human-imagelabels-boxable.csv`, with `oidv6-` in front or
    not, and the hierarchy of classes, `bbox_labels_600_hierarchy.json`. Images lie in `root/train`, `root/validation`
    and `root/test`, or in folders of these names in `root/images`. Answers about whole images count where people gave
    them, 1 or 0; what machines believe is passed over.

    Boxes around groups are marked as crowds: never trained on, and judged by `OpenImagesMAP`, for which the targets of
    validation and test hold `verified`, `(K,)` of 1, 0 and NaN. An image trains if a row of boxes names it and it has a
    box or a verified label of the chosen classes; for the others nobody says that all objects have boxes.

    Args:
        root: The folder; None with `predict_root` alone.
        task: `boxes` gives `Annotations`; `image_labels` gives targets `(B, K)` of 1 present, 0 absent and NaN where
            nobody has verified, for `ImageClassifier(loss="bce")`, which learns nothing from NaN.
        classes: Names or ids (`/m/01g317`) in the order of the labels; None takes all that are described.
        expand_hierarchy: A box, and what is present, is one of its ancestors', too, as far as they are among the
            classes; what is absent is so for its descendants. Neutral off.
        max_samples: At most so many images a split, drawn by their names; None takes all.
        sampler: `all` visits every training image once an epoch; `balanced` as many places go to every class, filled
            with images that show it, so that images of rare classes come several times and those of none never.
        ignored_flags: Of `IsOccluded`, `IsTruncated`, `IsDepiction`, `IsInside`: training boxes marked so are treated
            as groups.
        image_size: Height and width, pixels, or one number for both; None is 512 for boxes and 224 for labels.
        resize: `letterbox` or `squash` for boxes, `crop` or `squash` for labels; None is the first.
        channels: 3 for colour, 1 for grey; every image is converted.
        on_bad_annotation: At a row or an image that cannot be used, `error` stops at set-up and names file and line,
            `skip` leaves it out and says how many there were.
        on_bad_image: At a file that cannot be decoded, `error` stops and names it, `skip` leaves it out of its batch
            and reports count and names at the epoch's end.
        predict_root: Folder of images without labels for prediction, or one file; by default the test images.
        augment: What training images go through on the device: the name of a policy or, for boxes, a
            `BoxAugmentation`, for labels an `Augmentation`, or a list of these; "none" is neutral.
        mean: Per channel, of pixels in 0..1; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation, likewise.
        batch_size: Images in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.

    Shape:
        uint8 `(B, channels, H, W)` of `image_size`, and `Annotations` or float32 `(B, K)`.

    Raises:
        FileNotFoundError: at set-up, a table or a folder of images is missing.
        ValueError: at set-up, a table lacks a column, is none or gives no image; a class is unknown; with
            `on_bad_annotation="error"`, a row has another number of cells, a class that nothing describes, an image
            without file or a box outside 0..1; an argument is out of its range.
        BadImageError: at a damaged file, with `on_bad_image="error"`.

    Reference: Kuznetsova et al. 2020, arXiv:1811.00982
    """

    resize: Any

    def __init__(
        self,
        root: str | Path | None = None,
        task: Literal["boxes", "image_labels"] = "boxes",
        classes: list[str] | None = None,
        expand_hierarchy: bool = False,
        max_samples: int | None = None,
        sampler: Sampler = "all",
        ignored_flags: Sequence[str] = (),
        image_size: int | tuple[int, int] | None = None,
        resize: Fit | Resize | None = None,
        channels: int = 3,
        on_bad_annotation: OnBadAnnotation = "error",
        on_bad_image: OnBadImage = "error",
        predict_root: str | Path | None = None,
        augment: BoxAugment = "light",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        if task not in ("boxes", "image_labels"):
            raise ValueError(f"task is {task!r}; give boxes or image_labels")
        boxes = task == "boxes"
        ways = ("letterbox", "squash") if boxes else ("crop", "squash")
        if resize is not None and resize not in ways:
            raise ValueError(f"resize is {resize!r}; give {' or '.join(ways)} for task={task!r}")
        super().__init__(
            image_size=image_size or (512 if boxes else 224),
            resize="squash" if resize == "squash" else "letterbox",
            channels=channels,
            min_size=0.0,
            on_bad_annotation=on_bad_annotation,
            on_bad_image=on_bad_image,
            predict_root=predict_root,
            mean=mean,
            std=std,
            augment=augment if boxes else "none",
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            multiprocessing_context=multiprocessing_context,
        )
        if root is None and predict_root is None:
            raise ValueError("OpenImages needs a root, the folder of images and tables, or a predict_root")
        if classes is not None and not classes:
            raise ValueError("classes is an empty list; name some, or none to take all that are described")
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; give a number of images, or none to take all")
        if sampler not in ("all", "balanced"):
            raise ValueError(f"sampler is {sampler!r}; give all or balanced")
        if unknown := [flag for flag in ignored_flags if flag not in FLAGS]:
            raise ValueError(f"ignored_flags names {unknown[0]!r}; there are {', '.join(FLAGS)}")
        if not boxes:
            policy: Any = augment
            augmentation_for(policy, (32, 32))  # refuses what is for boxes
            self.augment_by, self.resize = policy, resize or "crop"
        self.root, self.task, self.classes, self.expand_hierarchy = root, task, classes, expand_hierarchy
        self.max_samples, self.sampler, self.ignored_flags = max_samples, sampler, tuple(ignored_flags)
        self.multilabel = self.partly_known = not boxes
        self._base = DetectionDataModule if boxes else VisionDataModule
        self._verified: dict[str, Verified] = {}
        self._chosen = Classes([], [], {}, {}, [])

    @property
    def ancestors(self) -> list[list[int]]:
        """For each of the labels 1..K the labels of its ancestors, for `OpenImagesMAP`."""
        return self._chosen.ancestors if self.found else []

    @property
    def class_ids(self) -> list[str]:
        """What Open Images calls the classes, such as `/m/01g317`, in the order of `class_names`."""
        return self._chosen.ids if self.found else []

    def find(self) -> BoxesFound:
        if self.root is None:
            return {}, {}
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; root must hold Open Images' tables and images")
        self._chosen = read_classes(root, self.task == "boxes", self.classes, self.expand_hierarchy)
        splits = {}
        for split, spelled in SPLITS.items():
            name = f"({'|'.join(spelled)})-annotations"
            whole = [find_file(root, rf"{name}-human-imagelabels{part}\.csv") for part in ("-boxable", "")]
            boxes = find_file(root, rf"{name}-bbox\.csv") if self.task == "boxes" else None
            answers = next((it for it in (whole if self.task == "boxes" else whole[::-1]) if it), None)
            if needed := boxes if self.task == "boxes" else answers:
                images = self._images_below(root, spelled)
                ignored = self.ignored_flags if split == "train" else ()
                objects, verified = read_split(
                    boxes, answers, self._chosen, images, self.on_bad_annotation, split == "train", ignored
                )
                if not len(objects):
                    raise ValueError(
                        f"{needed} says nothing of the chosen classes in any image that is there; name other classes"
                    )
                chosen = draw_images(images.names, self.max_samples)
                splits[split] = objects.select(chosen)
                if verified is not None:
                    self._verified[split] = verified.select(chosen)
            elif split == "train":
                table = "bbox" if self.task == "boxes" else "human-imagelabels"
                raise FileNotFoundError(f"there is no table train-annotations-{table}.csv in {root}; download it")
        return dict(enumerate(self._chosen.names, 1)), splits

    def load(self) -> None:
        sets = {split: self._set_of(split, objects) for split, objects in self.found[1].items()}
        self.train_set, self.val_set = sets.get("train"), sets.get("val")
        self.test_set = sets.get("test", self.val_set)
        predicted = self.test_set
        if self.predict_root is not None:
            predicted = self._set_of("predict", unlabelled(self.predict_root))
        self.predict_set, self.predict_paths = predicted, None if predicted is None else predicted.paths

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Objects of each class in each split, groups left out, or images in which people saw it."""
        if self.task == "boxes":
            return super().class_counts
        self.setup()
        counts = {}
        for split, images in (("train", self.train_set), ("val", self.val_set), ("test", self.test_set)):
            if isinstance(images, VerifiedFiles):
                numbers = images.shown[:, 1].bincount(minlength=self.num_classes)
                counts[split] = dict(zip(self.class_names, numbers.tolist(), strict=True))
        return counts

    # Labels of whole images go through what they go through in every other source.
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self._base.on_before_batch_transfer(self, batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Any:
        return self._base.on_after_batch_transfer(self, batch, dataloader_idx)

    def plot(self, split: Split = "train", count: int = 12, *args: Any, **settings: Any) -> Any:
        return self._base.plot(self, split, count, *args, **settings)

    def _images_below(self, root: Path, spelled: tuple[str, ...]) -> SplitImages:
        places = [place / name for place in (root, root / "images") for name in spelled]
        return SplitImages(ImageFiles(next((it for it in places if it.is_dir()), places[0]), root))

    def _set_of(self, split: str, objects: Objects) -> FractionFiles | FileImages:
        verified = self._verified.get(split)
        size, channels, on_bad = self.image_size, self.in_channels, self.on_bad_image
        if self.task == "boxes":
            # Training looks at no answer, and augmentation may show other objects than the image had.
            known = None if split == "train" else verified
            return FractionFiles(objects, channels, size, self.resize, on_bad, known)
        if verified is None:
            return FileImages(objects.paths, None, channels, size, self.resize, on_bad)
        return VerifiedFiles(objects.paths, verified, channels, size, self.resize, on_bad)

"""DIOR: objects in aerial and satellite images."""

from pathlib import Path
from typing import Literal

from lightning_vision.images import Fit

from .common._sets import OnBadImage
from .detection._findings import OnBadAnnotation
from .detection.policies import BoxAugment
from .voc_detection import VOCDetection

__all__ = ["DIOR"]

CLASSES = [
    "airplane",
    "airport",
    "baseballfield",
    "basketballcourt",
    "bridge",
    "chimney",
    "dam",
    "Expressway-Service-area",
    "Expressway-toll-station",
    "golffield",
    "groundtrackfield",
    "harbor",
    "overpass",
    "ship",
    "stadium",
    "storagetank",
    "tenniscourt",
    "trainstation",
    "vehicle",
    "windmill",
]


class DIOR(VOCDetection):
    """DIOR, 23,463 aerial and satellite images of 800x800 pixels with 192,472 upright boxes in 20 classes.

    Files lie as published: images in `root/JPEGImages-trainval` and `root/JPEGImages-test`, or all in
    `root/JPEGImages`; boxes in `root/Annotations/Horizontal Bounding Boxes/*.xml` or `root/Annotations/*.xml`; lists in
    `root/ImageSets/Main/*.txt`. Boxes are read as VOC's.

    Args:
        root: The unpacked folder.
        train: Name of the list to train on; `trainval`, 11,725 images, as the authors do for their test.
        val: Of the one to validate with; None validates with nothing.
        test: Of the one to test with.
        keep_difficult: Train on objects that are marked difficult, too.
        image_size: Height and width, pixels, or one number for both.
        resize: `letterbox` keeps the aspect ratio and pads with grey, `squash` does not keep it.
        min_size: Boxes whose shorter side is below it are not trained on, pixels of the original image; 0 is neutral.
        on_bad_annotation: At an annotation or an image that cannot be used, `error` stops at set-up and names it,
            `skip` leaves it out and says how many there were.
        on_bad_image: At a file that cannot be decoded, `error` stops and names it, `skip` leaves it out of its batch
            and reports count and names at the epoch's end.
        predict_root: Folder of images without annotations for prediction, or one file; by default the test images.
        augment: What training images and their boxes go through on the device, drawn anew each epoch: the name of a
            policy, a `BoxAugmentation`, an `Augmentation` that moves no pixels, or a list of these; "none" is neutral.
        batch_size: Images in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.

    Shape:
        uint8 `(B, 3, H, W)` of `image_size`, and `Annotations`.

    Raises:
        FileNotFoundError: at set-up, a folder or a list is missing.
        ValueError: as `VOCDetection`.
        BadImageError: at a damaged file, with `on_bad_image="error"`.

    Reference:
        Li, Wan, Cheng, Meng and Han 2020, arXiv:1909.00133
    """

    def __init__(
        self,
        root: str | Path = "data/DIOR",
        train: str = "train",
        val: str | None = "val",
        test: str | None = "test",
        keep_difficult: bool = False,
        image_size: int | tuple[int, int] = 800,
        resize: Fit = "letterbox",
        min_size: float = 1.0,
        on_bad_annotation: OnBadAnnotation = "error",
        on_bad_image: OnBadImage = "error",
        predict_root: str | Path | None = None,
        augment: BoxAugment = "light",
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        super().__init__(
            root=root,
            train=train,
            val=val,
            test=test,
            classes=CLASSES,
            keep_difficult=keep_difficult,
            image_size=image_size,
            resize=resize,
            min_size=min_size,
            on_bad_annotation=on_bad_annotation,
            on_bad_image=on_bad_image,
            predict_root=predict_root,
            augment=augment,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            multiprocessing_context=multiprocessing_context,
        )

    def image_folders(self, place: Path) -> list[Path]:
        folders = [place / name for name in ("JPEGImages", "JPEGImages-trainval", "JPEGImages-test")]
        return [folder for folder in folders if folder.is_dir()] or folders[:1]

    def annotation_folder(self, place: Path) -> Path:
        upright = place / "Annotations" / "Horizontal Bounding Boxes"
        return upright if upright.is_dir() else place / "Annotations"

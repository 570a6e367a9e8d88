"""Images with boxes, annotated in COCO's JSON."""

from pathlib import Path
from typing import Literal

import torch

from lightning_vision.images import Fit

from .common._file_source import SPLIT_NAMES, stable_key
from .common._sets import OnBadImage
from .common._split import iterative_split
from .detection._coco_json import check_categories, check_known, read_coco, read_coco_objects
from .detection._file_source import BoxedFileSource, BoxesFound
from .detection._findings import Findings, OnBadAnnotation
from .detection._image_files import ImageFiles
from .detection._objects import Objects
from .detection.policies import BoxAugment

__all__ = ["CocoDetection"]


class CocoDetection(BoxedFileSource):
    """Images of any size, mode and format with boxes, and if wanted masks, in COCO's JSON.

    Two layouts are found by themselves: COCO's own, `root/annotations/instances_train2017.json` with the images in
    `root/train2017` or `root/images/train2017`, and `root/train/_annotations.coco.json` with the images beside it;
    likewise `val` (or `valid`, `validation`) and `test`. Files of any other name are given as arguments. Without a
    file for validation, some training images are drawn for it; without one for testing, those of validation test.

    Categories become labels 1..K in ascending order of their ids, whatever gaps these have; `category_ids` keeps them,
    and a split whose categories are others than those of training is refused. Crowds (`iscrowd`) are kept: they are
    never trained on, and are ignored in evaluation as COCO does. Images without objects are trained on, too.

    Args:
        root: The folder; None with `predict_root` alone.
        train_annotations: JSON file, below `root`; None finds it.
        val_annotations: Likewise.
        test_annotations: Likewise; one without `annotations`, as COCO's of its test images, is for prediction alone.
        train_images: Folder of images, below `root`; None finds it, and with `train_annotations` is the folder of that
            file.
        val_images: Likewise.
        test_images: Likewise.
        image_size: Height and width, pixels, or one number for both.
        resize: `letterbox` keeps the aspect ratio and pads with grey, `squash` does not keep it.
        channels: 3 for colour, 1 for grey; every image is converted.
        masks: Give the outline of each object as a mask, for networks that draw them; without an outline its box.
        min_size: Boxes whose shorter side is below it are not trained on, pixels of the original image; 0 is neutral.
        on_bad_annotation: At an annotation or an image that cannot be used, `error` stops at set-up and names it,
            `skip` leaves it out and says how many there were.
        on_bad_image: At a file that cannot be decoded or has another size than the annotations say, `error` stops and
            names it, `skip` leaves it out of its batch and reports count and names at the epoch's end.
        val_fraction: Share of the training images drawn for validation where there is no file for it; 0 draws none.
        predict_root: Folder of images without annotations for prediction, or one file; by default the test images.
        augment: What training images and their boxes go through on the device, drawn anew each epoch: the name of a
            policy, a `BoxAugmentation`, an `Augmentation` that moves no pixels, or a list of these; "none" is neutral.
        mean: Per channel, of pixels in 0..1; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation, likewise.
        batch_size: Images in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes what is drawn for validation.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.

    Shape:
        uint8 `(B, channels, H, W)` of `image_size`, and `Annotations`.

    Raises:
        FileNotFoundError: at set-up, a file or folder is missing.
        ValueError: at set-up, an annotation file is none, has 0 images, or categories that are not those of training;
            with `on_bad_annotation="error"`, an image is missing, lies outside `root` or has an id twice, or an
            annotation has no image, category or box that can be; an argument is out of its range.
        BadImageError: at a damaged file, with `on_bad_image="error"`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
        image_size: int | tuple[int, int] = 512,
        resize: Fit = "letterbox",
        channels: int = 3,
        masks: bool = False,
        min_size: float = 1.0,
        on_bad_annotation: OnBadAnnotation = "error",
        on_bad_image: OnBadImage = "error",
        val_fraction: float = 0.1,
        predict_root: str | Path | None = None,
        augment: BoxAugment = "light",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            resize=resize,
            channels=channels,
            min_size=min_size,
            on_bad_annotation=on_bad_annotation,
            on_bad_image=on_bad_image,
            predict_root=predict_root,
            mean=mean,
            std=std,
            augment=augment,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            multiprocessing_context=multiprocessing_context,
        )
        if root is None and predict_root is None:
            raise ValueError("CocoDetection needs a root, the folder of images and annotations, or a predict_root")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}; give a share of the training images from 0 to below 1")
        self.root, self.masks, self.val_fraction, self.split_seed = root, masks, val_fraction, split_seed
        self.given = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }
        if train_annotations is None and (orphan := [it for given in self.given.values() for it in given if it]):
            raise ValueError(f"{orphan[0]} is given without train_annotations; give all files, or none to find them")

    def find(self) -> BoxesFound:
        if self.root is None:
            return {}, {}
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; root must hold COCO's annotations and images")
        places = self._given(root) if self.given["train"][0] else find_layout(root)
        names: dict[int, str] = {}
        splits: dict[str, Objects] = {}
        for split, (file, folder) in places.items():
            content, findings = read_coco(file, self.masks), Findings(str(file), self.on_bad_annotation)
            categories = check_categories(content["categories"], findings)
            names = names or categories
            check_known(categories, names, str(file), str(places["train"][0]))
            objects = read_coco_objects(content, names, ImageFiles(folder, root), findings, self.masks)
            if "annotations" not in content:
                if split != "test":
                    raise ValueError(f"{file} has no list of annotations; only images to predict need none")
                splits["predict"] = objects
                findings.tell()
                continue
            if split == "train" and "val" not in places and self.val_fraction > 0:
                objects, drawn = self._draw(objects, len(names), folder)
                splits["val"] = self.check(drawn, findings, training=False)
            splits[split] = self.check(objects, findings, training=split == "train")
            findings.tell()
        return names, splits

    def _given(self, root: Path) -> dict[str, tuple[Path, Path]]:
        found = {}
        for split, (file, folder) in self.given.items():
            if file is not None:
                found[split] = root / file, (root / file).parent if folder is None else root / folder
        return found

    def _draw(self, objects: Objects, num_classes: int, folder: Path) -> tuple[Objects, Objects]:
        """Images to train on and to validate with, class by class."""
        keys = torch.tensor([stable_key(Path(path).relative_to(folder).as_posix()) for path in objects.paths])
        shares = (1 - self.val_fraction, self.val_fraction)
        train, val = iterative_split(objects.present(num_classes), shares, self.split_seed, keys)
        if not len(train) or not len(val):
            raise ValueError(
                f"val_fraction {self.val_fraction} of {len(objects)} images leaves none to train on or to validate "
                "with; give val_annotations, or val_fraction=0"
            )
        return objects.select(train), objects.select(val)


def find_layout(root: Path) -> dict[str, tuple[Path, Path]]:
    """The annotation file and the folder of images of each split below `root`.

    Raises:
        FileNotFoundError: neither of the two layouts is there.
        ValueError: a split has two files.
    """
    found = {}
    for split, names in SPLIT_NAMES.items():
        files = {root / name / "_annotations.coco.json": root / name for name in names}
        for file in sorted((root / "annotations").glob("*.json")):
            part = file.stem.removeprefix("instances_")
            # COCO's folders are called as the files, with a year; `train` alone is one, `training_notes` is none.
            if part.rstrip("0123456789") in names:
                files[file] = next((it for it in (root / part, root / "images" / part) if it.is_dir()), root / part)
        present = [(file, folder) for file, folder in files.items() if file.is_file()]
        if len(present) > 1:
            raise ValueError(
                f"{present[0][0]} and {present[1][0]} are both for {split}; give train_annotations and, for each other "
                "split that there is, the like, or move one away"
            )
        if present:
            found[split] = present[0]
    if "train" not in found:
        raise FileNotFoundError(
            f"there is neither {root / 'annotations' / 'instances_train*.json'} nor "
            f"{root / 'train' / '_annotations.coco.json'}; give train_annotations and train_images"
        )
    return found

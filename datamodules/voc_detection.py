"""Images with boxes, annotated in PASCAL VOC's XML."""

from pathlib import Path
from typing import Literal

from lightning_vision.images import Fit

from .common._sets import OnBadImage
from .detection._file_source import BoxedFileSource, BoxesFound
from .detection._findings import Findings, OnBadAnnotation
from .detection._image_files import ImageFiles
from .detection._voc_xml import VOCImage, pack_voc, read_image_set, read_voc
from .detection.policies import BoxAugment

__all__ = ["VOCDetection"]


class VOCDetection(BoxedFileSource):
    """Images with boxes in PASCAL VOC's layout: `JPEGImages`, `Annotations/*.xml` and `ImageSets/Main/*.txt`.

    VOC counts pixels from 1 and names the last one that belongs to an object; here a box begins at 0 and ends behind
    its last pixel. Objects marked `difficult` are ignored in evaluation, as COCO ignores crowds: found or not, they
    change nothing. `category_ids` are 1..K, and `image_id` the digits of a file's name, where these tell the images
    apart.

    Args:
        root: The folder that holds `VOCdevkit/VOC<year>`, `VOC<year>`, or the three folders themselves; None with
            `predict_root` alone.
        year: Of the folder.
        train: Name of the image set to train on.
        val: Of the one to validate with; None validates with nothing.
        test: Of the one to test with; None tests with that of validation.
        classes: Names of the classes, label 1 first; None takes those of the training objects, in alphabetical order.
        keep_difficult: Train on objects that are marked difficult, too.
        image_size: Height and width, pixels, or one number for both.
        resize: `letterbox` keeps the aspect ratio and pads with grey, `squash` does not keep it.
        channels: 3 for colour, 1 for grey; every image is converted.
        min_size: Boxes whose shorter side is below it are not trained on, pixels of the original image; 0 is neutral.
        on_bad_annotation: At an annotation or an image that cannot be used, `error` stops at set-up and names it,
            `skip` leaves it out and says how many there were.
        on_bad_image: At a file that cannot be decoded, `error` stops and names it, `skip` leaves it out of its batch
            and reports count and names at the epoch's end.
        predict_root: Folder of images without annotations for prediction, or one file; by default the test images.
        augment: What training images and their boxes go through on the device, drawn anew each epoch: the name of a
            policy, a `BoxAugmentation`, an `Augmentation` that moves no pixels, or a list of these; "none" is neutral.
        mean: Per channel, of pixels in 0..1; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation, likewise.
        batch_size: Images in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.

    Shape:
        uint8 `(B, channels, H, W)` of `image_size`, and `Annotations`.

    Raises:
        FileNotFoundError: at set-up, a folder or an image set is missing.
        ValueError: at set-up, an image set names 0 images; with `on_bad_annotation="error"`, an XML file is missing,
            damaged, without a size or with another one than its image, or an object has no class or box that can be;
            an argument is out of its range.
        BadImageError: at a damaged file, with `on_bad_image="error"`.
    """

    call = "object {source} of {stem}.xml"

    def __init__(
        self,
        root: str | Path | None = None,
        year: str = "2012",
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        classes: list[str] | None = None,
        keep_difficult: bool = False,
        image_size: int | tuple[int, int] = 512,
        resize: Fit = "letterbox",
        channels: int = 3,
        min_size: float = 1.0,
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
            raise ValueError(
                f"{type(self).__name__} needs a root, the folder of images and annotations, or a predict_root"
            )
        if classes is not None and (not classes or len({*classes}) < len(classes)):
            raise ValueError(
                f"classes is {classes}; name each class once, or none to take those of the training objects"
            )
        self.root, self.year, self.classes, self.keep_difficult = root, str(year), classes, keep_difficult
        self.sets = {split: name for split, name in (("train", train), ("val", val), ("test", test)) if name}

    def find(self) -> BoxesFound:
        if self.root is None:
            return {}, {}
        place = self.folder()
        images = [ImageFiles(folder, place) for folder in self.image_folders(place)]
        classes = self.classes
        splits = {}
        for split, name in self.sets.items():
            file = place / "ImageSets" / "Main" / f"{name}.txt"
            findings = Findings(str(file), self.on_bad_annotation)
            found = read_voc(read_image_set(file), images, self.annotation_folder(place), findings)
            classes = classes or _classes(found, file)
            training = split == "train"
            objects = pack_voc(found, classes, findings, crowd=not (training and self.keep_difficult))
            splits[split] = self.check(objects, findings, training)
            findings.tell()
        return dict(enumerate(classes or [], 1)), splits

    def folder(self) -> Path:
        """The folder that holds the image sets.

        Raises:
            FileNotFoundError: there is none.
        """
        root = Path(str(self.root))
        for place in (root / "VOCdevkit" / f"VOC{self.year}", root / f"VOC{self.year}", root):
            if (place / "ImageSets" / "Main").is_dir():
                return place
        raise FileNotFoundError(
            f"there is no folder {root / f'VOC{self.year}' / 'ImageSets' / 'Main'}; root must hold VOC{self.year}, or "
            "JPEGImages, Annotations and ImageSets/Main"
        )

    def image_folders(self, place: Path) -> list[Path]:
        """Where the images lie."""
        return [place / "JPEGImages"]

    def annotation_folder(self, place: Path) -> Path:
        """Where the XML files lie."""
        return place / "Annotations"


def _classes(found: list[VOCImage], file: Path) -> list[str]:
    names = sorted({name for image in found for name in image.classes})
    if not names:
        raise ValueError(f"none of the images of {file} shows an object; there is nothing to train on")
    return names

"""Image files in one folder a class."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_vision.images import Resize, list_images

from .augmentation.policies import Augment
from .common._file_source import SPLIT_NAMES, FileSource, Found
from .common._loader import Sampler
from .common._sets import OnBadImage

__all__ = ["ImageFolder"]


class ImageFolder(FileSource):
    """Images of any size, mode and format in class folders, split by folders or by a seeded stratified draw.

    Either `root/train/CLASS/...`, with `val` (or `valid`, `validation`) and `test` beside it, or `root/CLASS/...`. What
    the folders leave open is drawn: validation from the training images, without `train` all three. A draw depends on
    `split_seed` and the files' names alone, so it is the same in every process and stage.

    Args:
        root: The folder; None with `predict_root` alone.
        image_size: Height and width, pixels, or one number for both.
        train_size: Height and width at which training images are decoded, at least `image_size`, to which augmentation
            cuts them: where it does not, a window drawn at random does; None is `image_size`.
        eval_size: Likewise for validation, test and prediction, whose images reach the module at this size, also those
            of `module.predict` and of exported networks, as `preprocessing` says it. For networks that train on
            smaller images than they see later, and for crops of `image_size`
            (`TestTimeAugmentation(views="five_crop")`); None is `image_size`.
        channels: 3 for colour, 1 for grey; every image is converted.
        resize: `crop` keeps the aspect ratio and cuts the middle out, `squash` does not keep it.
        on_bad_image: At a file that cannot be decoded, `error` stops and names it, `skip` leaves it out of its batch
            and reports count and names at the epoch's end.
        val_fraction: Share drawn for validation where there is no folder for it.
        test_fraction: Share drawn for testing where there is no `train` folder.
        predict_root: Folder of images without labels for prediction, or one file; by default that is the test set.
        augment: What training images go through on the device, drawn anew each epoch: the name of a policy, a policy's
            YAML file, an `Augmentation`, or a list of these; "light" shifts by up to an eighth of the side and mirrors
            half of the images, "none" is neutral.
        sampler: `all` visits every training image once an epoch; `balanced` as many of every class, small ones several
            times.
        mean: Per channel, of pixels in 0..1; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation, likewise.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes what is drawn for validation and testing.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `split_seed`, the same in every epoch;
            validation and test stay whole. None takes all.

    Shape:
        uint8 `(B, channels, H, W)`: `train_size` or `eval_size`; after augmentation training images have `image_size`.

    Raises:
        FileNotFoundError: at set-up, a folder is missing.
        ValueError: at set-up, a folder holds no images, would be left unread or tests a class that is not trained; an
            argument is out of its range.
        BadImageError: at a damaged file, with `on_bad_image="error"`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        image_size: int | tuple[int, int] = 224,
        train_size: int | tuple[int, int] | None = None,
        eval_size: int | tuple[int, int] | None = None,
        channels: int = 3,
        resize: Resize = "crop",
        on_bad_image: OnBadImage = "error",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        predict_root: str | Path | None = None,
        augment: Augment = "light",
        sampler: Sampler = "all",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        labels_per_class: int | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            train_size=train_size,
            eval_size=eval_size,
            channels=channels,
            resize=resize,
            on_bad_image=on_bad_image,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            predict_root=predict_root,
            mean=mean,
            std=std,
            augment=augment,
            sampler=sampler,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            multiprocessing_context=multiprocessing_context,
            labels_per_class=labels_per_class,
        )
        if root is None and predict_root is None:
            raise ValueError("ImageFolder needs a root, the folder that holds the class folders, or a predict_root")
        self.root = root

    def find(self) -> Found:
        if self.root is None:
            return [], {}
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; root must hold train/CLASS or CLASS folders of images")
        by_folder = any(path.is_dir() for path in (root / "train").glob("[!.]*"))
        folders = split_folders(root) if by_folder else {}
        classes = {split: class_files(path) for split, path in (folders or {"train": root}).items()}
        names = list(classes["train"])
        if not by_folder and len(names) > 1 and {*names} <= {name for given in SPLIT_NAMES.values() for name in given}:
            raise ValueError(
                f"{root} has folders called {' and '.join(names)} but no train folder with class folders in it"
            )
        if empty := [name for name in names if not classes["train"][name]]:
            raise ValueError(f"the class folder {folders.get('train', root) / empty[0]} holds no images")
        for split in classes:
            if unknown := [name for name, files in classes[split].items() if files and name not in names]:
                raise ValueError(
                    f"class {unknown[0]!r} is in {folders[split]} but not in {folders['train']}; "
                    "add images to train on or remove it"
                )
        splits = {split: labelled(found, names) for split, found in classes.items()}
        if "val" not in splits:
            paths, targets = splits["train"]
            files = [Path(path).relative_to(root).as_posix() for path in paths]
            splits |= self.draw(paths, targets, files, test=not by_folder)
        return names, {**splits}


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split below `root`.

    Raises:
        ValueError: a split has two, or another folder beside them holds images that nothing would read.
    """
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise ValueError(f"{present[0]} and {present[1]} are both folders for {split}; merge them or move one away")
        if present:
            found[split] = present[0]
    known = {*found.values()}
    beside = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and path not in known)
    if unread := [path.name for path in beside if list_images(path)]:
        raise ValueError(
            f"{root} has class folders in train, so images in {', '.join(unread)} beside it would not be read; "
            "move them into train or away, or rename train if it is a class"
        )
    return found


def class_files(folder: Path) -> dict[str, list[str]]:
    """Images of each class folder below `folder`, classes and images in an order that no file system changes.

    Raises:
        ValueError: there is no image in any.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {name: list_images(folder / name) for name in classes}
    if not any(found.values()):
        raise ValueError(f"the folder {folder} has no class folders with images, such as {folder / 'cat' / '1.jpg'}")
    return found


def labelled(classes: dict[str, list[str]], names: list[str]) -> tuple[list[str], Tensor]:
    """Paths and, as int64, the positions of their classes in `names`."""
    labels = {name: number for number, name in enumerate(names)}
    pairs = [(path, labels[name]) for name, files in classes.items() for path in files]
    return [path for path, _ in pairs], torch.tensor([label for _, label in pairs])

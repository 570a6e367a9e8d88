"""Does it help to look at an image several times? Accuracy of patches of photographs by the views that are averaged.

The protocol stands in docs/methods/test_time_augmentation.md; it and the constants below were committed before the
first run.
"""

import time
from functools import partial
from statistics import mean

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import center_crop, rgb_to_grayscale

from lightning_vision.callbacks import TestTimeAugmentation
from lightning_vision.classification import ImageClassifier

from .study import in_processes, table

__all__ = ["ARMS", "blocks", "patches", "train_and_score"]

SEEDS = range(5)
STEPS, BATCH, LR, WEIGHT_DECAY = 150, 32, 0.01, 0.05
# Sides in pixels: of the patches and of what the network is trained on and given.
SIDE, SEEN = 40, 32
NOISE = 0.15
PHOTOS = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "immunohistochemistry", "moon")

# Each with the arguments of the callback; none is the plain evaluation of the centre.
ARMS: dict[str, dict[str, object] | None] = {
    "centre": None,
    "centre, `flip`": {"views": "flip"},
    "`five_crop`": {"views": "five_crop", "crop": SEEN},
    "`ten_crop`": {"views": "ten_crop", "crop": SEEN},
    "`five_crop` of the centre, `resize`": {"views": "five_crop", "crop": 28, "resize": True},
}


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Batches for training: a window at random of each patch, half of them mirrored, all by `seed` and the step."""

    def __init__(self, images: Tensor, targets: Tensor, seed: int, steps: int) -> None:
        self.images, self.targets, self.seed, self.steps = images, targets, seed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_000 * (self.seed + 1) + step)
        chosen = torch.randint(len(self.images), (BATCH,), generator=generator)
        corners = torch.randint(SIDE - SEEN + 1, (BATCH, 2), generator=generator).tolist()
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        windows = [
            self.images[number, :, top : top + SEEN, left : left + SEEN]
            for number, (top, left) in zip(chosen.tolist(), corners, strict=True)
        ]
        image = torch.stack(windows)
        return torch.where(mirrored, image.flip(3), image), self.targets[chosen]


def patches(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Grey patches `(N, 1, 40, 40)` of ten photographs and which each is of; the left of a photograph trains.

    All have mean 0 and deviation 1, and noise by `seed` upon that; neighbours do not overlap, and a patch's width is
    left between training and test.
    """
    import skimage.data

    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {"train": ([], []), "test": ([], [])}
    for label, name in enumerate(PHOTOS):
        photo = torch.from_numpy(getattr(skimage.data, name)().copy())
        grey = rgb_to_grayscale(photo.permute(2, 0, 1))[0] if photo.ndim == 3 else photo
        columns = grey.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).float()
        half = columns.shape[1] // 2
        for split, part in (("train", columns[:, :half]), ("test", columns[:, half + 1 :])):
            images, targets = found[split]
            images.append(part.reshape(-1, 1, SIDE, SIDE))
            targets.append(torch.full((len(images[-1]),), label))
    result = {}
    for split, (several, labels) in found.items():
        image = torch.cat(several)
        image = (image - image.mean((1, 2, 3), keepdim=True)) / (image.std((1, 2, 3), keepdim=True) + 1)
        result[split] = image + NOISE * torch.randn(image.shape, generator=generator), torch.cat(labels)
    return result


def train_and_score(seed: int, steps: int) -> dict[str, tuple[float, float]]:
    """Train once and test in every way: for each arm the accuracy, percent, and the processor time of the test."""
    seed_everything(seed, verbose=False)
    module = ImageClassifier(
        "resnet8_cifar",
        num_classes=len(PHOTOS),
        in_channels=1,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        lr_scheduler=partial(CosineAnnealingLR, T_max=steps),
        lr_interval="step",
    )
    data = patches(seed)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=1, **quiet)  # type: ignore[arg-type]  # switches, all of them
    trainer.fit(module, DataLoader(Crops(*data["train"], seed, steps), batch_size=None))
    image, target = data["test"]
    scores = {}
    for arm, settings in ARMS.items():
        whole = settings is not None and settings.get("crop") == SEEN
        shown = image if whole else center_crop(image, [SEEN, SEEN])
        loader = DataLoader(list(zip(shown, target, strict=True)), batch_size=128)  # type: ignore[arg-type]  # a list will do
        callbacks = [] if settings is None else [TestTimeAugmentation(**settings)]  # type: ignore[arg-type]  # names and numbers
        tester = Trainer(accelerator="cpu", callbacks=callbacks, **quiet)  # type: ignore[arg-type]  # as above
        start = time.process_time()
        (found,) = tester.test(module, loader, verbose=False)
        scores[arm] = 100 * found["test/acc"], time.process_time() - start
    return scores


def blocks(quick: bool) -> dict[str, str]:
    """The table of all arms.

    Args:
        quick: One seed, four steps, in this process.
    """
    seeds, steps = ([0], 4) if quick else (list(SEEDS), STEPS)
    runs = in_processes(train_and_score, [(seed, steps) for seed in seeds], 0 if quick else 1)
    accuracy = {arm: [run[arm][0] for run in runs] for arm in ARMS}
    seconds = {arm: f"{mean(run[arm][1] for run in runs):.2f} s" for arm in ARMS}
    return {"study_tta": table(accuracy, {}, {"CPU of the test": seconds})}

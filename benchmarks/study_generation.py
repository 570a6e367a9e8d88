"""How good the digits are that the shipped runs of generation learn to make, judged by a classifier's features.

The protocol stands in docs/study_generation.md; it and the configs were committed before the first run.
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from statistics import mean
from time import process_time

import torch
from torch import Tensor

from lightning_vision import main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks.generation.frechet import Moments, frechet_distance
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.datamodules.digits import Digits, read_digits, split_digits
from lightning_vision.generation.generator import ImageGenerator

from .study import in_processes

__all__ = ["Judge", "Verdict", "blocks", "judge_from", "rows_of", "trained"]

HALVES = 5
SEEDS = 5


@dataclass(frozen=True)
class Verdict:
    """What is said of 898 made digits.

    Args:
        read: Share that the classifier reads as the class that was asked for; NaN where none was.
        distance: Frechet distance to real digits, over that of two stratified halves of real ones.
        variance: Variance of a pixel within a class, over real digits'.
        near: Share that lies nearer to a training digit than all but a twentieth of the held-out digits do.
    """

    read: float
    distance: float
    variance: float
    near: float


class Judge:
    """Knows the real digits, and what a classifier sees in them.

    Args:
        classifier: Trained on digits.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier.eval()
        self.images, self.targets = read_digits()
        self.features, _ = self.seen(self.images)
        train, _, test = split_digits(self.targets, 0)
        self.train = self.images[train].flatten(1).double()
        apart = torch.cdist(self.images[test].flatten(1).double(), self.train).min(1).values
        self.near = apart.quantile(0.05)
        halves = [self.halves(seed) for seed in range(HALVES)]
        self.reference = halves[0][0]
        pairs = [(Moments.of(self.features[a]), Moments.of(self.features[b])) for a, b in halves]
        self.unit = mean(frechet_distance(*pair).item() for pair in pairs)

    @property
    def labels(self) -> Tensor:
        """Of the half that made digits are compared with, which are the labels to make, int64 `(898,)`."""
        return self.targets[self.reference]

    def halves(self, seed: int) -> tuple[Tensor, Tensor]:
        """Positions of two halves of each class of the real digits."""
        random, parts = torch.Generator().manual_seed(seed), []
        for number in range(10):
            own = (self.targets == number).nonzero().flatten()
            own = own[torch.randperm(len(own), generator=random)]
            parts.append((own[: (len(own) + number % 2) // 2], own[(len(own) + number % 2) // 2 :]))
        first, second = (torch.cat(it) for it in zip(*parts, strict=True))
        return first, second

    @torch.no_grad()
    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features, float64 `(N, D)`, and classes of uint8 images `(N, 1, 8, 8)`."""
        maps = self.classifier.network.forward_features(Digits().normalise(images))
        features = self.classifier.network.forward_head(maps, pre_logits=True)
        return features.double(), self.classifier.network.forward_head(maps).argmax(1)

    def verdict(self, images: Tensor, labels: Tensor | None) -> Verdict:
        """Of uint8 images `(898, 1, 8, 8)` and the labels that were asked for; None where no label can be."""
        features, found = self.seen(images)
        far = frechet_distance(Moments.of(features), Moments.of(self.features[self.reference])).item()
        nearest = torch.cdist(images.flatten(1).double(), self.train).min(1).values
        return Verdict(
            read=float("nan") if labels is None else (found == labels).double().mean().item(),
            distance=far / self.unit,
            variance=_within(images, found if labels is None else labels) / _within(self.images, self.targets),
            near=(nearest < self.near).double().mean().item(),
        )


def _within(images: Tensor, labels: Tensor) -> float:
    """Variance within a class, the mean over classes by their shares, summed over pixels."""
    pixels = images.flatten(1).double()
    groups = [pixels[labels == number] for number in labels.unique()]
    return sum(it.var(0, correction=0).sum().item() * len(it) for it in groups) / len(pixels)


def trained(config: str, folder: str, *flags: str) -> str:
    """The last checkpoint of a shipped run."""
    place = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    main(["fit", "--config", config, *place, *quiet, *flags])
    return f"{folder}/version_0/checkpoints/last.ckpt"


def judge_from(checkpoint: str) -> Judge:
    """The judge whose classifier a checkpoint holds."""
    found = module_from_checkpoint(checkpoint)
    assert isinstance(found, ImageClassifier)
    return Judge(found)


def blocks(quick: bool) -> dict[str, str]:
    """A row for each seed of `flow_digits`, of which README promises something.

    Args:
        quick: One seed, two steps.
    """
    tasks = [("flow", seed) for seed in range(1 if quick else SEEDS)]
    return {"study_generation": rows_of(tasks, quick)}


def rows_of(tasks: list[tuple[str, int]], quick: bool) -> str:
    """A table of runs by name and seed."""
    short = ["--trainer.max_steps", "2", "--trainer.max_epochs", "-1"] if quick else []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        judge = trained("classification/digits", folder, *short)
        found = in_processes(judged, [(*task, judge, short) for task in tasks], 0 if quick else 2)
    lines = [
        "| run | parameters, M | calls | CPU s | seed | read as asked, % | Frechet, x | variance, x | near, % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (name, seed), (told, verdict) in zip(tasks, found, strict=True):
        read = "" if verdict.read != verdict.read else f"{100 * verdict.read:.1f}"
        cells = [f"`{name}_digits`", *told, f"{seed}", read, f"{verdict.distance:.2f}", f"{verdict.variance:.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{100 * verdict.near:.1f}'])} |")
    return "\n".join(lines)


def judged(name: str, seed: int, judge: str, short: list[str]) -> tuple[list[str], Verdict]:
    """Parameters, network calls and seconds of a run, and what is said of its digits; of a short run of 40 of them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        known, start = judge_from(judge), process_time()
        seeds = ["--seed_everything", str(seed), "--model.seed", str(seed), "--data.seed", str(seed)]
        checkpoint = trained(f"generation/{name}_digits", folder, "--trainer.limit_val_batches", "0", *seeds, *short)
        spent, module = process_time() - start, module_from_checkpoint(checkpoint)
        assert isinstance(module, ImageGenerator)
        wanted = known.labels[:40] if short else known.labels
        labels = wanted if module.num_classes else None
        images = module.pixels(module.sample(len(wanted), label=labels, seed=seed))
        size = sum(it.numel() for it in module.parameters()) / 1e6
        calls = getattr(module, "network_calls", None) or 1
        return [f"{size:.2f}", str(calls), f"{spent:.0f}"], known.verdict(images, labels)

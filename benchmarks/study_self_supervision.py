"""What learners without labels are worth on placed digits: the shipped runs, judged by neighbours and by few labels.

The protocol stands in docs/study_self_supervision.md; it and the configs were committed before the first run.
"""

import contextlib
import io
import tempfile
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor

from lightning_vision import main
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks import KNNProbe, LinearProbe
from lightning_vision.datamodules import PlacedDigits

from .study import in_processes, paired_difference

__all__ = ["blocks"]

SEEDS = range(5)
LEARNERS = {
    "simclr": "SimCLR",
    "moco": "MoCo",
    "byol": "BYOL",
    "dino": "DINO",
    "vicreg": "VICReg",
    "barlow_twins": "Barlow Twins",
    "rotnet": "RotNet",
    "jigsaw_clustering": "Jigsaw Clustering",
    "mae": "MAE",
    "simmim": "SimMIM",
}
PROBES = {"knn": "kNN, `solo`", "linear": "linear, ten labels a class"}


def blocks(quick: bool) -> dict[str, str]:
    """A table for each probe, and one of fine-tuning.

    Args:
        quick: Two learners, one seed, two steps.
    """
    seeds = [0] if quick else list(SEEDS)
    names = ["simclr", "rotnet"] if quick else list(LEARNERS)
    processes = 0 if quick else 2
    found = iter(in_processes(learned, [(name, seed, quick) for name in names for seed in seeds], processes))
    runs = {name: [next(found) for _ in seeds] for name in names}
    pixels = in_processes(_of_pixels, [(seed,) for seed in seeds], processes)
    made = {
        f"study_self_supervision_{probe}": _table(runs, [it[probe] for it in pixels], probe, seeds) for probe in PROBES
    }
    tuned = {arm: [run[arm] for run in runs["simclr"]] for arm in ("scratch", "tuned")}
    return {**made, "study_self_supervision_fine_tune": _fine_tuning(tuned, seeds)}


def learned(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Percent of test digits by each probe after the shipped run and before it, and of fine-tuning SimCLR's file."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        place = ["--trainer.default_root_dir", folder, "--trainer.enable_progress_bar", "false"]
        place += ["--trainer.accelerator", "cpu", "--seed_everything", str(seed), "--data.seed", str(seed)]
        short = ["--trainer.max_steps", "2", "--trainer.max_epochs", "-1"] if quick else []
        watching = [word for it in ("knn", "online", "embedding_map") for word in (f"--callbacks.{it}", "null")]
        watching += ["--trainer.limit_val_batches", "0"]
        config = ["--config", f"self_supervised/{name}_digits", "--model.seed", str(seed)]
        start = process_time()
        main(["fit", *config, *place, *watching, *short])
        spent = process_time() - start
        run = Path(folder) / "version_0"
        module = module_from_checkpoint(run / "checkpoints" / "last.ckpt")
        seed_everything(seed, verbose=False)
        untrained = type(module)(**module.hparams)
        told = _probed(module, seed) | {f"untrained_{key}": it for key, it in _probed(untrained, seed).items()}
        told["spent"] = spent
        if name == "simclr":
            for arm, file in (("scratch", "null"), ("tuned", str(run / "backbone.safetensors"))):
                tuning = ["--config", "self_supervised/finetune_digits", *place, "--model.weights", file]
                best = main(["fit", *tuning, *short]).run_dir
                kept = ["--ckpt_path", str(Path(str(best)) / "checkpoints" / "last.ckpt")]
                told[arm] = 100 * main(["test", *tuning, *kept]).metrics["test/acc"]
    return told


class _Pixels(LightningModule):
    """Features that nobody has learnt."""

    def features(self, image: Tensor) -> Tensor:
        return image.flatten(1)

    def test_step(self, batch: Any) -> None: ...


def _of_pixels(seed: int) -> dict[str, float]:
    return _probed(_Pixels(), seed)


def _probed(module: LightningModule, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "default_root_dir": folder}
        probes = [KNNProbe("solo"), LinearProbe("few_labels", seed=seed)]
        trainer = Trainer(accelerator="cpu", callbacks=probes, enable_model_summary=False, **quiet)
        (found,) = trainer.test(module, datamodule=PlacedDigits(seed=seed), verbose=False)
    return {probe: 100 * found[f"probe/test/{probe}"] for probe in PROBES}


def _table(runs: dict[str, list[dict[str, float]]], pixels: list[float], probe: str, seeds: list[int]) -> str:
    columns = [
        "learner",
        *(f"seed {seed}" for seed in seeds),
        "mean",
        "untrained",
        "gain",
        "over 2 SE?",
        "to pixels",
        "over 2 SE?",
        "CPU",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    lines.append(f"| raw pixels | {_scores(pixels)} | | | | | | |")
    for name, each in runs.items():
        scores, before = [run[probe] for run in each], [run[f"untrained_{probe}"] for run in each]
        compared = (*paired_difference(scores, before), *paired_difference(scores, pixels))
        spent = mean(run["spent"] for run in each)
        told = [LEARNERS[name], _scores(scores), f"{mean(before):.1f}", *compared, f"{spent:.0f} s"]
        lines.append(f"| {' | '.join(told)} |")
    measured = f"Percent of {PROBES[probe]}; 359 test digits, each once on its canvas"
    return "\n".join([*lines, "", f"{measured}; CPU is the processor time of one training."])


def _fine_tuning(arms: dict[str, list[float]], seeds: list[int]) -> str:
    columns = ["fine-tuned on ten labels a class", *(f"seed {seed}" for seed in seeds), "mean", "gain", "over 2 SE?"]
    gain = paired_difference(arms["tuned"], arms["scratch"])
    return "\n".join(
        [
            f"| {' | '.join(columns)} |",
            f"|---|{'--:|' * (len(columns) - 1)}",
            f"| from scratch | {_scores(arms['scratch'])} | | |",
            f"| from SimCLR's file | {_scores(arms['tuned'])} | {' | '.join(gain)} |",
        ]
    )


def _scores(scores: list[float]) -> str:
    return " | ".join([*(f"{score:.1f}" for score in scores), f"{mean(scores):.1f}"])

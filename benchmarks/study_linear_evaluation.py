"""What offline probes say of pixels, of a network at random and of one trained with labels: digits on a canvas."""

import contextlib
import tempfile
from statistics import mean

from lightning.pytorch import Trainer, seed_everything

from lightning_vision.callbacks import FineTuneProbe, LinearProbe
from lightning_vision.datamodules import PlacedDigits

from .study import in_processes
from .study_probes import Digits24

__all__ = ["blocks"]

SEEDS, EPOCHS = range(3), 10
ARMS = {"pixels": "raw pixels", "random": "at random", "labels": "trained with labels"}
NUMBERS = {
    "dinov2": "13 rates, `dinov2`",
    "dinov2_lr": "the rate it chose",
    "simclr": "one rate, `simclr`",
    "few": "10 labels a class",
    "tuned_10_labels": "fine-tuned, 10 labels a class",
    "tuned_10_labels_scratch": "the same from scratch",
}


def blocks(quick: bool) -> dict[str, str]:
    """The probes' numbers at the end of ten epochs, by arm, means over three seeds.

    Args:
        quick: One seed, two epochs, and five of fine-tuning.
    """
    seeds, epochs = ([0], 2) if quick else (SEEDS, EPOCHS)
    tasks = [(arm, epochs, seed) for arm in ARMS for seed in seeds]
    found = iter(in_processes(_probed, tasks, 0 if quick else 2))
    runs = {arm: [next(found) for _ in seeds] for arm in ARMS}
    seeded = "seed 0" if quick else f"means over seeds 0 to {len(SEEDS) - 1}"
    protocol = (
        f"`PlacedDigits`, plain canvas, its validation; `resnet8_cifar`, 64 features, after {epochs} epochs of Adam, "
        f"batches of 64; {seeded}."
    )
    lines = [f"| features | {' | '.join(NUMBERS.values())} |", f"|---|{'--:|' * len(NUMBERS)}"]
    for arm, named in ARMS.items():
        cells = [f"{mean(run[key] for run in runs[arm]):.3g}" if key in runs[arm][0] else "" for key in NUMBERS]
        lines.append(f"| {named} | {' | '.join(cells)} |")
    return {"study_linear_evaluation": "\n".join([*lines, "", protocol])}


def _probed(arm: str, epochs: int, seed: int) -> dict[str, float]:
    seed_everything(seed, verbose=False)
    probes = [LinearProbe("dinov2", name="dinov2"), LinearProbe("simclr", name="simclr")]
    probes.append(LinearProbe("few_labels", name="few"))
    tuned = (
        [] if arm == "pixels" else [FineTuneProbe(labels=[10], epochs=None if epochs == EPOCHS else 5, name="tuned")]
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            check_val_every_n_epoch=epochs,
            callbacks=[*probes, *tuned],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(Digits24(arm), datamodule=PlacedDigits(seed=seed))
    return {name.removeprefix("probe/"): float(it) for name, it in trainer.callback_metrics.items() if "probe" in name}

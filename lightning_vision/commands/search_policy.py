"""Search an AutoAugment policy for the configured data and write it as YAML."""

import copy
import csv
import logging
import math
from typing import Any, Literal

import numpy as np
from lightning.pytorch import seed_everything

from lightning_vision.commands._files import output_folder
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.commands._trial import trial_trainer
from lightning_vision.datamodules.augmentation.auto_augment import AutoAugment, write_policy
from lightning_vision.datamodules.augmentation.chain import Chain
from lightning_vision.datamodules.augmentation.policy_search import (
    EvolutionController,
    Policy,
    PolicyController,
    RandomController,
    ReinforceController,
)
from lightning_vision.datamodules.common.datamodule import VisionDataModule

YAML, CSV = "policy.yaml", "search.csv"
CONTROLLERS: dict[str, type[PolicyController]] = {
    "random": RandomController,
    "evolution": EvolutionController,
    "reinforce": ReinforceController,
}


def run(
    cli: Any,
    controller: Literal["random", "evolution", "reinforce"] = "evolution",
    budget: int = 50,
    proxy_epochs: int = 3,
    sub_policies: int = 5,
    keep: int = 5,
    monitor: str = "val/acc",
    mode: Literal["min", "max"] = "max",
    search_seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train the configured model for a short while under many policies and keep the best (Cubuk et al. 2019).

    Every trial starts from the same weights and seed; its policy comes after the configured augmentation. Files are
    written after each trial, so an interrupted search keeps what it has found. A score that is not finite is the worst.

    Args:
        controller: Who proposes policies: uniform draws, mutations of the best recent ones, or REINFORCE.
        budget: Policies to score.
        proxy_epochs: Epochs of training behind a score.
        sub_policies: Sub-policies of a proposed policy.
        keep: How many of the best policies are joined into the one that is written.
        monitor: Metric that scores a policy, as it stands after the last epoch.
        mode: Whether larger (`max`) or smaller scores are better.
        search_seed: Fixes what is proposed.
        output: Folder for the files; without it the run's folder or the current one.
        overwrite: Replace the files of an earlier search.

    Returns:
        `policy`, the path of the policy; `trials`, the path of the table; `scores` of all trials in their order;
        `without`, the score without a policy.

    Raises:
        ValueError: an option is out of its range, several processes, the data or metric cannot be used, or the metric
            is not finite.
        FileExistsError: a file exists and `overwrite` is off.
    """
    require(cli, "model", "data")
    counts = {"budget": budget, "proxy_epochs": proxy_epochs, "sub_policies": sub_policies, "keep": keep}
    if wrong := [f"--{name} {value}" for name, value in counts.items() if value < 1]:
        raise ValueError(f"{wrong[0]} must be at least 1")
    require_one_process(cli, "search_policy")
    if not isinstance(cli.datamodule, VisionDataModule):
        raise ValueError(f"{type(cli.datamodule).__name__} is not of this package, so no policy can be put into it")
    folder = output_folder(cli, output, [YAML, CSV], overwrite)
    proposing = CONTROLLERS[controller](np.random.default_rng(search_seed), sub_policies)
    sign = 1 if mode == "max" else -1
    score = _Scores(cli, proxy_epochs, monitor)
    without = score(None)
    if not math.isfinite(without):
        raise ValueError(
            f"{monitor} is {without} without a policy, so there is nothing to improve; lower --model.optimizer.lr"
        )
    trials: list[tuple[float, Policy]] = []
    finite: list[tuple[float, Policy]] = []
    with (folder / CSV).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", monitor, "policy"])
        for trial in range(budget):
            policy = proposing.ask()
            value = score(policy)
            trials.append((value, policy))
            # A training that diverged is as bad as the worst one that did not: no controller can reckon with a NaN.
            worst = min(sign * each for each in (without, *(known for known, _ in finite)))
            proposing.tell(policy, sign * value if math.isfinite(value) else worst)
            finite = [scored for scored in trials if math.isfinite(scored[0])]
            best = sorted(finite, key=lambda scored: sign * scored[0], reverse=True)[:keep]
            top = f", best {best[0][0]:.4f}" if best else ""
            print(f"trial {trial + 1} of {budget}: {monitor} {value:.4f}{top}", flush=True)
            table.writerow([trial, f"{value:.6g}", policy])
            file.flush()
            if best:
                write_policy([sub for _, each in best for sub in each], folder / YAML)
    if not finite:
        raise ValueError(f"{monitor} was finite under none of {budget} policies; lower --model.optimizer.lr")
    shown = {"without a policy": f"{without:.4f}", "best policy": f"{best[0][0]:.4f}"}
    print_table(monitor, shown | {f"all {budget}, mean": f"{np.mean([value for value, _ in finite]):.4f}"})
    print_table("written", {"policy": str(folder / YAML), "trials": str(folder / CSV)})
    given = cli.config.data.init_args.get("augment") or "none"
    after = "..." if not isinstance(given, str) else given
    flag = str(folder / YAML) if after == "none" else f"'[{after}, {folder / YAML}]'"
    print_table("next", {"train with it": f"--data.augment {flag}"})
    return {
        "policy": str(folder / YAML),
        "trials": str(folder / CSV),
        "scores": [value for value, _ in trials],
        "without": without,
    }


class _Scores:
    """What the configured model reaches under a policy."""

    def __init__(self, cli: Any, epochs: int, monitor: str) -> None:
        self.cli, self.epochs, self.monitor = cli, epochs, monitor
        self.seed = int(cli.config.get("seed_everything") or 0)
        self.given = cli.datamodule.augmentation
        self.start = copy.deepcopy(cli.model.state_dict())

    def __call__(self, policy: Policy | None) -> float:
        seed_everything(self.seed, verbose=False)
        stages = [self.given] if self.given is not None else []
        stages += [AutoAugment(policy)] if policy is not None else []
        self.cli.datamodule.augmentation = Chain(stages) if stages else None
        log = logging.getLogger("lightning.pytorch")
        level = log.level
        log.setLevel(logging.WARNING)  # what it says of a fit, it would say of every trial
        try:
            return self._train()
        finally:
            log.setLevel(level)

    def _train(self) -> float:
        trainer = trial_trainer(self.cli, max_epochs=self.epochs, enable_progress_bar=False, enable_model_summary=False)
        self.cli.model.load_state_dict(self.start)
        trainer.fit(self.cli.model, datamodule=self.cli.datamodule)
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"--monitor {self.monitor}: the model does not log it; it logs {known}")
        return float(trainer.callback_metrics[self.monitor])

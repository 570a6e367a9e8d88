"""Train, and keep the best and the last checkpoint."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lightning_vision.commands._report import effective, print_table, require

CONTINUES = True


def run(cli: Any, ckpt_path: str | None = None) -> None:
    """Train the model on the datamodule.

    Args:
        ckpt_path: Checkpoint to go on from: a file, or `last` for the newest one under the config's folder. The run
            goes on in the checkpoint's own folder.
    """
    require(cli, "model", "data")
    cli.trainer.callbacks.append(_ShowOptimizers())
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
    _report(cli.trainer, cli.run_dir)


class _ShowOptimizers(Callback):
    """Prints what is really optimised with, once: configs, flags and defaults have been merged by then."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            rank_zero_info(f"Optimizer: {effective(optimizer)}")


@rank_zero_only
def _report(trainer: Trainer, run_dir: object) -> None:
    metrics = trainer.callback_metrics.items()
    if rows := {name: f"{float(value):.4f}" for name, value in sorted(metrics) if name.startswith("val/")}:
        print_table("validation, last epoch", rows)
    written = {"run folder": str(run_dir or trainer.log_dir or trainer.default_root_dir)}
    for saver in (saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)):
        for path in filter(None, (saver.best_model_path, saver.last_model_path)):
            best = saver.monitor if path == saver.best_model_path else None
            written[Path(path).stem] = f"{path} ({best} {saver.best_model_score:.4f})" if best else path
    print_table("written", written)

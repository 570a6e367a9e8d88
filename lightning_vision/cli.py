"""The command's engine: a LightningCLI with named callbacks, sizes from the data and one door to the optimizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_vision.base.module import VisionModule
from lightning_vision.base.weights import load_checkpoint
from lightning_vision.callbacks.hooks.method import Method
from lightning_vision.commands._changed_networks import changing, load_changed, module_to_change
from lightning_vision.commands._parsing import callback_names, drop_superseded, import_named, own_defaults, spell_out
from lightning_vision.commands._report import without_advice
from lightning_vision.commands._run_dir import newest_checkpoint, open_run, place_run, unused_dropped
from lightning_vision.commands._usage import explain, unwrapped
from lightning_vision.configs import config_paths, read_config
from lightning_vision.result import Result

__all__ = ["VisionCLI", "run"]

FROM_DATA = ("num_classes", "in_channels", "image_size")


class VisionCLI(LightningCLI):
    """Model, datamodule, callbacks and trainer as a command line describes them.

    Callbacks are named entries (`callbacks: {sam: {class_path: SAM}}`), so configs merge by name,
    `--callbacks.sam.rho 0.1` overrides and `--callbacks.sam null` switches off; the house's own get the entry's key as
    `name`, so several of a class keep their states apart in a checkpoint. Model arguments in `FROM_DATA` that are
    left open are filled from the datamodule. Without `model`, it is rebuilt from the subcommand's `ckpt_path`.

    Args:
        options: Function whose parameters after the first become flags.
        args: The words after the subcommand, kept as `words`.
        continues: Whether `--ckpt_path` names a run to go on with, in that run's folder.

    Raises:
        ArgumentError: a flag, key or value that does not exist or does not fit.
        ValueError: model and datamodule disagree about a size.
    """

    def __init__(self, options: Callable[..., Any], args: list[str], continues: bool = False) -> None:
        self.options, self.words, self.continues = options, args, continues
        name = options.__module__.rpartition(".")[2]
        args, files = config_paths(spell_out(args, options))
        configs = [read_config(file) for file in files]
        import_named([*args, *configs])
        self.callback_names = callback_names(args, configs)
        self.run_dir: Path | None = None
        super().__init__(
            args=args,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": "lightning_vision " + name},
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Trainer, "trainer")
        for base, key in ((LightningModule, "model"), (LightningDataModule, "data")):
            parser.add_lightning_class_args(base, key, subclass_mode=True, required=False)
        for name in self.callback_names:
            parser.add_subclass_arguments(Callback, f"callbacks.{name}", required=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.option_names = parser.add_function_arguments(self.options, skip={"cli"})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            with own_defaults():
                self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ArgumentError(None, explain(str(error), parser)) from error

    def instantiate_classes(self) -> None:
        given = self.config.get("model.init_args") or Namespace()
        typed = {name: given[name] for name in FROM_DATA if given.get(name) is not None}
        if self.config.get("data") is not None:
            for name in FROM_DATA:
                if name in given and name not in typed:
                    fill = partial(_from_data, name)
                    self.parser.link_arguments("data", f"model.init_args.{name}", fill, apply_on="instantiate")
        try:
            self.config_init = self.parser.instantiate(self.config)
        except Exception as error:
            raise unwrapped(error) from None
        self.datamodule = self.config_init.get("data")
        self.model = self.config_init.get("model")
        changes = changing(vars(self.config_init.get("callbacks") or Namespace()).values())
        if self.model is None and (path := self.config.get("ckpt_path")):
            self.model = module_to_change(path, self.checkpoint or {}, changes)
        for name, value in typed.items():
            found = getattr(self.datamodule, name, value)
            if found != value:
                source = type(self.datamodule).__name__
                raise ValueError(f"--model.{name} is {value} but {source} has {found}; drop one of the two")
        if isinstance(self.model, VisionModule) and self.checkpoint is not None and not (changes and self.continues):
            # Here, so that weights of another architecture are refused while nothing is written.
            load_changed(self.model, self.checkpoint, changes)
        self.trainer = self.instantiate_trainer()
        if self.run_dir is not None:
            open_run(self.run_dir)

    def before_instantiate_classes(self) -> None:
        checkpoint = self.config.get("ckpt_path")
        if checkpoint == "last":
            self.config["ckpt_path"] = checkpoint = str(newest_checkpoint(self.config.trainer))
        self.checkpoint = load_checkpoint(checkpoint) if checkpoint else None
        if self.checkpoint is not None and self.config.get("model") is not None:
            drop_superseded(self.config.model)
        self.run_dir = place_run(self.config.trainer, Path(checkpoint) if checkpoint and self.continues else None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self.config_init["trainer"], **kwargs}
        named = self.config_init.get("callbacks") or Namespace()
        callbacks = {name: named[name] for name in self.callback_names if named.get(name)}
        for name, callback in callbacks.items():
            if isinstance(callback, Method) and callback.name is None:
                callback.name = name
        return self._instantiate_trainer(config, list(callbacks.values()))


def run(command: ModuleType, args: list[str]) -> Result:
    """Build what `args` describe, hand it to `command.run` and gather what was measured and written."""
    continues = getattr(command, "CONTINUES", False)
    with without_advice(continues):
        cli = VisionCLI(command.run, args, continues)
        options = {name: cli.config_init.get(name) for name in cli.option_names}
        with unused_dropped(cli):
            output = command.run(cli, **options)
    savers = [saver for saver in cli.trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    best = next((saver.best_model_path for saver in sorted(savers, key=lambda saver: saver.monitor is None)), "")
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    return Result(metrics=metrics, best_ckpt=best or None, run_dir=str(cli.run_dir or "") or None, output=output)


def _from_data(name: str, datamodule: LightningDataModule) -> Any:
    try:
        return getattr(datamodule, name)
    except AttributeError:
        source = type(datamodule).__name__
        raise ValueError(f"{source} has no attribute `{name}` to size the model; pass --model.{name}") from None

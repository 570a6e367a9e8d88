"""What Lightning keeps private and the base reads; red here means that Lightning has changed it."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import nn


class Listening(LightningModule):
    """Notes what it can see while it is made and while it trains."""

    def __init__(self, layer: nn.Module | None = None, depth: int = 1):
        super().__init__()
        self.given = _given_hyperparameters.get()
        self.weight = nn.Parameter(torch.zeros(()))
        self.updates: list[bool] = []

    def training_step(self, batch, batch_idx):
        self.updates.append(self._trainer._logger_connector.should_update_logs)
        return (self.weight - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**quiet | {"accelerator": "cpu", "logger": False, "max_epochs": 1} | options)


def test_while_the_command_makes_a_module_its_text_is_given():
    """checkpoints.save_hyperparameters"""
    args = ["--model.layer=torch.nn.Linear", "--model.layer.in_features=2", "--model.layer.out_features=3"]
    cli = LightningCLI(Listening, run=False, args=args, save_config_callback=None, trainer_defaults={"logger": False})
    layer = cli.model.given["layer"]

    assert layer["class_path"] == "torch.nn.Linear"
    assert (layer["init_args"]["in_features"], layer["init_args"]["out_features"]) == (2, 3)
    assert cli.model.given["depth"] == 1


def test_without_the_command_no_text_is_given():
    assert Listening().given is None
    assert _given_hyperparameters.get() is None


@pytest.mark.parametrize(
    ("accumulate", "updates"),
    [(1, [False, True, False, True, False, True]), (3, [False, False, False, True, True, True])],
    ids=["every batch steps", "windows of 3"],
)
def test_the_connector_knows_which_batch_reaches_the_loggers(accumulate, updates):
    """scalar_log.log"""
    module = Listening()
    run = trainer(log_every_n_steps=2, accumulate_grad_batches=accumulate)
    run.fit(module, torch.zeros(6, 1))

    assert module.updates == updates


def test_a_module_without_a_trainer_can_be_told():
    """scalar_log: `trainer` raises, `_trainer` does not."""
    module = Listening()
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        _ = module.trainer
    assert module._trainer is None

    run = trainer()
    run.fit(module, torch.zeros(2, 1))
    assert module._trainer is run

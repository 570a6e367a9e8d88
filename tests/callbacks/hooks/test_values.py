"""The values seam on Trainers: numbers follow `global_step`, are there before a batch is augmented, and go back.

The method here writes the step into each number; the curves of the real ones are proved beside them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vision.callbacks import BornAgain, MixUp
from lightning_vision.callbacks.hooks.values import Moment, Values
from support.compare import seeded
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import PastLightning, Plain, TwoOptimizers
from support.trainers import quiet_trainer


class Steps(Values):
    """Each number is what it was, and a hundredth more for every step."""

    neutral = ({"attributes": ()},)

    def __init__(self, *attributes: str, tried: Sequence[float] = (), name: str | None = None) -> None:
        super().__init__(name=name)
        self.attributes, self.tried = attributes, tried

    def names(self, pl_module: Any) -> Sequence[str]:
        return self.attributes

    def value(self, name: str, own: float, moment: Moment) -> float:
        return own + moment.step / 100

    def bounds(self, name: str, own: float) -> Sequence[float]:
        return self.tried


class Heated(Plain):
    """Divides its logits by a temperature that lies in a buffer, and notes what a step sees."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.register_buffer("temperature", torch.tensor(2.0))
        self.seen: list[float] = []

    def forward(self, image: torch.Tensor) -> Any:
        return super().forward(image) / self.temperature

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(round(float(self.temperature), 6))
        return super().training_step(batch, batch_idx)


class Notes(Callback):
    """What `read` reads when a batch has come, and in validation."""

    def __init__(self, read: Callable[[Any, Any], float]) -> None:
        self.read, self.trained, self.validated = read, [], []  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.trained.append(round(float(self.read(trainer, pl_module)), 6))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(round(float(self.read(trainer, pl_module)), 6))


def trained(module: Any, *callbacks: Callback, count: int = 30, loader: Any = None, **options: Any) -> Any:
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2, "num_sanity_val_steps": 0} | options)
    trainer.fit(module, loader or plain_loader(count), plain_loader(12))
    return trainer


def dropout(trainer: Any, pl_module: Any) -> float:
    return float(pl_module.network[3].p)


def test_numbers_follow_optimizer_steps_in_windows_and_validation_sees_the_last() -> None:
    notes = Notes(dropout)
    module = Plain(dropout=0.1)
    trained(module, Steps("network.3.p"), notes, accumulate_grad_batches=2)

    assert notes.trained == [0.1, 0.1, 0.11, 0.11, 0.12, 0.13, 0.13, 0.14, 0.14, 0.15]
    assert notes.validated == [0.12, 0.15]
    assert module.network[3].p == 0.1


def test_they_are_there_before_the_datamodule_changes_the_batch() -> None:
    class Data(LightningDataModule):
        magnitude, seen = 5, []  # type: ignore[var-annotated]

        def train_dataloader(self) -> Any:
            return plain_loader(18)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen.append(self.magnitude)
            return batch

    data = Data()
    trainer = quiet_trainer(callbacks=[Steps("datamodule.magnitude")], max_epochs=2, limit_val_batches=0)
    trainer.fit(Plain(), datamodule=data)

    assert data.seen == pytest.approx([5, 5.01, 5.02, 5.03, 5.04, 5.05])
    assert data.magnitude == 5 and isinstance(data.magnitude, int)


@pytest.mark.parametrize("error", [None, RuntimeError("a step"), KeyboardInterrupt()])
def test_all_goes_back_when_the_fit_is_over_or_broken_off(error: BaseException | None) -> None:
    class Breaks(Heated):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.global_step == 3 and error is not None:
                raise error

    mixup, module = MixUp(alpha=0.4), Breaks()
    ramp = Steps("temperature", "callbacks.MixUp.alpha", "optimizer.weight_decay", "network.3.p")
    trainer: Any = quiet_trainer(callbacks=[ramp, mixup], max_epochs=1, limit_val_batches=0)
    try:
        trainer.fit(module, plain_loader(30))
    except (RuntimeError, SystemExit, KeyboardInterrupt):
        assert error is not None

    own = (float(module.temperature), mixup.alpha, module.network[3].p)
    assert own == (2.0, 0.4, 0.0)
    assert trainer.strategy.optimizers == [] or trainer.optimizers[0].param_groups[0]["weight_decay"] == 1e-3
    assert module.seen == [2.0, 2.01, 2.02, 2.03, 2.04][: 5 if error is None else 3]


def test_a_number_of_the_class_is_the_classs_again() -> None:
    class Warm(Plain):
        temperature = 4.0

    module, notes = Warm(), Notes(lambda trainer, pl_module: pl_module.temperature)
    trained(module, Steps("temperature", tried=(1.0,)), notes, max_epochs=1)

    assert notes.trained == [4.0, 4.01, 4.02, 4.03, 4.04]
    assert "temperature" not in vars(module)
    assert (module.temperature, Warm.temperature) == (4.0, 4.0)


def test_a_second_fit_begins_with_what_was_there_before_the_first() -> None:
    module, ramp = Heated(), Steps("temperature")
    for _ in range(2):
        trained(module, ramp, max_epochs=1)

    assert module.seen == [2.0, 2.01, 2.02, 2.03, 2.04] * 2


@pytest.mark.parametrize("every", [3, 5])
def test_a_resumed_run_knows_what_a_buffer_was_before_the_fit(every: int, tmp_path: Path) -> None:
    """The file holds the buffer as it was at that step, and groups as the module made them."""

    def run(module: Any, steps: int, path: str | None = None) -> Any:
        saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=every, save_top_k=-1)
        callbacks = [Steps("temperature", "optimizer.weight_decay"), saved]
        options: dict[str, Any] = {"max_steps": steps, "limit_val_batches": 0, "enable_checkpointing": True}
        trainer = quiet_trainer(callbacks=callbacks, **options)
        trainer.fit(module, ResumableLoader(labelled_images(30), 6), ckpt_path=path)
        return module

    straight = run(seeded(Heated), 9)
    file = tmp_path / f"step={every}.ckpt"
    state = torch.load(file, weights_only=True)
    resumed = run(seeded(Heated), 9, str(file))

    assert state["state_dict"]["temperature"] == pytest.approx(2 + (every - 1) / 100)
    assert state["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 1e-3
    assert resumed.seen == straight.seen[every:] == [round(2 + step / 100, 6) for step in range(every, 9)]
    assert all(it.equal(resumed.state_dict()[name]) for name, it in straight.state_dict().items())
    assert float(resumed.temperature) == 2.0


@pytest.mark.parametrize("alone", [False, True])
def test_files_hold_hyperparameters_as_they_were_before_the_fit(alone: bool, tmp_path: Path) -> None:
    class Configured(Plain):
        def __init__(self, temperature: float = 4.0, loss_: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    module = Configured(loss_={"weights": [1.0, 2.0]})
    steps = Steps("hparams.temperature", "hparams.loss_.weights.1")
    saved = ModelCheckpoint(tmp_path, "file", every_n_train_steps=4, save_weights_only=alone)
    notes = Notes(lambda trainer, pl_module: pl_module.hparams["temperature"])
    trained(module, steps, saved, notes, enable_checkpointing=True, max_epochs=1)

    kept = torch.load(tmp_path / "file.ckpt", weights_only=True)["hyper_parameters"]
    assert kept == dict(module.hparams) == {"temperature": 4.0, "loss_": {"weights": [1.0, 2.0]}}
    assert notes.trained == [4.0, 4.01, 4.02, 4.03, 4.04]


def test_where_steps_are_two_a_batch_both_count() -> None:
    notes = Notes(dropout)
    trained(TwoOptimizers(dropout=0.1), Steps("network.3.p"), notes, max_epochs=1)

    assert notes.trained == [0.1, 0.12, 0.14, 0.16, 0.18]


def test_a_module_that_fetches_its_batches_itself_sees_them_too() -> None:
    seen = []

    class Fetches(Plain):
        def training_step(self, dataloader_iter: Any) -> Any:
            seen.append(round(self.network[3].p, 6))
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    trained(Fetches(dropout=0.1), Steps("network.3.p"), max_steps=4, limit_val_batches=0)

    assert seen == [0.1, 0.11, 0.12, 0.13]


def test_each_training_of_a_fit_begins_anew() -> None:
    def decay(trainer: Any, pl_module: Any) -> float:
        return float(trainer.optimizers[0].param_groups[0]["weight_decay"])

    notes = Notes(decay)
    trained(Plain(), Steps("optimizer.weight_decay"), BornAgain(generations=2), notes)

    assert notes.trained == pytest.approx([0.001, 0.011, 0.021, 0.031, 0.041] * 2)


def test_two_that_set_one_number_are_refused_by_whatever_names() -> None:
    message = r"^Steps: Steps and Steps would both set network.3.p; keep one of them\.$"
    with pytest.raises(ValueError, match=message):
        trained(Plain(), Steps("network.3.p", name="a"), Steps("network.*.p", name="b"))
    with pytest.raises(ValueError, match=r"would both set optimizer\.momentum"):
        trained(Plain(), Steps("optimizer.momentum", "optimizer.momentum"))


def test_a_value_that_its_owner_refuses_is_so_before_the_first_batch() -> None:
    class Bounded(Plain):
        _rate = 0.5
        rate = property(lambda self: self._rate)

        @rate.setter
        def rate(self, value: float) -> None:
            if value > 1:
                raise ValueError(f"Bounded: {value} is above 1.")
            self._rate = value

    module = Bounded()
    with pytest.raises(ValueError, match=r"^Steps: rate does not take 1.5: Bounded: 1.5 is above 1\.$"):
        trained(module, Steps("rate", tried=(0.2, 1.5)))

    assert (module.global_step, module.rate) == (0, 0.5)


def test_groups_that_come_later_are_refused() -> None:
    class Grows(Plain):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.global_step == 2:
                self.optimizers().add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})

    message = (
        r"^Steps: SGD of Grows had 1 parameter groups when training was set up and has 2 now, whose own weight_decay "
        r"is not known; return all groups from configure_optimizers\.$"
    )
    with pytest.raises(ValueError, match=message):
        trained(Grows(), Steps("optimizer.weight_decay"))


def test_steps_past_lightning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Steps: SGD was stepped past Lightning"):
        trained(PastLightning(), Steps("network.3.p"))


def test_mixup_whose_alpha_is_zero_for_a_while_mixes_nothing_then() -> None:
    mixed = []

    class FromNothing(Steps):
        def value(self, name: str, own: float, moment: Moment) -> float:
            return 0.0 if moment.step < 3 else own

    class Noting(MixUp):
        def mix(self, images: Any, draw: Any) -> Any:
            mixed.append(self.alpha)
            return super().mix(images, draw)

    trained(Plain(), FromNothing("callbacks.Noting.alpha"), Noting(alpha=0.4), max_epochs=1)

    assert mixed == [0.4, 0.4]

"""Scores and files are the average's, training is untouched, whatever is saved when and whatever fails where."""

import os
import pickle
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch.utils.data import DataLoader, Subset

from lightning_vision.callbacks import EMA, ExactResume, GracefulInterrupt
from lightning_vision.callbacks.hooks.masks import Masks
from support.data import ResumableLoader, labelled_images
from support.modules import PastLightning, Plain
from support.resuming import KilledError, Recorder
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


def loaders(rank=0, world_size=1):
    """Train and validation, four batches in an order that no epoch changes."""
    val = Subset(labelled_images(24, seed=1), range(rank, 24, world_size))
    return ResumableLoader(labelled_images(60), 6, rank, world_size), DataLoader(val, 6)


def trainer_with(*callbacks, **options):
    checkpointing = any(isinstance(it, ModelCheckpoint) for it in callbacks)
    settings = {"num_sanity_val_steps": 0, "enable_checkpointing": checkpointing, "max_epochs": 3}
    return quiet_trainer(callbacks=list(callbacks), **settings | options)


def seeded(module=Plain):
    torch.manual_seed(5)
    return module()


def copy_of(values):
    return {name: value.clone() for name, value in values.items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def loaded(path):
    return torch.load(path, weights_only=True)


def loss_of(weights, module=Plain):
    """Mean validation loss of a state, computed by a module that has met no callback."""
    judge = module()
    judge.load_state_dict(weights)
    return trainer_with().validate(judge, loaders()[1], verbose=False)[0]["val/loss"]


class Spy(Callback):
    """Keeps the training weights and the average after each batch, and the weights that validation sees."""

    def __init__(self, ema):
        self.ema, self.raw, self.average, self.scored = ema, [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.raw.append(copy_of(pl_module.state_dict()))
        self.average.append(copy_of(self.ema.average))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.scored.append(copy_of(pl_module.state_dict()))


def test_training_is_that_of_a_run_without_it():
    ema, rows = EMA(decay=0.9), []
    for callbacks in ([ema], []):
        plain, recorder = seeded(), Recorder()
        trainer_with(*callbacks, logger=recorder, log_every_n_steps=1).fit(plain, *loaders())
        rows.append([(step, row["train/loss_step"]) for step, row in recorder.rows if "train/loss_step" in row])

    assert rows[0] == rows[1] != []
    assert same(ema.state_dict()["raw"], {name: plain.state_dict()[name] for name in ema.average})


def test_switched_off_it_touches_nothing():
    module, ema = seeded(), EMA(decay=0.0)
    trainer = trainer_with(ema)
    trainer.fit(module, *loaders())

    assert {} == ema.state_dict() == ema.average
    assert "lightning_module_state_dict" not in vars(trainer.strategy)


def test_validation_scores_the_average_and_gives_the_weights_back():
    module, ema = seeded(), EMA(decay=0.9)
    spy = Spy(ema)
    trainer_with(ema, spy).fit(module, *loaders())

    # What the last batch of each epoch left, integers of the module and averages of the rest, in each of 4 batches.
    expected = [spy.raw[last] | spy.average[last] for last in (9, 19, 29) for _ in range(4)]
    assert all(same(left, right) for left, right in zip(spy.scored, expected, strict=True))
    assert same(spy.scored[-1], module.state_dict())


class EveryMoment(Callback):
    """Saves a full and a weights-only file at many moments, and keeps the average as it was then."""

    def __init__(self, ema, folder):
        self.ema, self.folder, self.averages = ema, folder, {}

    def _save(self, trainer, moment):
        for weights_only in (False, True):
            name = f"{moment}-{trainer.global_step}-{weights_only}.ckpt"
            trainer.save_checkpoint(self.folder / name, weights_only=weights_only)
            self.averages[name] = copy_of(self.ema.average)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % 4 == 0:
            self._save(trainer, "batch")

    def on_validation_batch_end(self, trainer, *_):
        self._save(trainer, "validating")

    def on_validation_end(self, trainer, *_):
        self._save(trainer, "validated")

    def on_train_epoch_end(self, trainer, *_):
        self._save(trainer, "epoch")

    def on_train_end(self, trainer, *_):
        self._save(trainer, "end")

    def on_fit_end(self, trainer, *_):
        self._save(trainer, "fit")

    def teardown(self, trainer, pl_module, stage):
        if stage == "fit":
            self._save(trainer, "teardown")

    def on_exception(self, trainer, *_):
        self._save(trainer, "exception")


@pytest.mark.parametrize("first", [True, False], ids=["heard before it", "heard after it"])
def test_files_hold_the_average_whenever_they_are_written(first, tmp_path):
    module, ema = seeded(), EMA(decay=0.9)
    saver = EveryMoment(ema, tmp_path)
    trainer = trainer_with(*((saver, ema) if first else (ema, saver)), max_epochs=2)
    trainer.fit(module, *loaders())
    for weights_only in (False, True):
        trainer.save_checkpoint(tmp_path / f"after-{weights_only}.ckpt", weights_only=weights_only)
        saver.averages[f"after-{weights_only}.ckpt"] = ema.average

    moments = {name.split("-")[0] for name in saver.averages}
    assert {"batch", "validating", "validated", "epoch", "end", "fit", "teardown", "after"} == moments
    for name, average in saver.averages.items():
        file = loaded(tmp_path / name)
        assert module.state_dict().keys() == file["state_dict"].keys()
        assert same(average, {it: file["state_dict"][it] for it in average}), name
        assert ("EMA" in file.get("callbacks", {})) == ("False" in name)


class Failing(Plain):
    """Raises in the second batch of the second validation, or in the 14th training step."""

    where = "validation"

    def training_step(self, batch, batch_idx):
        if self.where == "step" and self.trainer.global_step == 13:
            raise KilledError
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.where == "validation" and self.trainer.global_step == 20 and batch_idx == 1:
            raise KilledError
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("where", ["validation", "step"])
def test_an_exception_gives_the_weights_back_and_its_files_hold_the_average(where, tmp_path):
    ema, modules = EMA(decay=0.9), []
    saver = EveryMoment(ema, tmp_path)
    for trainer in (trainer_with(), trainer_with(ema, saver)):
        modules.append(seeded(Failing))
        modules[-1].where = where
        with pytest.raises(KilledError):
            trainer.fit(modules[-1], *loaders())
    plain, module = modules

    assert same(plain.state_dict(), module.state_dict())
    assert "lightning_module_state_dict" not in vars(trainer.strategy)
    assert "teardown" not in vars(trainer.strategy)
    for weights_only in (False, True):
        name = f"exception-{trainer.global_step}-{weights_only}.ckpt"
        state = loaded(tmp_path / name)["state_dict"]
        assert same(saver.averages[name], {it: state[it] for it in saver.averages[name]})
        assert not torch.equal(state["network.0.weight"], plain.network[0].weight)


def scores(trainer, module, **options):
    """Losses of validate, test and predict, which must agree on one loader."""
    val = loaders()[1]
    validated = trainer.validate(module, val, verbose=False, **options)[0]["val/loss"]
    tested = trainer.test(module, val, verbose=False, **options)[0]["test/loss"]
    logits = torch.cat(trainer.predict(module, val, **options))
    target = torch.cat([it[1] for it in loaders()[1]])
    assert pytest.approx(validated, rel=1e-5) == torch.nn.functional.cross_entropy(logits, target).item()
    assert validated == tested
    return validated


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_best_file_scores_what_was_scored_on_the_same_and_on_another_trainer(weights_only, tmp_path):
    module, ema = seeded(), EMA(decay=0.9)
    # The first of the three is the best: two later averages must not stand in for it.
    best = ModelCheckpoint(tmp_path, monitor="val/loss", mode="max", save_weights_only=weights_only)
    trainer = trainer_with(ema, best)
    trainer.fit(module, *loaders())
    last = trainer.callback_metrics["val/loss"].item()
    expected = best.best_model_score.item()

    assert last == scores(trainer, module)
    options = {"ckpt_path": best.best_model_path, "weights_only": True}
    assert expected != last
    assert expected == scores(trainer, module, ckpt_path="best", weights_only=True)
    assert expected == scores(trainer, module)
    assert expected == scores(trainer_with(EMA(decay=0.5)), Plain(), **options)
    assert expected == scores(trainer_with(), Plain(), **options)


class Half(Masks):
    """After step 5 every second weight of the head is zero."""

    neutral = "for tests"

    def due(self, step):
        return step == 5

    def masks(self, step, weights):
        kept = torch.ones_like(weights["network.5.weight"], dtype=torch.bool)
        kept[:, ::2] = False
        return {"network.5.weight": kept}


@pytest.mark.parametrize("every_n_steps", [1, 7])
def test_the_average_of_masked_weights_is_masked_from_the_step_on_that_masks_them(every_n_steps):
    module, ema = seeded(), EMA(decay=0.9, every_n_steps=every_n_steps)
    spy = Spy(ema)
    trainer_with(ema, Half(), spy).fit(module, *loaders())
    heads = [it["network.5.weight"] for it in spy.average]

    assert all(head[:, ::2].count_nonzero() == 180 for head in heads[:4])
    assert all(head[:, ::2].count_nonzero() == 0 for head in heads[4:])
    assert all(head[:, 1::2].count_nonzero() == 180 for head in heads)
    assert module.network[5].weight[:, ::2].count_nonzero() == 0


class FilesHoldRaw(EMA):
    def _with_average(self, proceed):
        return proceed()


class ScoresRaw(EMA):
    def on_validation_start(self, trainer, pl_module):
        pass


class LeavesRaw(EMA):
    def _show(self, live):
        # Validation runs without gradients; what is left is the end of the fit.
        if not torch.is_grad_enabled():
            super()._show(live)


@pytest.mark.parametrize("kind", [EMA, FilesHoldRaw, ScoresRaw, LeavesRaw])
def test_scores_files_and_the_fitted_module_agree_and_a_wrong_one_is_noticed(kind, tmp_path):
    module, writer = seeded(), ModelCheckpoint(tmp_path, "file", every_n_train_steps=30)
    trainer = trainer_with(kind(decay=0.9), writer)
    trainer.fit(module, *loaders())
    found = {
        "scored": trainer.callback_metrics["val/loss"].item(),
        "filed": loss_of(loaded(tmp_path / "file.ckpt")["state_dict"]),
        "held": loss_of(module.state_dict()),
    }
    odd = {EMA: None, FilesHoldRaw: "filed", ScoresRaw: "scored", LeavesRaw: "held"}[kind]
    agreed = {value for name, value in found.items() if name != odd}

    assert len(agreed) == 1
    assert odd is None or found[odd] not in agreed


def test_lightnings_own_average_scores_other_weights_than_the_best_files(tmp_path):
    """When this turns red, Lightning has mended it."""
    module = seeded()
    best = ModelCheckpoint(tmp_path, monitor="val/loss", mode="max")
    trainer = trainer_with(EMAWeightAveraging(decay=0.9), best)
    trainer.fit(module, *loaders())
    tested = trainer.test(module, loaders()[1], ckpt_path="best", weights_only=True, verbose=False)

    assert best.best_model_score.item() != tested[0]["test/loss"]


def resumed_and_straight(folder, saved_every, resume_at, module=Plain, rank=0, world_size=1, **options):
    """Final weights and callback state of a run, and of the one that continued from a file of it."""
    ends = []
    for ckpt_path in (None, folder / f"step={resume_at}.ckpt"):
        torch.manual_seed(5 if ckpt_path is None else 6)
        made, ema = module(), EMA(decay=0.9, every_n_steps=2)
        writer = ModelCheckpoint(folder, "{step}", every_n_train_steps=saved_every, save_top_k=-1)
        trainer = trainer_with(ema, ExactResume(), writer, **options)
        trainer.fit(made, *loaders(rank, world_size), ckpt_path=ckpt_path, weights_only=True)
        state = ema.state_dict()
        ends.append({**made.state_dict(), **{f"raw.{it}": value for it, value in state["raw"].items()}})
        ends[-1] |= {f"average.{it}": value for it, value in state["average"].items()}
        ends[-1]["counters"] = torch.tensor([state["updates"], state["steps"]])
    return ends


@pytest.mark.parametrize(("saved_every", "resume_at"), [(7, 7), (7, 14), (10, 20)])
def test_a_resumed_run_equals_the_straight_one(saved_every, resume_at, tmp_path):
    straight, resumed = resumed_and_straight(tmp_path, saved_every, resume_at)

    assert same(straight, resumed)


class CompiledPart(Plain):
    def __init__(self):
        super().__init__()
        self.network = torch.compile(self.network, backend="eager")


def test_a_compiled_part_is_averaged_under_its_plain_names_and_saved_under_its_own(tmp_path, compiler):
    plain, _ = resumed_and_straight(tmp_path / "plain", 7, 7)
    straight, resumed = resumed_and_straight(tmp_path, 7, 7, CompiledPart)

    assert same(straight, resumed)
    assert same(plain, {name.replace("_orig_mod.", ""): value for name, value in straight.items()})
    assert "network._orig_mod.0.weight" in loaded(tmp_path / "step=7.ckpt")["state_dict"]


def on_two_ranks(folder):
    rank = torch.distributed.get_rank()
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    straight, resumed = resumed_and_straight(folder, 3, 3, rank=rank, world_size=2, **options)
    return copy_of(straight), copy_of(resumed)


def test_two_processes_end_with_one_average_and_resume_exactly(tmp_path, two_ranks):
    (straight, resumed), (other, other_resumed) = two_ranks(on_two_ranks, tmp_path)

    # Batch norm's training statistics are each rank's own; the averaged ones are rank 0's everywhere.
    own = {name for name in straight if name.startswith("raw.") and "running" in name}
    assert any(not torch.equal(straight[name], other[name]) for name in own)
    assert same({**straight, **{name: other[name] for name in own}}, other)
    assert same(straight, resumed)
    assert same(other, other_resumed)


def test_a_fit_that_is_continued_continues_the_average_and_a_new_one_starts_afresh():
    straight, module = seeded(), seeded()
    whole, halves = EMA(decay=0.9), EMA(decay=0.9)
    trainer_with(whole, max_epochs=2).fit(straight, *loaders())
    trainer = trainer_with(halves, max_epochs=1)
    trainer.fit(module, *loaders())
    first = halves.updates
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, *loaders())

    assert (first, halves.updates, whole.updates) == (10, 20, 20)
    trainer_with(halves, max_epochs=1).fit(module, *loaders())
    assert halves.updates == 10


def test_weights_that_somebody_loads_between_two_fits_are_kept():
    module, ema, other = seeded(), EMA(decay=0.9), Plain()
    trainer = trainer_with(ema, max_epochs=1)
    trainer.fit(module, *loaders())
    module.load_state_dict(other.state_dict())

    assert loss_of(other.state_dict()) == trainer.validate(module, loaders()[1], verbose=False)[0]["val/loss"]
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, *loaders())
    assert ema.updates == 10


def test_an_average_without_an_update_is_neither_scored_nor_written(tmp_path):
    ema, modules, losses = EMA(decay=0.9, start_step=100), [], []
    for trainer in (trainer_with(), trainer_with(ema)):
        modules.append(seeded())
        trainer.fit(modules[-1], *loaders())
        losses.append(trainer.callback_metrics["val/loss"])

    assert losses[0] == losses[1]
    assert same(modules[0].state_dict(), modules[1].state_dict())
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    assert "EMA" not in loaded(tmp_path / "file.ckpt")["callbacks"]


class Unusual(Plain):
    """A tied weight, a mask of minus infinities, an unsaved buffer, a buffer that is replaced, a half-precision one."""

    def __init__(self):
        super().__init__()
        self.tied = self.network[5].weight
        self.register_buffer("mask", torch.full((2,), -torch.inf))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("last", torch.zeros(1))
        self.low = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def training_step(self, batch, batch_idx):
        self.last = batch[0].mean()[None]
        with torch.no_grad():
            self.low -= 0.0625
        return super().training_step(batch, batch_idx)


def test_unusual_tensors_are_right(tmp_path):
    """Of w = 1, then t / 16 less each step, half precision: m_10 = 1 - (10 - 1 + 2^-10) / 16, rounded at the end."""
    module, ema = seeded(Unusual), EMA(decay=0.5, warmup=1.0)
    trainer = trainer_with(ema, max_epochs=1)
    trainer.fit(module, *loaders())
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    state = loaded(tmp_path / "file.ckpt")["state_dict"]

    assert module.tied is module.network[5].weight
    assert torch.equal(state["tied"], state["network.5.weight"])
    assert bool(torch.isneginf(state["mask"]).all())
    assert {"mask", "scratch", "network.5.weight"}.isdisjoint(ema.average)  # the tied weight goes by its first name
    assert ema.average["low"].item() == 1 - (9 + 2**-10) / 16
    assert torch.equal(torch.tensor([1 - (9 + 2**-10) / 16]).bfloat16(), module.low.detach())
    assert (ema.average["last"] - ema.state_dict()["raw"]["last"]).abs().item() > 0


def test_a_run_that_switches_it_off_goes_on_with_the_trained_weights(tmp_path):
    module, ema = seeded(), EMA(decay=0.9)
    trainer = trainer_with(ema, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=10), max_epochs=1)
    trainer.fit(module, *loaders())
    switched_off = Plain()
    trainer_with(EMA(decay=0.0), max_epochs=1).fit(
        switched_off, *loaders(), ckpt_path=tmp_path / "step=10.ckpt", weights_only=True
    )

    raw = ema.state_dict()["raw"]
    assert same(raw, {name: switched_off.state_dict()[name] for name in raw})


class CtrlC(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 12:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_resumes_exactly(tmp_path):
    straight, whole, halves = seeded(), EMA(decay=0.9), EMA(decay=0.9)
    trainer_with(whole, ExactResume()).fit(straight, *loaders())
    interrupted = trainer_with(EMA(decay=0.9), ExactResume(), GracefulInterrupt(), CtrlC(), default_root_dir=tmp_path)
    with pytest.raises(SystemExit):
        interrupted.fit(seeded(), *loaders())
    resumed = Plain()
    path = tmp_path / "last-interrupted.ckpt"
    trainer_with(halves, ExactResume()).fit(resumed, *loaders(), ckpt_path=path, weights_only=True)

    assert same(straight.state_dict(), resumed.state_dict())
    assert same(whole.state_dict()["raw"], halves.state_dict()["raw"])


def test_it_pickles_before_and_after_a_fit():
    ema = EMA(decay=0.9)
    pickle.loads(pickle.dumps(ema))
    module = seeded()
    trainer_with(ema, max_epochs=1).fit(module, *loaders())

    assert same(ema.average, pickle.loads(pickle.dumps(ema)).average)


@pytest.mark.parametrize(
    ("rival", "named"),
    [
        (lambda: EMA(decay=0.99, name="slow"), "EMA[slow]"),
        (EMAWeightAveraging, "EMAWeightAveraging"),
        (lambda: StochasticWeightAveraging(0.01), "StochasticWeightAveraging"),
    ],
    ids=["a second EMA", "Lightning's EMA", "Lightning's SWA"],
)
def test_a_second_average_is_refused_before_training(rival, named):
    with pytest.raises(ValueError) as error:
        trainer_with(EMA(decay=0.9), rival()).fit(seeded(), *loaders())

    expected = f"EMA: the Trainer also has {named}, and only one average can be scored and written to files; "
    assert expected + "remove one of them." == str(error.value)
    trainer_with(EMA(decay=0.9), EMA(decay=0.0, name="off"), max_steps=1).fit(seeded(), *loaders())


class Raising(Callback):
    """Raises in the hook that is asked for, once the step is reached, and then never again."""

    def __init__(self, hook, step=0):
        self.hook, self.step = hook, step

    def _maybe(self, hook, trainer):
        if hook == self.hook and trainer.global_step >= self.step:
            self.hook = None
            raise KilledError

    def setup(self, trainer, pl_module, stage):
        self._maybe("setup" if stage == "fit" else "other set-up", trainer)

    def on_train_batch_end(self, trainer, *_):
        self._maybe("on_train_batch_end", trainer)


def continued(trainer, module, epochs, **options):
    trainer.fit_loop.max_epochs = epochs
    trainer.fit(module, *loaders(), **options)


def test_a_fit_that_fails_at_set_up_leaves_the_average_for_the_next():
    modules, averages = [], [EMA(decay=0.9), EMA(decay=0.9)]
    for ema in averages:
        modules.append(seeded())
        each, later = modules[-1], Raising("nowhere")
        trainer = trainer_with(ema, later, max_epochs=1)
        trainer.fit(each, *loaders())
        scored = trainer.callback_metrics["val/loss"].item()
        if len(modules) == 2:
            later.hook = "setup"
            with pytest.raises(KilledError):
                continued(trainer, each, 2)
        assert scored == trainer.validate(each, loaders()[1], verbose=False)[0]["val/loss"]
        continued(trainer, each, 2)

    assert [ema.updates for ema in averages] == [20, 20]
    assert same(*(module.state_dict() for module in modules))


def test_an_exception_between_the_step_and_its_update_does_not_end_the_average():
    module, ema = seeded(), EMA(decay=0.9)
    trainer = trainer_with(Raising("on_train_batch_end", 13), ema)
    with pytest.raises(KilledError):
        trainer.fit(module, *loaders())
    before = ema.updates
    trainer.fit(module, *loaders())

    assert before == 12
    # The batch that raised is trained on, and the average goes on from there.
    assert ema.updates == trainer.global_step - 1 > 20


def test_a_fit_from_a_file_of_a_finished_run_does_not_end_the_average(tmp_path):
    module, ema = seeded(), EMA(decay=0.9)
    trainer = trainer_with(ema, max_epochs=1)
    trainer.fit(module, *loaders())
    trainer.save_checkpoint(tmp_path / "finished.ckpt")
    again, goes_on = Plain(), EMA(decay=0.9)
    second = trainer_with(goes_on, max_epochs=1)
    second.fit(again, *loaders(), ckpt_path=tmp_path / "finished.ckpt", weights_only=True)

    assert same(module.state_dict(), again.state_dict())
    assert goes_on.updates == 10
    assert same(ema.state_dict()["raw"], goes_on.state_dict()["raw"])
    continued(second, again, 2)
    assert goes_on.updates == 20


def test_a_resumed_run_in_double_precision_equals_the_straight_one(tmp_path):
    straight, resumed = resumed_and_straight(tmp_path, 7, 7, precision="64-true")

    assert straight["raw.network.0.weight"].dtype == torch.float64
    assert same(straight, resumed)


class Growing(Plain):
    """Remembers the means of its last batches in a buffer that files hold."""

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(0))

    def training_step(self, batch, batch_idx):
        self.memory = torch.cat([self.memory, batch[0].mean()[None]])[-20:]
        return super().training_step(batch, batch_idx)


def test_a_buffer_that_changes_its_shape_is_refused_at_the_first_update():
    with pytest.raises(ValueError) as error:
        trainer_with(EMA(decay=0.9)).fit(seeded(Growing), *loaders())

    assert str(error.value) == (
        "EMA: the buffer memory had the shape (0,) when the average started and has (1,) now, and the two have no "
        "average; give it its full size from the start, or register it with persistent=False."
    )


def test_steps_that_go_past_lightning_are_refused():
    with pytest.raises(ValueError, match="EMA: SGD was stepped past Lightning"):
        trainer_with(EMA(decay=0.9)).fit(seeded(PastLightning), *loaders())
    trainer_with(EMA(decay=0.0), max_epochs=1).fit(seeded(PastLightning), *loaders())

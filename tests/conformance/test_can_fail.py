"""The suite can fail: a healthy toy passes every check, and toys that break one guarantee each are found.

Each toy differs from the healthy one in a line or two; the table says which check must notice it.
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lightning_vision.callbacks.hooks.method import Method, Place
from lightning_vision.callbacks.hooks.pictures import Pictures
from support.conformance import checks, files, lifecycle, settings
from support.conformance.conditions import Condition
from support.conformance.pairs import either_order
from support.conformance.subjects import Subject, missing_parts
from support.conformance.traces import leftovers


class Healthy(Method):
    """Multiplies the gradients of every step by `factor`, with a power that goes round every seven steps."""

    place = Place.ASCENT
    neutral = ({"factor": 1.0},)

    def __init__(self, factor: float = 0.5, name: str | None = None) -> None:
        super().__init__(name)
        self.factor, self.steps = factor, 0

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.steps = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        self.scale(pl_module, self.factor ** (1 + self.steps % 7))

    def scale(self, pl_module, factor):
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad *= factor

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]


class NeedsABackbone(Healthy):
    def on_fit_start(self, trainer, pl_module):
        assert hasattr(pl_module, "backbone"), "the module has no backbone"


class ActsThoughSwitchedOff(Healthy):
    def scale(self, pl_module, factor):
        super().scale(pl_module, 0.999 * factor)


class ForgetsItsState(Healthy):
    def load_state_dict(self, state_dict):
        pass


class CountsEachBatch(Healthy):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module(batch["image"] if isinstance(batch, dict) else batch[0])


class LogsWhatTheModuleLogs(Healthy):
    def on_train_batch_end(self, trainer, pl_module, *args):
        trainer.logger.log_metrics({"train/loss_step": 0.0}, step=trainer.global_step)


class AddsABuffer(Healthy):
    def on_fit_start(self, trainer, pl_module):
        pl_module.register_buffer("mask", torch.ones(1))


class AddsOptimizerState(Healthy):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            optimizer.state[parameter]["mask"] = torch.ones(1)


class RefusesAfterTwoSteps(Healthy):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.steps == 3:
            raise ValueError(f"{type(self).__name__}: the loss is not what it should be; use another one.")


class RefusesWithoutASentence(Healthy):
    def setup(self, trainer, pl_module, stage):
        raise ValueError(f"{type(self).__name__}: no")


class LeavesAHook(Healthy):
    def on_fit_start(self, trainer, pl_module):
        pl_module.network[0].register_forward_hook(lambda *args: None)


class UndoesAtTheEndOnly(Healthy):
    def on_fit_start(self, trainer, pl_module):
        self.hook = pl_module.network[0].register_forward_hook(lambda *args: None)

    def on_fit_end(self, trainer, pl_module):
        self.hook.remove()


class StrandsSwappedWeights(Healthy):
    def on_validation_start(self, trainer, pl_module):
        pl_module.network[0].weight.data *= 2

    def on_validation_end(self, trainer, pl_module):
        pl_module.network[0].weight.data /= 2


class NeverLikeNew(Healthy):
    def setup(self, trainer, pl_module, stage):
        Method.setup(self, trainer, pl_module, stage)


class DoesNothing(Healthy):
    def scale(self, pl_module, factor):
        pass


class DrawsFromTheGlobalStream(Healthy):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.scale(pl_module, float(torch.rand(())) if self.factor != 1 else 1.0)


class CannotBePickled(Healthy):
    def __init__(self, factor: float = 0.5, name: str | None = None) -> None:
        super().__init__(factor, name)
        self.power = lambda step: 1 + step % 7


class NoisyEvaluation(Healthy):
    def on_test_start(self, trainer, pl_module):
        pl_module.network[-1].bias.data += 0.1


class SeesTheCompiler(Healthy):
    def scale(self, pl_module, factor):
        super().scale(pl_module, factor / 2 if pl_module._compiler_ctx else factor)


class OtherWeightsInWholeFiles(Healthy):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"] = {name: value * 2 for name, value in checkpoint["state_dict"].items()}


class ClaimsNothing(Healthy):
    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        pass


class KeyNamesAKnob(Healthy):
    @property
    def state_key(self):
        return f"{type(self).__qualname__}{self.factor if self.factor != 0.5 else ''}"


class SilencesWarnings(Healthy):
    def on_fit_start(self, trainer, pl_module):
        import warnings

        warnings.simplefilter("ignore")


class HidesAnArgument(Healthy):
    def __init__(self, factor: float = 0.5, name: str | None = None, extra: int = 0) -> None:
        super().__init__(factor, name)


class TakesEveryStrategy(Healthy):
    def setup(self, trainer, pl_module, stage):
        pass


class LeavesRanksApart(Healthy):
    def scale(self, pl_module, factor):
        super().scale(pl_module, factor / (1 + dist.get_rank()))


ORDINARY, MANUAL = Condition(), Condition(module="manual")


def under(condition):
    return lambda subject, folder: checks.under(subject, condition, 0, folder).found


def alone(check):
    return lambda subject, folder: check(subject)


def beside_a_fit(check):
    return lambda subject, folder: check(subject, lifecycle.working(subject))


def of_a_file(check):
    return lambda subject, folder: check(subject, files.write(subject, folder))


CHECKS = {
    "fp32": under(ORDINARY),
    "manual": under(MANUAL),
    "fp16": under(Condition("fp16", accumulate=2)),
    "end of epoch": under(Condition(resume="at its end")),
    "exception in a step": lambda subject, folder: leftovers(subject, ORDINARY, "training_step", 3),
    "exception in validation": lambda subject, folder: leftovers(subject, ORDINARY, "validation_step", 4),
    "compiled_is_plain": alone(lifecycle.compiled_is_plain),
    **{name: alone(vars(settings)[name]) for name in settings.__all__},
    **{
        name: beside_a_fit(vars(lifecycle)[name])
        for name in lifecycle.__all__
        if name not in ("compiled_is_plain", "working")
    },
    **{name: of_a_file(vars(files)[name]) for name in files.__all__ if name != "write"},
}

BROKEN = {
    ActsThoughSwitchedOff: ["fp32", "fp16"],
    ForgetsItsState: ["fp32", "manual", "end of epoch"],
    CountsEachBatch: ["fp32"],
    LogsWhatTheModuleLogs: ["fp32"],
    AddsABuffer: ["fp32", "loads_elsewhere", "leaves_nothing"],
    AddsOptimizerState: ["fp32"],
    RefusesAfterTwoSteps: ["fp32"],
    RefusesWithoutASentence: ["fp32"],
    LeavesAHook: ["leaves_nothing"],
    UndoesAtTheEndOnly: ["exception in a step", "exception in validation"],
    StrandsSwappedWeights: ["exception in validation"],
    NeverLikeNew: ["fits_again"],
    DoesNothing: ["acts"],
    DrawsFromTheGlobalStream: ["fp32", "own_stream_only"],
    CannotBePickled: ["copies_work"],
    NoisyEvaluation: ["evaluates"],
    SeesTheCompiler: ["compiled_is_plain"],
    OtherWeightsInWholeFiles: ["loads_elsewhere", "fp32"],
    ClaimsNothing: ["claims_its_state"],
    KeyNamesAKnob: ["resumes_with_another_setting"],
    SilencesWarnings: ["warns_of_a_plain_loader"],
    HidesAnArgument: ["round_trips"],
    TakesEveryStrategy: ["refuses_what_shards"],
}


def subject_of(kind):
    return Subject(kind, {"factor": 0.5}, Healthy.neutral)


@pytest.mark.parametrize("check", CHECKS)
def test_a_healthy_toy_passes(check, tmp_path, compiler):
    assert CHECKS[check](subject_of(Healthy), tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "check"),
    [(kind, check) for kind, checks in BROKEN.items() for check in checks],
    ids=lambda it: it if isinstance(it, str) else it.__name__,
)
def test_a_broken_toy_is_found(kind, check, tmp_path, compiler):
    try:
        found = CHECKS[check](subject_of(kind), tmp_path)
    except (RuntimeError, ValueError) as error:  # of Lightning or torch, on which the suite fails as well
        found = [str(error)]

    assert found != []


def test_a_toy_that_needs_something_of_the_module_is_found(tmp_path):
    with pytest.raises(AssertionError, match="the module has no backbone"):
        CHECKS["fp32"](subject_of(NeedsABackbone), tmp_path)


def test_a_refusal_needs_a_level_that_explains_it():
    one, other = Condition(), Condition(precision="bf16")
    both = Condition(precision="bf16", clip="norm")

    assert checks.refused_without_reason({one: "", other: "no", both: "no"}) == []
    assert len(checks.refused_without_reason({one: "", other: "", both: "no", Condition(clip="norm"): ""})) == 1
    assert len(checks.refused_without_reason({one: "no", other: ""})) == 1


def test_a_callback_without_yaml_card_place_and_neutral_setting_is_found():
    class Bare(Method):
        pass

    assert missing_parts(Bare) == [
        "one entry of class Bare in cli_configs/callbacks/test_can_fail.yaml",
        "a card in docs/methods whose heading names Bare",
        "Bare.place",
        "Bare.neutral",
    ]
    assert missing_parts(object) == ["object is no Method"]


class Draws(Pictures):
    """A white picture after each validation."""

    title = "toy"

    def __init__(self, every_n_epochs: int = 1, name: str | None = None) -> None:
        fields = {"image_key": "image", "target_key": "target"}
        super().__init__(samples=2, **fields, every_n_epochs=every_n_epochs, name=name)

    def draw(self, pl_module, samples):
        return {"": np.full((8, 8, 3), 255, dtype=np.uint8)}


class DrawsNothing(Draws):
    def draw(self, pl_module, samples):
        return {}


@pytest.mark.parametrize(("kind", "healthy"), [(Draws, True), (DrawsNothing, False)])
def test_one_that_draws_nothing_is_found(kind, healthy):
    subject = Subject(kind, {}, Draws.neutral)

    assert (lifecycle.acts(subject, lifecycle.working(subject)) == []) is healthy


class Unsorted(Healthy):
    """Adds instead of multiplying, and leaves the list's order as it is."""

    setup = TakesEveryStrategy.setup

    def scale(self, pl_module, factor):
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad += 0.1


class RefusesToBeSecond(Unsorted):
    def setup(self, trainer, pl_module, stage):
        if trainer.callbacks[0] is not self:
            raise ValueError(f"{type(self).__name__}: it must come first in the list of callbacks; put it there.")


def test_a_pair_whose_order_matters_is_found():
    assert either_order(subject_of(TakesEveryStrategy), subject_of(Unsorted))[0] != []
    assert either_order(subject_of(TakesEveryStrategy), subject_of(RefusesToBeSecond))[0] != []
    assert either_order(subject_of(Healthy), subject_of(ClaimsNothing)) == ([], "")


def parameters_of_ranks(subject, folder):
    return checks.under(subject, Condition(processes=2), 0, folder)


def test_ranks_that_part_are_found(two_ranks, tmp_path):
    healthy = two_ranks(parameters_of_ranks, subject_of(Healthy), tmp_path / "healthy")
    apart = two_ranks(parameters_of_ranks, subject_of(LeavesRanksApart), tmp_path / "apart")

    assert checks.different_ranks(*healthy) == []
    assert checks.different_ranks(*apart) == ["the ranks have different parameters"]

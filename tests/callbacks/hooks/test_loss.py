"""A term added by the seam gives the weights that a term written into `training_step` gives, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision

from lightning_vision.callbacks.hooks.loss import Loss
from support.data import labelled_images, plain_loader
from support.modules import DictBatches, Plain, TwoOptimizers
from support.resuming import record

WEIGHT = 0.25


def squares(module):
    return sum(parameter.square().sum() for parameter in module.parameters())


class Decay(Loss):
    """Squares of the weights, a draw from the global stream and the batch's brightness, which no parameter moves."""

    def __init__(self, weight=WEIGHT, name=None):
        super().__init__(weights={"decay": weight, "light": weight and 1.0}, name=name)

    def term(self, pl_module, batch, outputs):
        image = batch["image"] if isinstance(batch, dict) else batch[0]
        return {"decay": squares(pl_module), "light": image.mean()}


class Margin(Loss):
    """Features of the trunk in bf16 under autocast, logits of the head."""

    def __init__(self):
        super().__init__(weights={"margin": 0.1}, outputs_of=["network.4", "network"])

    def term(self, pl_module, batch, outputs):
        (features,), (logits,) = outputs["network.4"], outputs["network"]
        again = pl_module.network[5](features)
        return {"margin": again.logsumexp(1).mean() + logits.square().mean()}


class ByHand(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + WEIGHT * squares(self) + 1.0 * batch[0].mean()


class MarginByHand(Plain):
    def training_step(self, batch, batch_idx):
        features = self.network[:5](batch[0])
        logits = self.network[5](features)
        loss = F.cross_entropy(logits, batch[1])
        again = self.network[5](features)
        return loss + 0.1 * (again.logsumexp(1).mean() + logits.square().mean())


class ReturnsDict(Plain):
    def training_step(self, batch):
        self.returned = {"loss": super().training_step(batch, 0), "extra": 1}
        return self.returned


class Skips(Plain):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class ValidatesByTraining(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))


def run(kind, *callbacks, prepare=lambda module: module, loaders=lambda: plain_loader(30), **options):
    torch.manual_seed(0)
    module = prepare(kind())
    torch.manual_seed(1)
    result = record(module, loaders, callbacks, **{"max_epochs": 2, "log_every_n_steps": 1} | options)
    assert result.end is None
    return result


def weights(kind, *callbacks, **options):
    return torch.cat([value.flatten() for value in run(kind, *callbacks, **options).state["weights"].values()])


CONDITIONS = {
    "fp32": {},
    "accumulation with a short last window": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.5},
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"plugins": lambda: MixedPrecision("16-mixed", "cpu")},
    "fp16, accumulated": {"plugins": lambda: MixedPrecision("16-mixed", "cpu"), "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_it_equals_terms_written_by_hand(condition):
    def options():
        return {key: value() if callable(value) else value for key, value in condition.items()}

    plain = weights(Plain, **options())

    for hand, callback in ((ByHand, Decay()), (MarginByHand, Margin())):
        ours = weights(Plain, callback, **options())

        assert torch.equal(weights(hand, **options()), ours)
        assert (ours - plain).abs().max() > 1e-4


def test_a_term_computed_outside_autocast_is_noticed():
    class Outside(Margin):
        def term(self, pl_module, batch, outputs):
            with torch.autocast("cpu", enabled=False):
                return super().term(pl_module, batch, {path: [it[0].float()] for path, it in outputs.items()})

    by_hand = weights(MarginByHand, precision="bf16-mixed")

    assert not torch.equal(by_hand, weights(Plain, Outside(), precision="bf16-mixed"))


def test_a_wrong_sum_is_noticed():
    class Divided(Decay):
        def _add(self, result, values):
            return super()._add(result / 2, {key: value / 2 for key, value in values.items()})

    class Replaced(Decay):
        def _add(self, result, values):
            return super()._add(result.detach(), values)

    by_hand = weights(ByHand, accumulate_grad_batches=2)

    for mutant in (Divided(), Replaced()):
        assert (weights(Plain, mutant, accumulate_grad_batches=2) - by_hand).abs().max() > 1e-3


def test_on_two_ranks_the_gradients_are_averaged(two_ranks):
    class Adapted(Plain):
        def __init__(self):
            super().__init__()
            self.adapter = torch.nn.Linear(10, 10)

    class ThroughAdapter(Loss):
        def __init__(self):
            super().__init__(weights={"adapted": 0.5}, outputs_of=["network"])

        def term(self, pl_module, batch, outputs):
            return {"adapted": pl_module.adapter(outputs["network"][0]).square().mean()}

    class AdaptedByHand(Adapted):
        def training_step(self, batch, batch_idx):
            logits = self(batch[0])
            return F.cross_entropy(logits, batch[1]) + 0.5 * self.adapter(logits).square().mean()

    def both(strategy):
        options = {"strategy": strategy, "devices": 2, "accumulate_grad_batches": 2, "max_epochs": 1}
        ours = run(Adapted, ThroughAdapter(), **options).state["weights"]
        by_hand = run(AdaptedByHand, **options).state["weights"]
        # A rank's running statistics are its own after the last forward.
        shared = [value for name, value in ours.items() if "running" not in name]
        return [torch.equal(by_hand[name], ours[name]) for name in ours], torch.cat([it.flatten() for it in shared])

    cases = ["ddp", "ddp_find_unused_parameters_true"]
    for (equal0, shared0), (equal1, shared1) in zip(*two_ranks(lambda: [both(case) for case in cases]), strict=True):
        assert all(equal0 + equal1)
        assert torch.equal(shared0, shared1)


def test_terms_are_logged_once_a_batch_and_unweighted():
    rows = run(Plain, Decay(), accumulate_grad_batches=1, max_epochs=1).rows
    lights = [row["train/light"] for _, row in rows if "train/light" in row]

    assert lights == [float(image.mean()) for image, _ in plain_loader(30)]
    assert {"train/loss_step", "train/decay"} <= rows[0][1].keys()


def test_two_of_a_class_have_names_of_their_own_in_the_log():
    (_, row), *_ = run(Plain, Decay(name="a"), Decay(name="b"), max_epochs=1).rows

    assert {"train/decay/Decay[a]", "train/decay/Decay[b]"} <= row.keys()
    assert "train/decay" not in row


def test_two_callbacks_add_both_terms():
    both = weights(Plain, Decay(WEIGHT / 2, name="a"), Decay(WEIGHT / 2, name="b"))

    assert torch.allclose(both, weights(ByHand), atol=1e-6)


def test_a_dict_keeps_its_other_entries_and_is_not_written_to():
    class Look(Decay):
        def _add(self, result, values):
            before = result["loss"]
            returned = super()._add(result, values)
            assert result["loss"] is before
            assert returned.keys() == {"loss", "extra"}
            return returned

    assert torch.equal(weights(ByHand), weights(ReturnsDict, Look()))


def test_a_skipped_batch_stays_skipped():
    class Counting(Decay):
        calls = 0

        def term(self, pl_module, batch, outputs):
            self.calls += 1
            return super().term(pl_module, batch, outputs)

    callback = Counting()
    run(Skips, callback, max_epochs=1)

    assert callback.calls == 3


def test_a_dict_batch_is_seen_as_it_is():
    def loader():
        return torch.utils.data.DataLoader([{"image": x, "target": y} for x, y in labelled_images(30)], batch_size=6)

    assert torch.equal(weights(ByHand), weights(DictBatches, Decay(), loaders=loader))


def test_a_validation_that_calls_training_step_is_left_alone():
    def validated(*callbacks):
        rows = run(ValidatesByTraining, *callbacks, loaders=lambda: (plain_loader(30), plain_loader(12)), max_epochs=1)
        return [row for _, row in rows.rows if "val/loss" in row][-1]

    class Nothing(Decay):
        def term(self, pl_module, batch, outputs):
            return {"decay": squares(pl_module) * 0, "light": batch[0].mean() * 0}

    row = validated(Nothing())

    assert row["val/loss"] == validated()["val/loss"]
    assert "train/decay" not in row


@pytest.mark.parametrize("whole", [False, True], ids=["network", "module"])
def test_outputs_of_compiled_modules_are_seen(whole, compiler):
    def compiled(module):
        if whole:
            return torch.compile(module, backend="eager")
        module.network.compile(backend="eager")
        return module

    assert torch.equal(weights(Plain, Margin()), weights(Plain, Margin(), prepare=compiled))


def test_zero_weights_install_nothing():
    class Look(Decay):
        def on_train_start(self, trainer, pl_module):
            assert "training_step" not in vars(pl_module)

        def term(self, pl_module, batch, outputs):
            raise AssertionError

    ours, plain = run(Plain, Look(0.0)), run(Plain)

    assert plain.rows == ours.rows
    assert torch.equal(weights(Plain), weights(Plain, Look(0.0)))


def test_a_term_of_weight_zero_is_logged_and_not_added():
    class Half(Decay):
        def __init__(self):
            Loss.__init__(self, weights={"decay": WEIGHT, "light": 0.0})

        def term(self, pl_module, batch, outputs):
            return super().term(pl_module, batch, outputs) | {"light": torch.tensor(float("inf"))}

    result = run(Plain, Half(), max_epochs=1)

    assert result.rows[0][1]["train/light"] == float("inf")
    assert all(value.isfinite().all() for value in result.state["weights"].values())


@pytest.mark.parametrize("error", [False, True], ids=["end", "exception"])
def test_it_is_undone_and_a_second_fit_works(error):
    class Fails(Margin):
        fail = error

        def term(self, pl_module, batch, outputs):
            if self.fail:
                raise RuntimeError("in the term")
            return super().term(pl_module, batch, outputs)

    callback, module = Fails(), Plain()

    def fit():
        record(module, lambda: plain_loader(12), [callback], max_epochs=1)

    if error:
        with pytest.raises(RuntimeError, match="in the term"):
            fit()
    else:
        fit()

    assert "training_step" not in vars(module)
    assert not any(part._forward_hooks for part in module.modules())
    callback.fail = False
    fit()


class RestsFrom(Margin):
    """Rests from a step on, and is asked for nothing then."""

    def __init__(self, step):
        super().__init__()
        self.step, self.calls, self.own_weight = step, 0, 0.5

    def resting(self, trainer):
        return trainer.global_step >= self.step

    def ahead(self, pl_module, batch):
        assert not self.resting(pl_module.trainer)

    def term(self, pl_module, batch, outputs):
        self.calls += 1
        return super().term(pl_module, batch, outputs)


def test_a_batch_that_it_rests_in_is_one_without_it():
    always, never, later = RestsFrom(0), RestsFrom(10), RestsFrom(3)
    plain, rested = run(Plain, max_epochs=1), run(Plain, always, max_epochs=1)
    logged = [step for step, row in run(Plain, later).rows if "train/margin" in row]

    assert torch.equal(weights(Plain, max_epochs=1), weights(Plain, RestsFrom(0), max_epochs=1))
    assert not torch.equal(weights(Plain, max_epochs=1), weights(Plain, never, max_epochs=1))
    assert plain.rows == rested.rows
    assert (always.calls, never.calls, later.calls) == (0, 5, 3)
    # Lightning repeats what was logged last until the epoch ends.
    assert logged[:3] == [0, 1, 2] and max(logged) <= 4


class Iterates(Plain):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


class Other(Margin):
    def term(self, pl_module, batch, outputs):
        return {"other": torch.zeros(())}


class Vector(Margin):
    def term(self, pl_module, batch, outputs):
        return {"margin": torch.zeros(3)}


class Elsewhere(Margin):
    def __init__(self, path):
        super().__init__()
        self.outputs_of = [path]


class Silent(Plain):
    def training_step(self, batch, batch_idx):
        return {"logits": self(batch[0])}


class Idle(Plain):
    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Identity()


REFUSALS = {
    "manual optimisation": (
        TwoOptimizers,
        lambda: Decay(),
        "Decay: TwoOptimizers optimises manually, so its training_step returns no loss to add a term to; use automatic "
        "optimization, or leave it out.",
    ),
    "iterator": (
        Iterates,
        lambda: Decay(),
        "Decay: training_step of Iterates takes `dataloader_iter`, so its batches cannot be reached; let it take "
        "`batch`.",
    ),
    "path": (
        Plain,
        lambda: Elsewhere("net"),
        "Elsewhere: Plain has no submodule 'net'; name one of its `named_modules()`, such as 'network', 'network.0', "
        "'network.1', 'network.2', 'network.3'.",
    ),
    "uncalled": (
        Idle,
        lambda: Elsewhere("idle"),
        "Elsewhere: the submodule 'idle' was not called in training_step, so it has no output; name one that is.",
    ),
    "names": (Plain, Other, "Other: its terms are ['other'], its weights are of ['margin']."),
    "shape": (Plain, Vector, "Vector: the term 'margin' has the shape (3,); return a scalar."),
    "no loss": (
        Silent,
        Decay,
        "Decay: training_step returned dict without a loss; return a tensor, or a dict with a tensor under 'loss'.",
    ),
}


@pytest.mark.parametrize(("kind", "callback", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_what_it_cannot_do_is_refused_in_a_sentence(kind, callback, sentence):
    with pytest.raises(ValueError) as refusal:
        run(kind, callback())

    assert str(refusal.value) == sentence


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(ValueError, match=rf"^Decay: the weight of 'decay' is {weight}; give a finite number.$"):
        Decay(weight)

"""A step that goes past Lightning is refused, for nothing that counts steps or acts around them would see it."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks.hooks._counted_steps import refuse_uncounted_steps
from lightning_vision.callbacks.hooks.method import Method, Place
from support.compare import distance, seeded
from support.modules import Plain, TwoOptimizers
from support.sam_by_hand import fit


class Counting(Method):
    """Nothing but the refusal."""

    place, neutral = Place.AVERAGES, "it is a test"

    def on_fit_start(self, trainer, pl_module):
        refuse_uncounted_steps(self, trainer)


class Manual(Plain):
    """Steps what `reach` makes of Lightning's optimizer."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def reach(self):
        return self.optimizers()

    def training_step(self, batch, batch_idx):
        image, target = batch
        optimizer = self.reach()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(image), target))
        self.weights = {name: it.detach().clone() for name, it in self.named_parameters()}
        optimizer.step()


class PlainOptimizer(Manual):
    def reach(self):
        return self.optimizers(use_pl_optimizer=False)


class Unwrapped(Manual):
    def reach(self):
        return self.optimizers().optimizer


class Automatic(Plain):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.optimizer.step(optimizer_closure)


class ThroughLightning(Plain):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("kind", [PlainOptimizer, Unwrapped])
def test_a_manual_step_past_lightning_is_refused_before_weights_change(kind):
    module = seeded(kind)
    with pytest.raises(ValueError) as error:
        fit(module, Counting())

    assert str(error.value) == (
        "Counting: SGD was stepped past Lightning, which does not count such a step, so Counting could do nothing; "
        "call `step` of what `self.optimizers()` gives, without `use_pl_optimizer=False` and not of its `.optimizer`."
    )
    assert all(torch.equal(it, module.weights[name]) for name, it in module.named_parameters())


def test_an_automatic_step_past_lightning_is_refused():
    with pytest.raises(ValueError) as error:
        fit(seeded(Automatic), Counting())

    assert str(error.value) == (
        "Counting: SGD was stepped past Lightning, which does not count such a step, so Counting could do nothing; in "
        "the module's `optimizer_step` call `optimizer.step(closure=optimizer_closure)` or "
        "`super().optimizer_step(...)`, not a step of `optimizer.optimizer`."
    )


@pytest.mark.parametrize("kind", [Plain, ThroughLightning, Manual, TwoOptimizers])
def test_steps_through_lightning_are_left_alone(kind):
    expected = fit(seeded(kind)).state

    assert distance(fit(seeded(kind), Counting()).state["weights"], expected["weights"]) == 0.0


def test_after_the_fit_the_optimizer_is_free_again():
    module = seeded(Plain)
    fit(module, Counting())
    module.optimizers(use_pl_optimizer=False).step()

"""Parameters that do not train are named by what is wrong with them, and modules that train are left alone."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_vision.callbacks import UnusedParametersCheck
from lightning_vision.callbacks.verification.unused_parameters_check import grouped
from support.data import plain_loader
from support.four_tasks import TASKS
from support.further_tasks import ALL_TASKS
from support.modules import PastLightning, Plain, TwoOptimizers
from support.trainers import quiet_trainer

DEFAULT = {*TASKS, "GAN"}
SGD = torch.optim.SGD


def check(module, loader=None, steps=2, **settings):
    """Fit four batches under the check."""
    options = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0} | settings.pop("options", {})
    trainer = quiet_trainer(callbacks=[UnusedParametersCheck(steps=steps, **settings)], **options)
    trainer.fit(module, plain_loader() if loader is None else loader)
    return trainer


def said(module, **settings):
    with pytest.raises(RuntimeError, match=r"^UnusedParametersCheck") as caught:
        check(module, action="error", **settings)
    return str(caught.value)


class Spare(Plain):
    """It has a head that no forward calls, and a scale beside the head that it uses."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 10))
        self.network[5].scale = nn.Parameter(torch.ones(()))


class Forgotten(Plain):
    """Its optimizer is given the head alone."""

    def configure_optimizers(self):
        return SGD(self.network[5].parameters(), lr=0.05)


class Dead(Plain):
    """A part of its network is multiplied by zero."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(64, 10)

    def forward(self, image):
        return self.network(image) + 0 * self.side(image.flatten(1))


class OpensLate(Dead):
    """The same by a factor that is trained and starts at zero, so that the side has no gradient in the first step."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, image):
        return self.network(image) + self.gate * self.side(image.flatten(1))


class Twice(TwoOptimizers):
    """Its second optimizer is given the whole network."""

    def configure_optimizers(self):
        return [SGD(self.network[:-1].parameters(), lr=0.05), SGD(self.network.parameters(), lr=0.05)]


class NeverSteps(TwoOptimizers):
    def training_step(self, batch, batch_idx):
        first, _ = self.optimizers()
        first.zero_grad()
        self.manual_backward(self.loss(*batch))
        first.step()


class StartsLate(TwoOptimizers):
    """The second optimizer steps in every other batch, from the second on, as a generator behind its critic."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.zero_grad()
        self.manual_backward(self.loss(*batch))
        first.step()
        if batch_idx % 2:
            second.step()


def test_two_optimizers_are_judged_when_both_have_stepped_often_enough():
    assert check(StartsLate(), steps=1, action="error").global_step == 6


class FreezesLate(Plain):
    """After the first step it freezes its head and leaves the last gradient there."""

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.05, weight_decay=0.1)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        for name, it in self.named_parameters():
            if it.requires_grad:
                it.grad = None
            assert it.requires_grad or name.startswith("network.5")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.network[5].requires_grad_(False)


def test_what_no_forward_calls_is_named_and_a_whole_part_once():
    sentence = said(Spare())

    assert "parameters network.5.scale, spare (4 parameters) had no gradient in 2 steps" in sentence
    assert "ddp_find_unused_parameters_true" in sentence


def test_what_stands_in_no_optimizer_is_named_before_the_first_step():
    module = Forgotten()
    before = module.network[5].weight.clone()
    sentence = said(module)

    assert (
        "parameters network.0 (2 parameters), network.1 (2 parameters) require a gradient and stand in no" in sentence
    )
    assert torch.equal(module.network[5].weight, before)


def test_a_gradient_that_is_always_zero_is_told_from_none():
    sentence = said(Dead())

    assert "parameters side (2 parameters) had a gradient of exactly zero in 2 steps" in sentence
    assert "no gradient" not in sentence


def test_a_part_behind_a_factor_that_starts_at_zero_is_dead_for_one_step_only():
    assert "side (2 parameters) had a gradient of exactly zero in 1 steps" in said(OpensLate(), steps=1)
    assert check(OpensLate(), steps=2, action="error").global_step == 4


def test_zeros_and_idle_optimizers_are_not_told_of_a_fit_that_ends_before_all_steps():
    assert check(OpensLate(), steps=5, action="error", options={"fast_dev_run": True}).global_step == 1
    assert check(StartsLate(), steps=5, action="error", options={"fast_dev_run": True}).global_step == 1
    with pytest.raises(RuntimeError, match="exactly zero in 4 steps"):
        check(Dead(), steps=4, action="error")


def test_a_parameter_of_two_optimizers_is_named():
    assert "parameters network.0 (2 parameters), network.1 (2 parameters) stand in the optimizers 0 and 1" in said(
        Twice()
    )


def test_an_optimizer_that_never_steps_is_named_when_the_fit_ends():
    assert "of 2 optimizers number 1 took no step" in said(NeverSteps())


def test_what_was_frozen_with_a_gradient_left_is_named():
    assert "parameters network.5.weight, network.5.bias are frozen and still have a gradient" in said(FreezesLate())


def test_what_is_frozen_and_stands_in_an_optimizer_with_decay_does_not_move_and_is_no_fault():
    module = Plain()
    module.network[0].requires_grad_(False)
    before = module.network[0].weight.clone()
    check(module, action="error")

    assert torch.equal(module.network[0].weight, before)


class FirstOfTwo(Plain):
    """Only the first micro-batch of each window uses its side."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        loss = self.loss(*batch)
        return loss if batch_idx % 2 else loss + self.side(batch[0].flatten(1)).square().mean()


def test_one_micro_batch_of_a_window_is_enough():
    assert check(FirstOfTwo(), action="error", options={"accumulate_grad_batches": 2}).global_step == 2


def test_a_fit_that_ends_before_all_steps_is_judged_by_those_it_had():
    assert "spare (4 parameters) had no gradient in 4 steps" in said(Spare(), steps=100)


@pytest.mark.parametrize("kind", [Plain, TwoOptimizers, PastLightning])
def test_a_warning_is_given_once_and_a_module_that_trains_has_none(kind):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="UnusedParametersCheck")
        check(kind())
    spare = type("WithSpare", (kind,), {})()
    spare.spare = nn.Linear(2, 2)
    spare.network.append(spare.spare)
    spare.network.forward = spare.network[:6].forward
    with pytest.warns(UserWarning, match=r"^UnusedParametersCheck: parameters ") as told:
        check(spare)

    assert len([it for it in told if "UnusedParametersCheck" in str(it.message)]) == 1


def layer_of(module):
    """A layer that trains, of those in the middle."""
    layers = [(path, it) for path, it in module.named_modules() if isinstance(it, (nn.Conv2d, nn.ConvTranspose2d))]
    own = [(path, it) for path, it in layers if it.weight.requires_grad and not path.startswith("target")]
    return own[len(own) // 2]


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in ALL_TASKS]
)
def test_each_task_trains_all_it_has_and_a_layer_that_is_cut_off_is_named(name):
    module, loader = ALL_TASKS[name]()
    if name == "DINO":
        # It holds its last layer for the first epoch, which is no training.
        sentence = said(module, loader=loader, options={"limit_train_batches": 2})
        assert "parameters network.prototypes.weight had no gradient in 2 steps" in sentence
        return
    check(module, loader, action="error", options={"limit_train_batches": 2})
    module, loader = ALL_TASKS[name]()
    path, layer = layer_of(module)
    twin, weights = copy.deepcopy(layer), {key: it.detach() for key, it in layer.named_parameters()}
    layer.forward = lambda *given: functional_call(twin, weights, given)

    # A part that holds nothing else is named in its place.
    named = said(module, loader=loader, options={"limit_train_batches": 2}).split("parameters ")[1]
    assert f"{path}.weight".startswith(named.split(" ")[0].rstrip(","))


def test_ddp_stops_in_the_second_step_and_the_check_says_by_what(two_ranks):
    def stops():
        module = Spare()
        with (
            warnings.catch_warnings(record=True) as told,
            pytest.raises(RuntimeError, match="not used in producing the loss"),
        ):
            warnings.simplefilter("always")
            quiet_trainer(callbacks=[UnusedParametersCheck()], max_epochs=1, strategy="ddp", devices=2).fit(
                module, plain_loader()
            )
        return [str(it.message) for it in told if "UnusedParametersCheck" in str(it.message)]

    (first,), second = two_ranks(stops)

    assert first.startswith("UnusedParametersCheck: before the exception, parameters network.5.scale, spare (4 param")
    assert second == []


def test_a_part_is_named_only_if_all_that_trains_in_it_is_meant():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    network[1][1].requires_grad_(False)

    assert grouped(network, ["0.weight", "1.0.weight", "1.0.bias"]) == ["0.weight", "1 (2 parameters)"]
    assert grouped(network, ["0.weight", "1.0.weight"]) == ["0.weight", "1.0.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "UnusedParametersCheck: steps is 0; give a whole number of at least 1."),
        ({"action": "stop"}, "UnusedParametersCheck: action is 'stop'; give 'error', 'warn' or 'off'."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        UnusedParametersCheck(**settings)

    assert str(caught.value) == message

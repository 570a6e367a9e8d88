"""The first loss beside ln K, and each mistake that is looked for, on modules that make it and that do not."""

import logging
import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from lightning_vision.callbacks import InitialLossCheck, MixUp
from lightning_vision.callbacks.hooks._heard_losses import HeardLoss, HeardLosses
from lightning_vision.callbacks.verification.initial_loss_check import (
    _too_large,
    mistaken_input,
    plain_loss,
    uniform_loss,
)
from support.data import plain_loader
from support.four_tasks import TASKS
from support.further_tasks import ALL_TASKS
from support.modules import DictBatches, Plain, TwoOptimizers
from support.trainers import quiet_trainer

DEFAULT = {*TASKS, "GAN"}
CROSS, NLL = "cross_entropy", "nll_loss"
BINARY = "binary_cross_entropy_with_logits"


class Takes(Plain):
    """Its loss is what a function of logits and labels makes."""

    def __init__(self, loss, scale=1.0):
        super().__init__()
        self.taken, self.scale = loss, scale

    def loss(self, image, target):
        return self.taken(self.scale * self(image), target)


def check(module, loader=None, action="error", **settings):
    """Fit one batch under the check."""
    options = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0} | settings.pop("options", {})
    trainer = quiet_trainer(callbacks=[InitialLossCheck(action=action, **settings)], **options)
    trainer.fit(module, plain_loader(24, batch_size=12) if loader is None else loader)
    return trainer


def only(batch):
    """A loader of this batch."""
    return DataLoader([batch], batch_size=None)


def said(module, loader=None, **settings):
    with pytest.raises(RuntimeError, match=r"^InitialLossCheck") as caught:
        check(module, loader, **settings)
    return str(caught.value)


def heard(kind, given, target, **settings):
    return HeardLoss(kind, given, target, settings, True)


RIGHT = {
    "cross entropy": F.cross_entropy,
    "smoothed": lambda logits, target: F.cross_entropy(logits, target, label_smoothing=0.2),
    "weighted and summed": lambda logits, target: F.cross_entropy(
        logits, target, weight=torch.arange(1.0, 11.0), reduction="sum"
    ),
    "negative log likelihood": lambda logits, target: F.nll_loss(logits.log_softmax(1), target),
    "a module's": nn.CrossEntropyLoss(),
}
WRONG = {
    "softmax": (
        lambda z, y: F.cross_entropy(z.softmax(1), y),
        "cross_entropy was given probabilities, in the place of logits, so it cannot fall below 1.46;",
    ),
    "softmax of the batch": (
        lambda z, y: F.cross_entropy(z.softmax(0), y),
        "cross_entropy was given probabilities that sum to 1 over the batch",
    ),
    "sigmoid": (lambda z, y: F.cross_entropy(z.sigmoid(), y), "given numbers between 0 and 1, as after a sigmoid"),
    "relu": (lambda z, y: F.cross_entropy(z.relu(), y), "given no negative number, as after a ReLU"),
    "logits for nll": (F.nll_loss, "nll_loss was given logits in the place of log-probabilities"),
    "softmax for nll": (lambda z, y: F.nll_loss(z.softmax(1), y), "nll_loss was given probabilities in the place of"),
}


@pytest.mark.parametrize("loss", RIGHT.values(), ids=RIGHT)
def test_a_network_that_favours_nothing_passes(loss):
    assert check(Takes(loss)).global_step == 1


@pytest.mark.parametrize(("loss", "sentence"), WRONG.values(), ids=WRONG)
def test_what_a_loss_is_wrongly_given_is_named(loss, sentence):
    module = Takes(loss)
    before = module.network[0].weight.clone()

    assert sentence in said(module)
    assert torch.equal(module.network[0].weight, before)


def test_logits_that_spread_too_far_are_far_from_ln_k():
    sentence = said(Takes(F.cross_entropy, scale=40.0))

    assert "predictions that favour nothing have 2.303 (ln 10)" in sentence
    assert "its logits have a standard deviation of" in sentence and "normalise" not in sentence


def test_images_that_were_not_normalised_are_told():
    images, labels = 100 + 60 * torch.randn(12, 1, 8, 8), torch.arange(12) % 10
    module = Plain()
    module.network[1] = nn.Identity()

    assert "so normalise them" in said(module, only((images, labels)))


def test_the_tolerance_is_in_nats_above():
    class Fixed(Takes):
        """Logits of -1 but for the first, which is 2: a loss of log(9 + e^3), less 3 where the label is 0."""

        def forward(self, image):
            return F.one_hot(torch.zeros(len(image), dtype=torch.int64), 10) * 3.0 - 1 + 0 * self.network(image)

    loader = only((torch.randn(6, 1, 8, 8), torch.full((6,), 4)))
    above = math.log(9 + math.exp(3)) - math.log(10)

    assert check(Fixed(F.cross_entropy), loader, tolerance=above + 1e-4).global_step == 1
    assert "is 3.37" in said(Fixed(F.cross_entropy), loader, tolerance=above - 1e-4)
    below = only((torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)))
    assert check(Fixed(F.cross_entropy), below, tolerance=1e-4).global_step == 1


def test_labels_that_no_output_stands_for_are_named_before_the_loss_is_taken():
    loader = only((torch.randn(6, 1, 8, 8), torch.arange(5, 11)))

    assert "which stand for the labels 0 to 9, and the first batch has labels from 5 to 10" in said(Plain(), loader)


def test_another_number_of_outputs_than_classes_is_named():
    assert "cross_entropy is over 10 outputs, and there are 7 classes" in said(Plain(), classes=7)


def test_log_probabilities_change_nothing_and_are_told(caplog):
    caplog.set_level(logging.INFO)
    module = Takes(lambda logits, target: F.cross_entropy(logits.log_softmax(1), target))

    assert check(module).global_step == 1
    assert "cross_entropy was given log-probabilities" in caplog.text


@pytest.mark.parametrize("kind", [Plain, TwoOptimizers])
def test_a_warning_lets_the_fit_go_on_and_a_right_module_has_none(kind):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="InitialLossCheck")
        check(kind(), action="warn")
    module = kind()
    module.network[5] = nn.Sequential(module.network[5], nn.Softmax(1))
    with pytest.warns(UserWarning, match=r"^InitialLossCheck: cross_entropy was given probabilities"):
        assert check(module, action="warn").global_step > 0


def test_batches_of_any_container_are_heard():
    images, labels = next(iter(plain_loader(24, batch_size=12)))
    module = DictBatches()
    module.network.append(nn.Softmax(1))

    assert "given probabilities" in said(module, only({"image": images, "target": labels}))


def test_mixed_labels_have_the_same_ln_k():
    callbacks = [MixUp(prob=1.0), InitialLossCheck(action="error", tolerance=0.5)]
    trainer = quiet_trainer(callbacks=callbacks, max_epochs=1, limit_train_batches=1)
    trainer.fit(Plain(), plain_loader(24, batch_size=12))
    soft = torch.softmax(torch.randn(6, 10), 1)

    assert trainer.global_step == 1
    assert plain_loss(heard(CROSS, torch.zeros(6, 10), soft)) == pytest.approx(uniform_loss(CROSS, 10))


def test_labels_that_stand_alone_have_ln_2_each():
    targets = (torch.rand(6, 3) < 0.3).float()
    pos_weight = {"pos_weight": torch.tensor([5.0, 1.0, 1.0])}

    assert plain_loss(heard(BINARY, torch.zeros(6, 3), targets, **pos_weight)) == pytest.approx(uniform_loss(BINARY, 3))
    assert mistaken_input(replace(heard(BINARY, torch.randn(6, 3).sigmoid(), targets), by_sigmoid=True)) != ""
    assert mistaken_input(heard(BINARY, torch.randn(6, 3), targets)) == ""


def test_segments_are_pixels_of_classes_and_ignored_ones_do_not_count():
    target = torch.randint(5, (2, 4, 4))
    target[0] = 255
    logits = torch.randn(2, 5, 4, 4)

    assert plain_loss(heard(CROSS, logits, target, ignore_index=255)) == pytest.approx(
        float(F.cross_entropy(logits[1:], target[1:]))
    )
    assert mistaken_input(heard(CROSS, logits.softmax(1), target)) == "probabilities"


def lost(logits, target):
    """The loss as a step takes it, binary for a single column."""
    with HeardLosses() as mode:
        if logits.shape[1] == 1:
            F.binary_cross_entropy_with_logits(logits.squeeze(1), target.float())
        else:
            F.cross_entropy(logits, target)
    return mode.losses[0]


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_sigmoid_is_told_from_logits_that_a_bias_puts_between_0_and_1(classes):
    logits = (0.5 + 0.1 * torch.rand(64, classes)).requires_grad_()
    target = torch.arange(64) % max(2, classes)

    assert mistaken_input(lost(logits, target)) == ""
    for given in (logits.sigmoid(), logits.sigmoid().bfloat16(), logits.flatten().sigmoid().view(64, classes)):
        assert mistaken_input(lost(given, target)) in ("probabilities", "numbers between 0 and 1, as after a sigmoid")
    assert mistaken_input(lost(logits.sigmoid().logit(), target)) == ""


class NoDoubles(TorchFunctionMode):
    """As on a GPU of Apple: only what was brought to the CPU can be of 64 bits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.double and not getattr(args[0], "brought", False):
            raise TypeError("no float64 there")
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            result = result.clone()
            result.brought = True
        return result


@pytest.mark.parametrize(("kind", "target"), [(CROSS, torch.arange(4)), (CROSS, torch.eye(4)), (BINARY, torch.eye(4))])
def test_nothing_is_computed_in_64_bits_on_the_device(kind, target):
    with NoDoubles():
        one = heard(kind, 9 * torch.randn(4, 4), target)
        assert mistaken_input(one) == "" and plain_loss(one) > 0
        assert "standard deviation" in _too_large(one, 9.0, 1.0, 4, torch.randn(4, 1, 8, 8))


class TwoHeads(Plain):
    """Its second head, of coarser classes, ends in a softmax."""

    num_classes = 10

    def __init__(self, last):
        super().__init__()
        self.second = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), last)

    def training_step(self, batch, batch_idx):
        image, target, coarse = batch
        return self.loss(image, target) + F.cross_entropy(self.second(image), coarse)


def test_a_second_head_is_judged_too():
    target = torch.tensor([3, 1, 9, 0, 7, 5])
    loader = only((torch.randn(6, 1, 8, 8), target, target // 2))

    assert check(TwoHeads(nn.Identity()), loader).global_step == 1
    assert "of 2 cross entropies, number 2: cross_entropy was given prob" in said(TwoHeads(nn.Softmax(1)), loader)


def test_a_second_fit_by_the_same_trainer_is_judged_but_for_the_size_of_its_loss(caplog):
    caplog.set_level(logging.INFO)
    trainer = check(Plain())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Takes(F.cross_entropy, scale=40.0), plain_loader(24, batch_size=12))
    trainer.fit_loop.max_epochs = 3
    with pytest.raises(RuntimeError, match="cross_entropy was given probabilities"):
        trainer.fit(Takes(WRONG["softmax"][0]), plain_loader(24, batch_size=12))

    assert "the fit of Takes goes on, so the size of its first loss says nothing" in caplog.text


CHANGED_LABELS = {
    "one-hot": lambda z, y: F.cross_entropy(z, F.one_hot(y, 10).float()),
    "smoothed by hand": lambda z, y: F.cross_entropy(z, F.one_hot(y, 10) * 0.9 + 0.01),
    "two views": lambda z, y: F.cross_entropy(torch.cat([z, z]), torch.cat([y, y])),
    "views of each": lambda z, y: F.cross_entropy(z.repeat_interleave(3, 0), y.repeat_interleave(3)),
}


@pytest.mark.parametrize("loss", CHANGED_LABELS.values(), ids=CHANGED_LABELS)
def test_labels_that_the_step_repeats_or_makes_shares_of_are_recognised(loss, caplog):
    caplog.set_level(logging.INFO)

    assert check(Takes(loss)).global_step == 1
    assert "takes no cross entropy by the batch's labels" not in caplog.text
    assert "predictions that favour nothing have 2.303 (ln 10)" in said(Takes(loss, scale=40.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixteen_random_logits_are_never_mistaken(dtype):
    torch.manual_seed(0)
    target = torch.randint(4, (4,))

    assert {mistaken_input(heard(CROSS, torch.randn(4, 4).to(dtype), target)) for _ in range(200)} == {""}
    assert mistaken_input(heard(CROSS, torch.randn(4, 4).to(dtype).softmax(1), target)) == "probabilities"
    assert mistaken_input(heard(NLL, torch.randn(4, 4).to(dtype).log_softmax(1), target)) == ""


def test_an_expected_loss_is_compared_with_what_the_step_returns():
    class Squares(Plain):
        def loss(self, image, target):
            return (2 + 0 * self(image)).square().mean()

    assert check(Squares(), expected=4.5).global_step == 1
    assert "is 4, further than 1 from expected=1; look at" in said(Squares(), expected=1.0)
    assert "returns no loss to compare with expected=1.0" in said(TwoOptimizers(), expected=1.0)


def test_a_loss_that_is_not_finite_is_named():
    assert "the first loss of Takes is nan" in said(Takes(lambda logits, target: (logits - logits).log().sum() * 0))


def test_of_a_resumed_fit_the_size_of_the_loss_is_not_judged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    writer = ModelCheckpoint(tmp_path, filename="one", every_n_train_steps=1, save_top_k=-1)
    quiet_trainer(callbacks=[writer], max_steps=1, enable_checkpointing=True).fit(Plain(), plain_loader(24))
    module = Takes(F.cross_entropy, scale=40.0)
    trainer = quiet_trainer(callbacks=[InitialLossCheck(action="error")], max_steps=2)
    trainer.fit(module, plain_loader(24), ckpt_path=tmp_path / "one.ckpt", weights_only=True)

    assert trainer.global_step == 2
    assert "goes on, so the size of its first loss says nothing" in caplog.text


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in ALL_TASKS]
)
def test_of_each_task_the_classifier_alone_is_judged_and_of_the_others_it_is_said(name, caplog):
    caplog.set_level(logging.INFO)
    module, loader = ALL_TASKS[name]()
    check(module, loader)

    assert ("takes no cross entropy by the batch's labels" in caplog.text) == (name != "classification")
    if name != "GAN":
        assert "from expected=1e+06" in said(ALL_TASKS[name]()[0], loader, expected=1e6)


def test_a_classifier_that_ends_in_a_softmax_is_named():
    module, loader = TASKS["classification"]()
    module.register_forward_hook(lambda module, given, logits: logits.softmax(1))

    assert "cross_entropy was given probabilities" in said(module, loader)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0}, "InitialLossCheck: tolerance is 0; give a number above 0."),
        ({"classes": 1}, "InitialLossCheck: classes is 1; give a whole number of at least 2."),
        ({"action": "stop"}, "InitialLossCheck: action is 'stop'; give 'error', 'warn' or 'off'."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        InitialLossCheck(**settings)

    assert str(caught.value) == message

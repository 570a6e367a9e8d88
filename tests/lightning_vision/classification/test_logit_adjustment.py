"""Logit adjustment is Eq. 10 of its paper, plain cross entropy in the limits, and absent from evaluation."""

import copy
from functools import partial
from math import exp, log

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.logit_adjustment import LogitAdjustment
from lightning_vision.datamodules import Digits
from support.compare import distance, seeded
from support.trainers import quiet_trainer

COUNTS = [6, 3, 1]
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def small(**settings):
    return ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, optimizer=SGD, **settings)


class Tail(Digits):
    """Digits that count as a tail: 10 of the first class, 20 of the second, ... 100 of the last."""

    @property
    def class_counts(self):
        return {"train": {str(k): 10 * (k + 1) for k in range(10)}}


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_loss_is_equation_10_written_with_plain_exponentials(tau):
    rows, labels = [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], [0, 1]
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        terms = [exp(z + tau * log(count / 10)) for z, count in zip(row, COUNTS, strict=True)]
        total -= log(terms[label] / sum(terms))
    adjusted = LogitAdjustment(tau, COUNTS)(torch.tensor(rows))

    assert float(F.cross_entropy(adjusted, torch.tensor(labels))) == pytest.approx(total / 2)


def test_the_loss_has_the_margins_of_the_papers_second_form():
    """log(1 + sum over y' of (pi_y' / pi_y) ** tau e ** (z_y' - z_y)), the right side of Eq. 10."""
    logits, label, tau = torch.tensor([[0.3, -0.2, 0.9]]), 2, 1.5
    others = sum((COUNTS[k] / COUNTS[label]) ** tau * exp(logits[0, k] - logits[0, label]) for k in (0, 1))

    loss = F.cross_entropy(LogitAdjustment(tau, COUNTS)(logits), torch.tensor([label]))

    assert float(loss) == pytest.approx(log(1 + others), rel=1e-5)


def test_equally_frequent_classes_give_the_gradients_of_plain_cross_entropy():
    """A shift that all classes share: 2 ** -2 of each of four classes, whose log is added to all logits alike."""
    logits = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    target = torch.arange(8) % 4
    plain, adjusted = (
        torch.autograd.grad(F.cross_entropy(z, target), logits)[0]
        for z in (logits, LogitAdjustment(1.0, [5, 5, 5, 5])(logits))
    )

    torch.testing.assert_close(adjusted, plain, rtol=0, atol=1e-15)


def test_afterwards_it_undoes_the_prior_of_a_training_set():
    """With densities p(x | y) the logits log p(x | y) pi_y are those of the tail; Eq. 9 leaves log p(x | y)."""
    density = torch.tensor([[0.2, 0.5, 0.3]])
    trained = (density * torch.tensor(COUNTS) / 10).log()

    torch.testing.assert_close(LogitAdjustment(-1.0, COUNTS)(trained).softmax(1), density)


def by_hand(shift, steps=12):
    """Weights of a classifier after training on `Digits`, with `shift` added to its logits."""
    module, data = seeded(small), Digits(batch_size=100)
    network = module.network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    data.setup()
    loader = data.train_dataloader()
    for _, batch in zip(range(steps), loader, strict=False):
        image, target = data.normalise(batch[0]), batch[1]
        optimizer.zero_grad()
        F.cross_entropy(network(image) + shift, target).backward()
        optimizer.step()
    return network.state_dict()


def fitted(datamodule, **settings):
    module = seeded(partial(small, **settings))
    trainer = quiet_trainer(max_epochs=-1, max_steps=12, limit_val_batches=0)
    trainer.fit(module, datamodule=datamodule)
    return module, trainer


def test_a_fit_equals_a_loop_written_by_hand_and_wrong_shifts_do_not():
    module, trainer = fitted(Tail(batch_size=100), logit_adjustment=1.0)
    prior = torch.arange(1, 11) / 55
    right = by_hand(prior.log())
    wrong = {
        "nothing": torch.zeros(10),
        "sign": -prior.log(),
        "prior without log": prior,
        "tau of a half": prior.log() / 2,
        "classes turned round": prior.log().flip(0),
    }

    assert distance(module.network.state_dict(), right) < 1e-6
    for name, shift in wrong.items():
        assert distance(module.network.state_dict(), by_hand(shift)) > 1e-3, name
    (logged,) = trainer.test(module, datamodule=Digits(batch_size=359), verbose=False)
    image, target = next(iter(Digits(batch_size=359).test_dataloader()))[:2]
    with torch.no_grad():
        plain = F.cross_entropy(module.eval()(Digits().normalise(image)), target)
    assert logged["test/loss"] == pytest.approx(float(plain), rel=1e-5)


def test_a_tau_of_zero_is_no_adjustment_at_all():
    module, _ = fitted(Tail(batch_size=100), logit_adjustment=0.0)
    plain, _ = fitted(Digits(batch_size=100))

    assert module.balancing.adjustment is None
    assert distance(module.state_dict(), plain.state_dict()) == 0.0


def test_it_is_no_part_of_the_state_and_survives_copies():
    module, _ = fitted(Tail(batch_size=100), logit_adjustment=1.0)

    assert module.state_dict().keys() == small().state_dict().keys()
    assert torch.equal(copy.deepcopy(module).balancing.adjustment.shift, module.balancing.adjustment.shift)


@pytest.mark.parametrize(
    ("tau", "counts", "message"),
    [
        (float("nan"), COUNTS, "^the tau of a logit adjustment is nan; give a finite number, 0 is neutral$"),
        (1.0, [1, 0], r"^a logit adjustment needs counts above 0, got \[1, 0\]; leave out empty classes$"),
    ],
)
def test_what_has_no_logarithm_is_refused(tau, counts, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustment(tau, counts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "bce"}, "logit_adjustment=1.0 works with loss='cross_entropy', not with loss='bce'"),
        ({"loss": "focal"}, "logit_adjustment=1.0 works with loss='cross_entropy', not with loss='focal'"),
        ({"loss": torch.nn.MultiMarginLoss()}, "and logit_adjustment go with a loss given by name"),
        ({"logit_adjustment": -1.0}, "logit_adjustment must be a finite number of at least 0, got -1.0"),
        ({"logit_adjustment": float("inf")}, "logit_adjustment must be a finite number of at least 0, got inf"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**{"logit_adjustment": 1.0} | settings)

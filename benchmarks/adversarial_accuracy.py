"""What attacks cost, beside captum's and foolbox's, and what a validation with them does beside one without."""

from functools import partial
from tempfile import TemporaryDirectory

import foolbox
import torch
from captum.robust import FGSM
from torch import nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import AdversarialAccuracy, carlini_wagner, fgsm

from .fits import batches_of
from .side_by_side import Row, Side, take_turns, unprepared
from .validations import validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Attack `resnet8_cifar` on batches of 64, and validate `resnet20_cifar` on 10 batches of which one is attacked.

    Args:
        quick: One repetition, few images and steps.
    """
    size, steps, repetitions, warmup = (4, 2, 1, 0) if quick else (64, 20, 7, 1)
    torch.manual_seed(0)
    model = create("resnet8_cifar", num_classes=10, in_channels=3).eval()
    images, labels = batches_of(size, 1)[0]
    images = images.sigmoid()
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    step = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    settings = {"stepsize": 0.01, "initial_const": 1.0, "abort_early": False}
    search = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=2, steps=steps, **settings)
    loss = nn.CrossEntropyLoss(reduction="none")
    captums = FGSM(model, loss, lower_bound=0, upper_bound=1)
    given = images.clone().requires_grad_(True)
    batches = batches_of(size, 2 if quick else 10)
    attack = AdversarialAccuracy(cw_steps=steps, cw_searches=2)
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "fgsm": unprepared(partial(fgsm, model, images, labels, 0.03)),
            "captum": unprepared(lambda: captums.perturb(given, 0.03, target=labels)),
            "foolbox": unprepared(lambda: step(theirs, images, labels, epsilons=0.03)),
            "cw": unprepared(partial(carlini_wagner, model, images, labels, steps=steps, searches=2, first_c=1.0)),
            "foolbox cw": unprepared(lambda: search(theirs, images, labels, epsilons=None)),
            "plain": validating(batches, folder),
            "attacked": validating(batches, folder, attack),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, repetitions, warmup).items()}
    cw = f"`carlini_wagner`, 2 x {steps} steps"
    return [
        Row.slowdown("`fgsm`", "captum's `FGSM`", times["fgsm"], times["captum"], "cpu", "<= 1.10"),
        Row.slowdown("`fgsm`", "foolbox's `LinfFastGradientAttack`", times["fgsm"], times["foolbox"], "cpu", "<= 1.10"),
        Row.slowdown(cw, "foolbox's `L2CarliniWagnerAttack`", times["cw"], times["foolbox cw"], "cpu", "<= 1.10"),
        Row.slowdown(
            "a validation, one batch attacked twice by FGSM and once by C&W",
            "without it",
            times["attacked"],
            times["plain"],
            "cpu",
        ),
    ]

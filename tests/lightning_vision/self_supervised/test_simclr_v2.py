"""SimCLR's second version as a whole: distillation of equals, and the three steps beside labels alone."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_vision import ImageClassifier, main
from lightning_vision.callbacks import Distillation
from support.data import plain_loader
from support.trainers import QUIET, quiet_trainer


class Steepest(Callback):
    """The largest entry of all gradients of a fit."""

    def __init__(self):
        self.found = 0.0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = max(self.found, *(float(it.grad.abs().max()) for it in pl_module.parameters()))


def steepest(change=0.0, **weights):
    """Of three steps beside a teacher that is the student, its weights changed by `change`."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    module = ImageClassifier(network, 10, in_channels=1, optimizer=partial(torch.optim.SGD, lr=0.01))
    teacher = deepcopy(network)
    with torch.no_grad():
        teacher[1].weight.mul_(1 + change)
    watch = Steepest()
    settings = {"temperature": 1.0, "kd_weight": 1.0, "hard_weight": 0.0} | weights
    quiet_trainer(max_steps=3, callbacks=[Distillation(teacher, **settings), watch]).fit(module, plain_loader())
    return watch.found


def test_row_51_distilling_a_student_who_is_the_teacher_has_no_gradient():
    assert steepest() < 1e-6
    assert steepest(temperature=0.5) < 1e-6


def test_a_label_that_counts_and_another_teacher_are_noticed():
    assert steepest(hard_weight=0.1) > 1e-3
    assert steepest(change=0.1) > 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_row_51_pretraining_fine_tuning_and_distilling_beat_labels_alone(tmp_path):
    """One labelled image of each digit, 0.8%; each step of the shipped configs starts from the one before."""

    def go(step, name, *flags):
        place = ["--config", f"self_supervised/simclr_v2_{step}", "--trainer.default_root_dir", str(tmp_path / name)]
        main(["fit", *place, "--trainer.accelerator", "cpu", *QUIET, *flags])
        return tmp_path / name / "version_0"

    def accuracy(run):
        checkpoint = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
        tested = main(["test", "--config", "self_supervised/simclr_v2_finetune", *checkpoint, *QUIET])
        return float(tested.metrics["test/acc"])

    pretrained = str(go("pretrain", "pretrain") / "pretrained.safetensors")
    tuned = go("finetune", "finetune", "--model.weights", pretrained)
    teacher = ["--callbacks.distillation.teacher", str(tuned / "checkpoints" / "last.ckpt")]
    distilled = go("distil", "distil", "--model.weights", pretrained, *teacher)
    # The same network and labels, three times the steps.
    labels_alone = go("finetune", "labels", "--model.weights", "null", "--trainer.max_epochs", "300")

    assert accuracy(distilled) > accuracy(labels_alone) + 0.1
    assert accuracy(distilled) >= accuracy(tuned) - 0.02

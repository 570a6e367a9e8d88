"""The callbacks that stand for classifiers train detectors, too, or say in a sentence why they do not.

Each is tried with something that a detector could get wrong; what they do is proved in `tests/callbacks/`.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision import ObjectDetector
from lightning_vision.callbacks import (
    EMA,
    SAM,
    DetectionLogger,
    Distillation,
    ExactResume,
    GradCAMLogger,
    MixUp,
    ProgressiveResizing,
    Pruning,
    WarmRestarts,
)
from lightning_vision.datamodules import DigitScenes
from support.compare import distance
from support.sam_by_hand import sam
from support.trainers import quiet_trainer

pytestmark = [
    pytest.mark.one_worker,
    pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory"),
]
LAYER = "network.model.backbone.levels.network.coarse"


class Maps(nn.Module):
    """Maps of strides 8 and 16, with batch norm."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images):
        fine = self.fine(images)
        return {"fine": fine, "coarse": self.coarse(fine)}


def detector(seed=0, **options):
    torch.manual_seed(seed)
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    sizes = {"num_classes": 10, "image_size": 64, "strides": [8, 16], "pyramid_channels": 32}
    return ObjectDetector(
        "fcos", Maps(), **sizes, **{"optimizer": sgd, "score_threshold": 0.0, "max_detections": 5} | options
    )


def scenes():
    return DigitScenes(train_images=10, val_images=4, test_images=4, image_size=64, batch_size=2, sizes=(0.2, 0.5))


def fit(*callbacks, module=None, ckpt_path=None, **options):
    module = module or detector()
    files = any(isinstance(it, ModelCheckpoint) for it in callbacks)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 1, "enable_checkpointing": files} | options)
    trainer.fit(module, scenes(), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def batches():
    """Five training batches of two scenes."""
    data, found = scenes(), []

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            found.append(copy.deepcopy(batch))

    quiet_trainer(callbacks=[Keep()], max_epochs=1, limit_val_batches=0).fit(detector(), data)
    return found


class Steps(Callback):
    """Parameters and rates after each step, and the parameters that a validation sees."""

    def __init__(self):
        self.weights, self.rates, self.validated = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append({name: it.detach().clone() for name, it in pl_module.named_parameters()})

    def on_validation_batch_start(self, trainer, pl_module, *args):
        self.validated.append({name: it.detach().clone() for name, it in pl_module.named_parameters()})


def test_ema_validates_and_writes_the_average_and_resumes_exactly(tmp_path):
    def keep(folder, **when):
        return ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, **when)

    steps, module = Steps(), detector()
    first = {name: it.detach().clone() for name, it in module.named_parameters()}
    writer = keep("straight", every_n_train_steps=3)
    trainer = fit(EMA(0.5, warmup=1.0), ExactResume(), steps, writer, module=module, num_sanity_val_steps=0)
    average = first
    for weights in steps.weights:
        average = {name: 0.5 * it + 0.5 * weights[name] for name, it in average.items()}

    assert distance(steps.validated[-1], average) < 1e-6
    assert distance(steps.validated[-1], steps.weights[-1]) > 1e-5
    assert trainer.callback_metrics["val/map"] >= 0
    resumed = fit(EMA(0.5, warmup=1.0), ExactResume(), module=detector(7), ckpt_path=tmp_path / "straight/step=3.ckpt")
    assert distance(resumed.lightning_module.state_dict(), module.state_dict()) == 0.0
    saved = torch.load(tmp_path / "straight/step=3.ckpt", weights_only=True)["state_dict"]
    assert distance({name: saved[name] for name in first}, steps.weights[2]) > 1e-5


def two_passes(module, batches, perturb=True):
    """SAM by hand, twice the losses a step; batch norm's statistics are the first pass's."""
    weights = list(module.network.parameters())
    optimizer = module.configure_optimizers()
    losses = []
    module.train()
    for images, targets in batches:
        optimizer.zero_grad()
        loss = torch.stack(list(module.network.losses(images, targets).values())).sum()
        loss.backward()
        losses.append(float(loss))
        if perturb:
            buffers, place = copy.deepcopy(dict(module.named_buffers())), [it.detach().clone() for it in weights]
            with torch.no_grad():
                for weight, step in zip(weights, sam(weights, [it.grad for it in weights]), strict=True):
                    weight += step
            optimizer.zero_grad()
            torch.stack(list(module.network.losses(images, targets).values())).sum().backward()
            with torch.no_grad():
                for weight, value in zip(weights, place, strict=True):
                    weight.copy_(value)
            module.load_state_dict(buffers, strict=False)
        optimizer.step()
    return losses


def test_sam_trains_as_a_loop_of_two_passes_and_counts_statistics_and_losses_once(batches):
    module, expected, plain = detector(), detector(), detector()
    trainer = quiet_trainer(callbacks=[SAM(rho=0.1)], max_epochs=1)
    trainer.fit(module, DataLoader(copy.deepcopy(batches), batch_size=None))
    losses = two_passes(expected, batches)
    two_passes(plain, batches, perturb=False)

    assert distance(module.state_dict(), expected.state_dict()) < 1e-6
    assert distance(module.state_dict(), plain.state_dict()) > 1e-4
    assert module.state_dict()[f"{LAYER}.1.num_batches_tracked"] == 5
    assert abs(float(trainer.callback_metrics["train/loss_epoch"]) - sum(losses) / 5) < 1e-5


def test_warm_restarts_set_the_detectors_rates():
    steps = Steps()
    fit(WarmRestarts(t_0=2), steps, limit_val_batches=0)

    assert steps.rates == pytest.approx([0.01, 0.005, 0.01, 0.005, 0.01])


def test_grad_cam_draws_a_map_for_each_image_and_needs_the_name_of_a_layer(tmp_path):
    class Kept(GradCAMLogger):
        def explain(self, pl_module, images, class_index):
            maps, answer = super().explain(pl_module, images, class_index)
            found.extend(maps)
            return maps, answer

    found = []
    trainer = quiet_trainer(callbacks=[Kept(layer=LAYER, samples=3)], default_root_dir=tmp_path)
    trainer.validate(detector(), scenes(), verbose=False)

    assert [tuple(it.shape) for it in found] == [(64, 64)] * 3
    assert sum(bool(it.any()) for it in found) >= 2  # a map is rectified
    assert len(list((tmp_path / "media/val/grad_cam").iterdir())) == 1
    with pytest.raises(
        ValueError, match=r"answers a list, as detectors do, .* name the one that is wanted with layer="
    ):
        quiet_trainer(callbacks=[GradCAMLogger()]).validate(detector(), scenes(), verbose=False)


def test_pruned_weights_are_zeros_in_the_file(tmp_path):
    writer = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(Pruning(sparsity=0.5, begin_step=0, end_step=2, every_n_steps=1), writer, limit_val_batches=0)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    weights = torch.cat([it.flatten() for it in saved.values() if it.ndim == 4])

    assert abs(float((weights == 0).float().mean()) - 0.5) < 0.01


HINTS = {"levels.network.coarse": "model.backbone.levels.network.coarse"}


def test_a_detector_is_taught_by_the_layers_of_another():
    taught = {"network": "network.model.backbone", "layers": HINTS, "kd_weight": 0.0}
    teacher, module, alone = detector(1).network, detector(), detector()
    before = copy.deepcopy(teacher.state_dict())
    distances = []

    class Apart(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            distances.append(float(trainer.callback_metrics["train/hints"]))

    fit(Distillation(teacher, layer_weight=20.0, hard_weight=0.0, **taught), Apart(), module=module, max_epochs=3)
    fit(module=alone)

    assert module.state_dict().keys() == alone.state_dict().keys()
    assert sum(distances[-5:]) < 0.7 * sum(distances[:5])
    assert distance(teacher.state_dict(), before) == 0.0


def test_logits_of_a_teacher_that_detects_are_refused():
    with pytest.raises(ValueError) as refusal:
        fit(Distillation(detector(1).network))

    assert str(refusal.value) == (
        "Distillation: the student (ObjectDetector) answers with list and not with logits (B, K); give one that does, "
        "or name with network= the part of the module that does."
    )


def test_labels_of_many_objects_are_not_mixed():
    with pytest.raises(ValueError) as refusal:
        fit(MixUp())

    assert str(refusal.value) == (
        "MixUp: labels must be a tensor of as many as there are images, 2, got a list; say with target_key= which "
        "entry of the batch they are."
    )


def test_images_grow_and_the_sheet_names_the_digits(tmp_path):
    sizes = []

    class Sizes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            images, targets = batch
            sizes.append(images.shape[-1])
            assert all((it["boxes"][:, 2:] <= images.shape[-1]).all() for it in targets)
            assert max(float(it["boxes"].amax()) for it in targets) > 0.5 * images.shape[-1]

    logger = DetectionLogger(samples=4, score_threshold=0.0)
    fit(ProgressiveResizing(), logger, Sizes(), max_epochs=2, default_root_dir=tmp_path)
    written = sorted((tmp_path / "media/val/detections").iterdir())

    assert sizes == sorted(sizes)
    assert set(sizes) == {32, 48, 64}
    assert len(written) == 2
    assert not np.array_equal(*(np.asarray(Image.open(it)) for it in written))

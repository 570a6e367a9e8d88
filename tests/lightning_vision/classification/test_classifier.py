"""`ImageClassifier` equals a hand-written loop, logs what it says, freezes, and refuses what does not fit."""

import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.datamodules import Digits

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**quiet | {"accelerator": "cpu", "logger": False, "max_epochs": 1} | options)


def loader(count=44, classes=10, target=None):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator) if target is None else target
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def small(**settings):
    return ImageClassifier(**{"backbone": "resnet8_cifar", "num_classes": 10, "in_channels": 1, **settings})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_twelve_steps_equal_a_loop_written_by_hand(smoothing):
    module = small(optimizer=SGD, label_smoothing=smoothing)
    network = copy.deepcopy(module.network).train()
    batches, run = loader(), trainer(max_epochs=2)
    run.fit(module, batches)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        losses, right = 0.0, 0
        for image, target in batches:
            logits = network(image)
            loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += float(loss) * len(image)
            right += int((logits.argmax(1) == target).sum())

    mine, hand = module.network.state_dict(), network.state_dict()
    assert all(torch.equal(mine[name], hand[name]) for name in hand)
    assert int(hand["stem.1.num_batches_tracked"]) == 12
    assert float(run.callback_metrics["train/loss_epoch"]) == pytest.approx(losses / 44)
    assert float(run.callback_metrics["train/acc_epoch"]) == pytest.approx(right / 44)


def test_metrics_of_a_test_equal_those_of_the_whole_set_at_once():
    module, batches = small(), loader()
    (logged,) = trainer().test(module, batches, verbose=False)
    images, target = batches.dataset.tensors
    with torch.no_grad():
        logits = module.eval()(images)

    assert logged.keys() == {"test/loss", "test/acc", "test/acc_top5", "test/f1", "test/ece"}
    assert logged["test/loss"] == pytest.approx(float(F.cross_entropy(logits, target)))
    assert logged["test/acc"] == pytest.approx(float((logits.argmax(1) == target).float().mean()))
    assert sum(row["support"] for row in module.per_class) == 44
    assert [row["class"] for row in module.per_class] == [str(k) for k in range(10)]


def test_training_logs_loss_and_accuracy_of_steps_and_epochs():
    run = trainer(log_every_n_steps=2)
    run.fit(small(), loader(), loader())

    assert run.callback_metrics.keys() == {
        *("train/loss_step", "train/loss_epoch", "train/acc_step", "train/acc_epoch"),
        *("val/loss", "val/acc", "val/acc_top5", "val/f1", "val/ece"),
    }
    assert {"train/loss_step", "train/acc_step"} <= run.progress_bar_metrics.keys()


def test_two_ranks_report_the_metrics_of_both(two_ranks):
    def test(**options):
        torch.manual_seed(0)
        data = Digits(batch_size=90)
        (logged,) = trainer(**options).test(small(), datamodule=data, verbose=False)
        return logged

    first, second = two_ranks(partial(test, strategy="ddp", devices=2))

    assert first == second == pytest.approx(test(), rel=1e-5)


class CountReads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, which on a GPU waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class AsksForTheLoss(ImageClassifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if float(loss) > -1 else None


@pytest.mark.parametrize(("kind", "reads"), [(ImageClassifier, 0), (AsksForTheLoss, 3)])
def test_training_never_waits_for_the_device_between_log_steps(kind, reads):
    counted = 0

    class Watched(kind):
        def training_step(self, batch, batch_idx):
            nonlocal counted
            with CountReads() as watch:
                loss = super().training_step(batch, batch_idx)
            counted += watch.count
            return loss

        def on_train_batch_end(self, *args):
            assert not self.trainer.callback_metrics

    module = Watched("resnet8_cifar", num_classes=10, in_channels=1)
    trainer(limit_train_batches=3).fit(module, loader())

    assert counted == reads


def test_digits_are_learned_in_seconds():
    module = small(optimizer=partial(torch.optim.AdamW, lr=0.01))
    run, data = trainer(max_epochs=3), Digits(batch_size=64)
    run.fit(module, datamodule=data)
    (logged,) = run.test(module, datamodule=data, verbose=False)

    assert logged["test/acc"] > 0.93


def rates(optimizer, module):
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_rates_of_layers_and_head_hold_after_a_schedule_has_run():
    """Cosine over 4 epochs: after 2 the factor is a half. The classifier is 4 layers above the stem."""
    module = small(
        optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.05),
        lr_scheduler=partial(CosineAnnealingLR, T_max=4),
        layer_decay=0.5,
        head_lr_multiple=4.0,
    )
    run = trainer(max_epochs=2, limit_train_batches=1)
    run.fit(module, loader())
    found = rates(run.optimizers[0], module)

    assert found["network.head.fc.weight"] == (pytest.approx(0.1 * 4 * 0.5), 0.05)
    assert found["network.head.fc.bias"] == (pytest.approx(0.1 * 4 * 0.5), 0.0)
    assert found["network.stem.0.weight"] == (pytest.approx(0.1 * 0.5**4 * 0.5), 0.05)
    assert found["network.stem.1.weight"] == (pytest.approx(0.1 * 0.5**4 * 0.5), 0.0)
    assert len(run.optimizers[0].param_groups) == len(set(found.values()))


def test_a_schedule_can_count_steps():
    module = small(optimizer=SGD, lr_scheduler=partial(CosineAnnealingLR, T_max=6), lr_interval="step")
    run = trainer(limit_train_batches=3)
    run.fit(module, loader())

    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 / 2)


def test_plateau_schedules_watch_the_validation_loss():
    """With this threshold no epoch counts as better, so each of two divides the rate by ten."""
    module = small(optimizer=SGD, lr_scheduler=partial(ReduceLROnPlateau, factor=0.1, patience=0, threshold=1e9))
    run = trainer(max_epochs=2, limit_train_batches=1)
    run.fit(module, loader(), loader())

    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0005)


def test_one_cycle_over_different_rates_is_refused():
    module = small(optimizer=SGD, lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=9), layer_decay=0.5)

    with pytest.raises(ValueError, match="OneCycleLR gives all parameter groups one learning rate of its own"):
        trainer().fit(module, loader())


@pytest.mark.parametrize("name", ["resnet8_cifar", "vit_tiny_patch16_224"])
def test_a_frozen_backbone_keeps_weights_and_statistics_while_the_head_learns(name):
    module = small(backbone=name, freeze_backbone=True, optimizer=SGD) if "resnet" in name else ImageClassifier(
        timm.create_model(name, num_classes=10, in_chans=1, img_size=16, patch_size=8, depth=1),
        num_classes=10, freeze_backbone=True, optimizer=SGD,
    )  # fmt: skip
    if "vit" in name:
        module.network.patch_embed.strict_img_size = False
    before = copy.deepcopy(module.network.state_dict())
    batches = DataLoader(TensorDataset(torch.randn(16, 1, 16, 16), torch.randint(10, (16,))), batch_size=8)
    run = trainer()
    run.fit(module, batches)
    changed = {key for key, value in module.network.state_dict().items() if not torch.equal(value, before[key])}
    head = "head.fc." if "resnet" in name else "head."

    assert changed == {f"{head}weight", f"{head}bias"}
    assert set(rates(run.optimizers[0], module)) == {f"network.{key}" for key in changed}


def test_a_frozen_backbone_stays_in_evaluation_when_the_module_is_set_to_train():
    module = small(freeze_backbone=True).eval().train()

    assert module.training and module.network.head.fc.training
    assert not module.network.stem[1].training


def test_drop_rates_reach_the_network():
    module = small(drop_rate=0.25, drop_path_rate=0.5)
    drops = [m.drop_prob for m in module.network.modules() if type(m).__name__ == "DropPath"]

    assert (module.network.drop_rate, max(drops)) == (0.25, 0.5)


def test_a_module_in_place_of_a_name_gives_the_logits():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module = small(backbone=network)
    image = torch.randn(3, 1, 8, 8)

    assert module.network is network
    assert torch.equal(module(image), network(image))


@pytest.mark.parametrize("loss", ["bce", nn.BCEWithLogitsLoss()], ids=["by name", "torch's"])
def test_several_labels_an_image(loss):
    target = (torch.rand(44, 10, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    module = small(loss=loss, optimizer=SGD)
    run = trainer()
    run.fit(module, loader(target=target), loader(target=target))
    (predicted,) = trainer(limit_predict_batches=1).predict(module, loader(target=target))

    assert run.callback_metrics.keys() >= {"train/acc_epoch", "val/loss", "val/acc", "val/f1", "val/ece"}
    assert "val/acc_top5" not in run.callback_metrics
    torch.testing.assert_close(predicted["probabilities"], module.eval()(next(iter(loader()))[0]).sigmoid())


def test_soft_targets_and_mappings_are_accepted():
    labels = torch.arange(44) % 10
    soft = [{"image": image, "target": target} for image, target in loader(target=F.one_hot(labels, 10).float())]
    results = []
    for batches in (DataLoader(soft, batch_size=None), loader(target=labels)):
        torch.manual_seed(0)
        run = trainer()
        run.fit(small(optimizer=SGD), batches)
        results.append({name: float(value) for name, value in run.callback_metrics.items()})

    assert results[0] == pytest.approx(results[1])


def test_a_loss_module_is_called_with_logits_and_target():
    module = small(loss=nn.MultiMarginLoss())
    (logged,) = trainer().test(module, loader(), verbose=False)
    images, target = loader().dataset.tensors

    assert logged["test/loss"] == pytest.approx(float(F.multi_margin_loss(module.eval()(images), target)))


class Sized(LightningDataModule):
    num_classes, in_channels = 7, 1

    def train_dataloader(self):
        return loader(classes=7)


def test_the_datamodule_must_have_as_many_classes():
    message = "ImageClassifier has num_classes=10 but Sized has num_classes=7; make them agree"
    with pytest.raises(ValueError, match=message):
        trainer().fit(small(), datamodule=Sized())


@pytest.mark.parametrize("found", [nn.Identity(), {"mean": [0.5]}, None], ids=["transform", "other mapping", "none"])
def test_a_preprocessing_that_is_none_of_ours_is_ignored(found):
    data = Sized()
    data.preprocessing = found
    module = small(num_classes=7)
    trainer().fit(module, datamodule=data)

    assert module.preprocessing is None


def test_the_datamodule_must_have_as_many_channels():
    message = "ImageClassifier has in_channels=3 but Sized has in_channels=1; make them agree"
    with pytest.raises(ValueError, match=message):
        trainer().fit(small(in_channels=None, num_classes=7), datamodule=Sized())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": None}, "ImageClassifier needs num_classes; from Python pass it, for example num_classes=10"),
        ({"backbone": "resnet8_cifr"}, "resnet8_cifar"),
        ({"backbone": nn.Linear(1, 1), "drop_rate": 0.5}, "drop_rate can only be set for a backbone given by name"),
        (
            {"backbone": timm.create_model("resnet8_cifar", num_classes=7)},
            "has num_classes=7, but 10 classes are needed",
        ),
        ({"backbone": nn.Linear(1, 1), "freeze_backbone": True}, "freeze_backbone needs a timm backbone"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        (
            {"loss": nn.MultiMarginLoss(), "label_smoothing": 0.1},
            "^label_smoothing, class_weights and logit_adjustment go with a loss given",
        ),
        ({"loss": nn.MultiMarginLoss(), "class_weights": [1.0] * 10}, "by name; set them in the module$"),
        ({"class_weights": [1.0]}, "class_weights has 1 numbers for 10 classes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_nothing_to_train_is_refused():
    module = small()
    module.requires_grad_(False)

    with pytest.raises(ValueError, match="all parameters are frozen"):
        module.configure_optimizers()


def test_a_label_outside_the_range_is_told_with_the_range_also_under_a_foreign_loader():
    module = ImageClassifier("resnet8_cifar", num_classes=3, in_channels=1)
    trainer().fit(module, loader(4, target=torch.tensor([0, 1, 2, 2])))

    with pytest.raises(ValueError, match=r"^the labels of this batch lie in 0..3, outside 0..2 of num_classes$"):
        trainer().fit(module, loader(4, target=torch.tensor([0, 1, 2, 3])))


def test_a_backbone_with_other_logits_than_classes_is_told():
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), num_classes=3, in_channels=1)

    with pytest.raises(
        ValueError, match=r"^the backbone gives logits of shape \(4, 7\), not \(B, 3\) for num_classes$"
    ):
        trainer().fit(module, loader(4, target=torch.tensor([0, 1, 2, 2])))


def test_settings_that_the_optimizer_refuses_are_told():
    module = ImageClassifier("resnet8_cifar", num_classes=3, in_channels=1, optimizer=partial(torch.optim.SGD, lr=-1.0))

    with pytest.raises(ValueError, match=r"^the optimizer refuses its settings: Invalid learning rate: -1.0$"):
        module.configure_optimizers()

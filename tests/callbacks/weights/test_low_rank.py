"""LowRank: training against a loop by hand, a frozen teacher that survives a resume, terms that are 0 at full rank.

What factorising does is proved in `test_factorise.py`, conformance (all conditions, undo, pairs) in `conformance/`.
"""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import (
    EvoNorm,
    ExactResume,
    LowRank,
    RobustPruning,
    factorise,
    feature_distillation_loss,
    weight_perturbation_loss,
)
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain, TwoOptimizers
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

OFF = {"distil_weight": 0.0, "perturbation_weight": 0.0}


class Vit(Plain):
    """A small transformer with dropout, for images `(B, 1, 8, 8)`."""

    def __init__(self, dropout=0.2):
        super().__init__()
        settings = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 2}
        self.network = timm.create_model("vit_tiny_patch16_224", num_classes=10, proj_drop_rate=dropout, **settings)


class Terms(Callback):
    """Keeps what was logged of each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append({key: float(it) for key, it in trainer.callback_metrics.items()})


def loader():
    return ResumableLoader(labelled_images(30), 6)


def made(kind=Vit):
    torch.manual_seed(0)
    return kind()


def trained(*callbacks, module=None, **options):
    module = made() if module is None else module
    torch.manual_seed(1)
    quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 1} | options).fit(module, loader())
    return module


def keeping(store, name):
    def keep(part, args, output):
        store[name] = output

    return keep


def by_hand(*, distil, weight, radius, teacher_trains=False, drops=False, mean=True):
    """PELA written as a plain loop: a deep copy teaches, hooks read the features."""
    module, teacher = made(), made().eval()
    pairs = [name for name, it in module.named_modules() if type(it) is nn.Linear and "head" not in name]
    factorise(module, 2.0)
    if drops:
        teacher.train()
    seen = {id(module): {}, id(teacher): {}}
    for model in (module, teacher):
        for name in pairs:
            model.get_submodule(name).register_forward_hook(keeping(seen[id(model)], name))
    (optimizer,), (schedule,) = ([it] for it in module.configure_optimizers().values())
    schedule = schedule["scheduler"]
    torch.manual_seed(1)
    for images, target in loader():
        loss = F.cross_entropy(module(images), target)
        with torch.no_grad():
            (module if teacher_trains else teacher)(images)
        theirs = {name: it.detach() for name, it in seen[id(module if teacher_trains else teacher)].items()}
        ours = dict(seen[id(module)])
        features = [F.mse_loss(ours[name], theirs[name]) for name in pairs]
        loss = loss + distil * (torch.stack(features).mean() if mean else torch.stack(features).sum())
        if weight:
            errors = []
            for name in pairs:
                down, up = module.get_submodule(name)
                dense = teacher.get_submodule(name).weight.detach()
                errors.append(((up.weight @ down.weight - dense).abs().max() - radius) ** 2)
            loss = loss + weight * torch.stack(errors).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return module.state_dict()


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(it, theirs[name]) for name, it in ours.items())


def test_row_105_training_is_a_loop_by_hand_bit_for_bit_and_wrong_ones_are_noticed():
    settings = {"distil_weight": 0.5, "perturbation_weight": 2.0, "perturbation_radius": 0.01}
    ours = trained(LowRank(**settings)).state_dict()
    right = {"distil": 0.5, "weight": 2.0, "radius": 0.01}

    assert same(ours, by_hand(**right))
    for wrong in (
        {"radius": 0.0},
        {"weight": 0.0},
        {"distil": 0.0},
        {"mean": False},
        {"drops": True},
        {"teacher_trains": True},
    ):
        assert not same(ours, by_hand(**right | wrong)), wrong


def test_without_weights_there_is_nothing_but_the_swap():
    callback = LowRank(**OFF)
    module = trained(callback, max_epochs=1)
    plain = made()
    factorise(plain, 2.0)

    assert same(module.state_dict(), trained(module=plain).state_dict())
    assert (callback.parent, callback.state_dict()["parent"]) == ({}, {})


def test_row_105_the_distance_is_nothing_at_full_rank_and_something_below():
    found = {}
    for rank in (24, 12):
        terms = Terms()
        module = made(lambda: Vit(dropout=0.0)).double()
        batches = [[images.double(), target] for images, target in loader()]
        trainer = quiet_trainer(callbacks=[LowRank(rank=rank), terms], max_steps=1, precision="64-true")
        trainer.fit(module, DataLoader(batches, batch_size=None))
        found[rank] = terms.seen[0]

    assert found[24]["train/feature_distillation"] < 1e-24
    assert found[24]["train/weight_perturbation"] < 1e-24
    assert found[12]["train/feature_distillation"] > 1e-4
    assert found[12]["train/weight_perturbation"] > 1e-6


def test_row_105_the_teacher_is_frozen_and_nobody_but_the_callback_knows_of_it():
    start = {name: it.clone() for name, it in made(Plain).state_dict().items()}
    callback, module = LowRank(), made(Plain)
    trainer = quiet_trainer(callbacks=[callback], max_epochs=2)
    trainer.fit(module, loader())
    held = {id(it) for group in trainer.optimizers[0].param_groups for it in group["params"]}

    assert same(callback.parent, start)
    assert not any(it.requires_grad for it in callback.parent.values())
    assert not torch.equal(module.network[1].running_mean, start["network.1.running_mean"])
    assert held == {id(it) for it in module.parameters()}
    assert "network.5.weight" not in module.state_dict()
    assert [type(it) for it in module.network[5]] == [nn.Linear, nn.Linear]
    assert not {it.data_ptr() for it in callback.parent.values()} & {
        it.data_ptr() for it in module.state_dict().values()
    }


def test_the_terms_are_those_of_the_definitions():
    ours, theirs = [torch.rand(2, 3), torch.rand(4)], [torch.rand(2, 3), torch.rand(4)]
    expected = sum(((a - b) ** 2).sum() / a.numel() for a, b in zip(ours, theirs, strict=True)) / 2
    factors = [(torch.rand(3, 2), torch.rand(2, 5)), (torch.rand(4, 1), torch.rand(1, 2))]
    weights = [torch.rand(3, 5), torch.rand(4, 2)]
    largest = [max((a @ b - w).flatten().abs().tolist()) for (a, b), w in zip(factors, weights, strict=True)]

    torch.testing.assert_close(feature_distillation_loss(ours, theirs), expected)
    torch.testing.assert_close(
        weight_perturbation_loss(factors, weights, 0.3).item(), sum((it - 0.3) ** 2 for it in largest) / 2
    )


def test_a_resumed_run_has_the_teacher_of_the_first(tmp_path):
    def run(folder, seed=0, **options):
        torch.manual_seed(seed)
        files = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=2)
        return record(Vit(), loader, [LowRank(), files, ExactResume()], max_epochs=2, **options)

    straight = run(tmp_path / "straight")
    killed = run(tmp_path / "killed", kill_at=5)
    file = newest(tmp_path / "killed")
    resumed = run(tmp_path / "resumed", seed=7, ckpt_path=file)
    dense = {name: it for name, it in made().state_dict().items()}

    assert differences(straight, killed, resumed) == []
    assert same(torch.load(file, weights_only=True)["callbacks"]["LowRank"]["parent"], dense)


def test_a_file_without_a_teacher_is_refused_and_goes_on_without_terms(tmp_path):
    files = ModelCheckpoint(tmp_path, save_last=True)
    trained(LowRank(**OFF), files, enable_checkpointing=True)
    with pytest.raises(ValueError, match="LowRank: Vit is to learn from the network that it was, which is not known: "):
        quiet_trainer(callbacks=[LowRank()], max_epochs=2).fit(made(), loader(), ckpt_path=tmp_path / "last.ckpt")

    quiet_trainer(callbacks=[LowRank(**OFF)], max_epochs=2).fit(made(), loader(), ckpt_path=tmp_path / "last.ckpt")


def test_an_evaluation_before_the_fit_and_a_second_fit_keep_the_first_teacher():
    callback, module, dense = LowRank(), made(), made().state_dict()
    quiet_trainer(callbacks=[callback]).validate(module, loader(), verbose=False)
    for _ in range(2):
        trained(callback, module=module, max_steps=2)
        assert same(callback.parent, dense)
    other = made()
    trained(callback, module=other, max_steps=1)

    assert same(callback.parent, dense)
    assert len(other.network.blocks[0].attn.qkv) == 2


def test_a_module_factorised_by_hand_learns_from_what_it_is_and_a_warning_says_so():
    module, terms, callback = made(lambda: Vit(dropout=0.0)), Terms(), LowRank()
    factorise(module, 3.0)
    start = copy.deepcopy(module.state_dict())
    with pytest.warns(UserWarning, match="LowRank: layers of Vit were replaced before, and what it was then is not"):
        trained(callback, terms, module=module)

    assert same(callback.parent, start)
    # Within rounding, for two layers are no product of two.
    assert (terms.seen[0]["train/feature_distillation"], terms.seen[0]["train/weight_perturbation"]) == (0.0, 0.0)
    assert terms.seen[-1]["train/feature_distillation"] > 1e-9


def test_blocks_may_be_compared_as_the_authors_do():
    callback, terms = LowRank(distil_layers="network.blocks.?", perturbation_weight=0.0), Terms()
    module = trained(callback, terms, max_steps=1)

    assert callback.outputs_of == ("network.blocks.0", "network.blocks.1")
    assert "train/weight_perturbation" not in terms.seen[0]
    student, teacher = made(lambda: Vit(0.2)), made().eval()
    factorise(student, 2.0)
    torch.manual_seed(1)
    images = next(iter(loader()))[0]
    with torch.no_grad():
        ours, theirs = (
            it.network.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NLC")
            for it in (student, teacher)
        )
        expected = feature_distillation_loss(ours, theirs)
    assert 0.5 < terms.seen[0]["train/feature_distillation"] / expected < 2.0
    assert len(module.network.blocks[1].mlp.fc2) == 2


def test_files_are_tested_with_the_callback(tmp_path):
    data = plain_loader(24)
    files = ModelCheckpoint(tmp_path, save_weights_only=True)
    trainer = quiet_trainer(callbacks=[LowRank(), files], enable_checkpointing=True, max_epochs=1)
    trainer.fit(made(), data, data)
    scored = trainer.test(ckpt_path="best", dataloaders=data, verbose=False)
    again = quiet_trainer(callbacks=[LowRank()])

    assert scored == again.test(made(), data, ckpt_path=files.best_model_path, verbose=False)


def test_row_105_ranks_that_drew_other_weights_have_one_teacher(two_ranks):
    def fit():
        import torch.distributed as dist

        torch.manual_seed(dist.get_rank())
        callback, module = LowRank(), Plain()
        first = module.network[5].weight.detach().clone()
        options = {"strategy": "ddp", "devices": 2, "max_steps": 3}
        quiet_trainer(callbacks=[callback], **options).fit(module, plain_loader(24))
        return callback.parent["network.5.weight"], module.network[5][0].weight.detach(), first

    (teacher, weight, first), (other_teacher, other_weight, other_first) = two_ranks(fit)

    assert torch.equal(teacher, other_teacher)
    assert torch.equal(teacher, first)
    assert torch.equal(weight, other_weight)
    assert not torch.equal(first, other_first)


def test_a_vit_of_timm_in_a_task_of_the_house_trains_with_fewer_parameters():
    torch.manual_seed(0)
    settings = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3, "in_chans": 1}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, **settings)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    module.network = network
    before = sum(it.numel() for it in module.parameters())
    trainer = quiet_trainer(callbacks=[LowRank(ratio=2.0)], max_steps=10, limit_val_batches=1)
    trainer.fit(module, datamodule=Digits(batch_size=32))

    assert sum(it.numel() for it in module.parameters()) < 0.6 * before
    assert trainer.callback_metrics["train/feature_distillation"].isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0}, "LowRank: ratio is 0; give a number above 1, such as 2.0 for half of the parameters."),
        ({"ratio": -1.0}, "LowRank: ratio is -1.0; give a finite number of at least 0."),
        ({"rank": 1.5}, "LowRank: rank is 1.5; give a whole number of at least 1."),
        ({"distil_weight": -1.0}, "LowRank: distil_weight is -1.0; give a finite number of at least 0."),
        ({"perturbation_weight": -1.0}, "LowRank: perturbation_weight is -1.0; give a finite number of at least 0."),
        ({"perturbation_radius": -1.0}, "LowRank: perturbation_radius is -1.0; give a finite number of at least 0."),
        ({"skip": [3]}, "LowRank: skip is [3]; give a pattern such as 'blocks.*.act', or a list of them."),
        (
            {"distil_layers": 3},
            "LowRank: distil_layers is 3; give a pattern such as 'blocks.*.act', or a list of them.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        LowRank(**settings)

    assert message == str(error.value)


class Convolutional(Plain):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("callbacks", "kind", "message"),
    [
        ([LowRank(layers="netwrk.*")], Plain, "factorise: layers 'netwrk.*' matches none of the Linear layers; there"),
        ([LowRank(distil_layers="netwrk")], Plain, "LowRank: distil_layers 'netwrk' matches none of the layers; there"),
        ([LowRank(ratio=50.0)], Plain, "LowRank: Plain has no Linear layer to factorise (network.5 stays, for nothing"),
        ([LowRank()], Convolutional, "LowRank: Convolutional has no Linear layer to factorise (it has none); make the"),
        ([LowRank()], TwoOptimizers, "LowRank: TwoOptimizers optimises manually, so its training_step returns no loss"),
        (
            [EvoNorm(), LowRank()],
            Plain,
            "LowRank: the Trainer also has EvoNorm, and what the network was before either",
        ),
        (
            [RobustPruning(), LowRank()],
            Plain,
            "LowRank: the Trainer also has RobustPruning, and what the network was before",
        ),
        ([LowRank(distil_layers="network")], Plain, ""),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(callbacks, kind, message):
    trainer = quiet_trainer(callbacks=callbacks, max_steps=1)
    if not message:
        trainer.fit(kind(), loader())
        return
    with pytest.raises(ValueError) as error:
        trainer.fit(kind(), loader())

    assert str(error.value).startswith(message)


class Tuples(nn.Module):
    def forward(self, x):
        return x, x


def test_outputs_that_are_no_tensors_are_refused():
    module = Plain()
    module.network.insert(5, Tuples())
    module.network.insert(6, nn.Module())
    module.network[6].forward = lambda both: both[0]
    with pytest.raises(
        ValueError, match=r"LowRank: the layer 'network\.5' puts out tuple in training_step and tuple in"
    ):
        quiet_trainer(callbacks=[LowRank(distil_layers="network.5")], max_steps=1).fit(module, loader())

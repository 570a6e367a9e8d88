"""Batch norm is measured on what trains, with the module's own step, and everything else is as if it had not been."""

import pytest
import torch
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, IterableDataset

from lightning_vision import ImageClassifier
from lightning_vision.callbacks import SWA, ExactResume
from lightning_vision.callbacks.hooks._around import Around
from lightning_vision.datamodules import Digits
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import DictBatches, Plain, TwoOptimizers
from support.resuming import KilledError
from support.trainers import quiet_trainer


class Still(Plain):
    """Without dropout, so that measuring draws nothing."""

    def __init__(self):
        super().__init__(dropout=0.0)


def fitted(module, train, *callbacks, val=None, **options):
    trainer = quiet_trainer(callbacks=[SWA(start_fraction=0.5), *callbacks], **{"max_epochs": 2} | options)
    trainer.fit(module, train, val)
    return trainer


def measured(module, batches):
    """The statistics that torch measures for the weights that `module` holds."""
    judge = Still()
    judge.load_state_dict(module.state_dict())
    update_bn(batches, judge.network)
    return judge.network[1].running_mean, judge.network[1].running_var


def test_layers_that_rest_keep_their_statistics():
    class Resting(Still):
        def on_train_epoch_start(self):
            self.network[1].eval()

    module = Resting()
    module.network[1].running_mean.fill_(3.0)
    fitted(module, plain_loader())

    assert module.network[1].running_mean.tolist() == [3.0] * 4


def test_what_others_put_around_the_step_is_passed_by_and_may_not_reach_it():
    calls = []

    class Wrapping(Plain):
        def on_train_start(self):
            Around(self, "training_step", lambda proceed, *args: (calls.append(1), proceed(*args))[1])

    fitted(Wrapping(), plain_loader(), max_epochs=2)

    assert len(calls) == 20


def test_dict_batches_and_steps_without_a_number_are_measured():
    class Unnumbered(Still):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    def as_dict(samples):
        image, target = torch.utils.data.default_collate(samples)
        return {"image": image, "target": target}

    torch.manual_seed(0)
    plain, named = Unnumbered(), DictBatches(dropout=0.0)
    named.load_state_dict(plain.state_dict())
    fitted(plain, plain_loader())
    fitted(named, plain_loader(collate_fn=as_dict))
    expected = measured(plain, plain_loader())

    for module in (plain, named):
        assert torch.equal(expected[0], module.network[1].running_mean)
        assert torch.equal(expected[1], module.network[1].running_var)


def test_workers_that_stay_are_not_shared_with_the_copy_of_the_loader():
    loader = plain_loader(num_workers=1, persistent_workers=True)
    module = Still()
    fitted(module, loader, val=plain_loader(12), val_check_interval=3)

    assert torch.equal(measured(module, plain_loader())[1], module.network[1].running_var)


def test_an_exception_while_measuring_leaves_the_trained_weights_and_all_settings():
    class Failing(Still):
        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                raise KilledError
            weights.append(self.network[5].weight.detach().clone())
            return super().training_step(batch, batch_idx)

    weights, module = [], Failing()
    with pytest.raises(KilledError):
        fitted(module, plain_loader(), val=plain_loader(12), num_sanity_val_steps=0)

    assert len(weights) == 20
    assert module.network[1].momentum == 0.1
    assert module.network[1].num_batches_tracked == 20
    assert not torch.equal(weights[-1], module.network[5].weight)


def test_a_house_loader_in_the_middle_of_an_epoch_goes_on_where_it_was(tmp_path):
    """Digits, shuffled and augmented by epoch, saved after 7 and 11 of 23 steps with validations every 5."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    ends = []
    for path in (None, tmp_path / "step=11.ckpt"):
        torch.manual_seed(0 if path is None else 1)
        module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
        writer = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=11, save_top_k=-1)
        callbacks = [SWA(start_step=4, every_n_steps=3, bn_batches=2), ExactResume(), writer]
        options = {"max_steps": 23, "val_check_interval": 5, "limit_train_batches": 15, "limit_val_batches": 1}
        trainer = quiet_trainer(callbacks=callbacks, enable_checkpointing=True, **options)
        trainer.fit(module, datamodule=Digits(batch_size=32), ckpt_path=path, weights_only=True)
        ends.append(module.state_dict())

    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class Endless(IterableDataset):
    def __iter__(self):
        data = labelled_images(6)
        while True:
            yield from data


@pytest.mark.parametrize(
    ("module", "train", "sentence"),
    [
        (TwoOptimizers, plain_loader, "training_step of TwoOptimizers optimises by hand, so it cannot be run only to"),
        (Plain, lambda: [plain_loader(), plain_loader()], "batch norm is measured on one training loader and there"),
        (Plain, lambda: DataLoader(Endless(), 6), "an epoch of the training loader has no end, so batch norm cannot"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_step(module, train, sentence):
    with pytest.raises(ValueError, match=f"^SWA: {sentence}"):
        fitted(module(), train(), max_steps=4)


def test_an_endless_loader_is_measured_on_as_many_batches_as_one_says():
    module = Still()
    trainer = quiet_trainer(callbacks=[SWA(start_step=2, every_n_steps=2, bn_batches=3)], max_steps=6)
    trainer.fit(module, DataLoader(Endless(), 6))

    assert torch.equal(measured(module, [next(iter(DataLoader(Endless(), 6)))] * 3)[0], module.network[1].running_mean)


def on_two_ranks():
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    module = Still()
    fitted(
        module,
        ResumableLoader(labelled_images(60), 6, rank, 2),
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,
    )
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_two_processes_have_the_statistics_of_both_halves(two_ranks):
    first, second = two_ranks(on_two_ranks)
    module = Still()
    module.load_state_dict(first)
    halves = [ResumableLoader(labelled_images(60), 6, rank, 2) for rank in (0, 1)]
    for half in halves:
        half.sampler.set_epoch(1)
    means = [measured(module, half)[0] for half in halves]

    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.allclose(sum(means) / 2, first["network.1.running_mean"], atol=1e-6)
    assert not torch.equal(means[0], means[1])


def test_measured_batches_pass_the_hook_before_transfer_and_take_the_precision_as_in_training():
    seen = []

    class Prepared(Still):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 5, batch[1]

        def training_step(self, batch, batch_idx):
            seen.append((batch[0].dtype, float(batch[0].mean()) > 3))
            return super().training_step(batch, batch_idx)

    module = Prepared()
    fitted(module, plain_loader(), precision="bf16-true")

    assert {(torch.bfloat16, True)} == set(seen)
    assert len(seen) == 30  # two epochs of ten steps, and ten batches that were measured

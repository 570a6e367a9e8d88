"""Two optimizers under Lightning: one global step a batch, files, schedules, resumption, precision and processes.

That a step is the paper's is proved in `test_dcgan.py` and `test_colourisation.py`.
"""

import copy
import math
from datetime import timedelta
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vision.base.draws import seeded
from lightning_vision.callbacks import EMA, ExactResume, WarmUpCosine
from lightning_vision.generation import DCGAN
from lightning_vision.generation.adversarial import gan_discriminator_loss, gan_generator_loss, refuse_sharded
from support.data import ResumableLoader, labelled_images
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

STEP_LR = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
PLATEAU = partial(ReduceLROnPlateau, monitor="val/discriminator", factor=0.5, patience=0, threshold=0.9)


def tiny(**settings):
    torch.manual_seed(0)
    given = {"latent_dim": 4, "channels": 4, "num_classes": 10, "in_channels": 1, "image_size": 8} | settings
    return DCGAN(**given)


def images(rank=0, world_size=1):
    """Eight batches of six images an epoch, shared by the processes."""
    return ResumableLoader(labelled_images(48), 6 // world_size, rank, world_size)


def rates(trainer):
    return [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]


def test_losses_are_logarithms_of_probabilities():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    p, q = real.sigmoid(), fake.sigmoid()
    smoothed = -(0.9 * p.log() + 0.1 * (1 - p).log()).mean() - (1 - q).log().mean()

    torch.testing.assert_close(gan_discriminator_loss(real, fake), -p.log().mean() - (1 - q).log().mean())
    torch.testing.assert_close(gan_discriminator_loss(real, fake, 0.1), smoothed)
    torch.testing.assert_close(gan_generator_loss(fake), -q.log().mean())


def test_smoothing_is_of_one_side():
    real, fake = torch.zeros(1, requires_grad=True), torch.full((1,), -1.0, requires_grad=True)
    slopes = [torch.autograd.grad(gan_discriminator_loss(real, fake, s), (real, fake)) for s in (0.0, 0.3)]

    assert [float(slope[0]) for slope in slopes] == pytest.approx([-0.5, -0.2])
    assert slopes[0][1] == slopes[1][1]
    # Best told is a real image with the smoothed target's own odds.
    best = torch.tensor([math.log(0.7 / 0.3)], requires_grad=True)
    assert float(torch.autograd.grad(gan_discriminator_loss(best, fake.detach(), 0.3), best)[0]) == pytest.approx(0)


def test_the_generator_learns_most_where_it_fails():
    fake = torch.tensor([-9.0, 9.0], requires_grad=True)
    (slope,) = torch.autograd.grad(2 * gan_generator_loss(fake), fake)

    torch.testing.assert_close(slope, torch.tensor([-1.0, 0.0]), atol=2e-4, rtol=0)


def test_a_batch_is_one_global_step():
    trainer = quiet_trainer(max_epochs=2, limit_train_batches=5)
    trainer.fit(tiny(), images())
    limited = quiet_trainer(max_steps=3)
    limited.fit(tiny(), images())

    assert trainer.global_step == 10
    assert limited.global_step == 3 and limited.fit_loop.total_batch_idx + 1 == 3


class CountsTwice(LightningModule):
    """Steps both optimizers as Lightning's examples do."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weights = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])

    def training_step(self, batch, batch_idx):
        for weight, optimizer in zip(self.weights, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(weight.square().sum())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([weight], lr=0.1) for weight in self.weights]


def test_lightning_counts_two_steps_of_two_optimizers():
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(CountsTwice(), images())

    assert trainer.global_step == 16


@pytest.mark.parametrize("every", [2, 3])
def test_a_file_is_written_every_so_many_batches(every, tmp_path):
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=every)
    quiet_trainer(max_epochs=1, callbacks=[writer], enable_checkpointing=True).fit(tiny(), images())

    assert {path.name for path in tmp_path.iterdir()} == {f"step={step}.ckpt" for step in range(every, 9, every)}


def test_lightning_writes_no_file_by_the_clock_where_modules_step_by_themselves(tmp_path):
    writer = ModelCheckpoint(tmp_path, train_time_interval=timedelta(0))
    quiet_trainer(max_epochs=1, callbacks=[writer], enable_checkpointing=True).fit(tiny(), images())

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("interval", "halvings"), [("epoch", 2), ("step", 10)])
def test_both_schedules_go_on_once_an_interval(interval, halvings):
    trainer = quiet_trainer(max_epochs=2, limit_train_batches=5)
    trainer.fit(tiny(lr_scheduler=STEP_LR, lr_interval=interval), images())

    assert rates(trainer) == [2e-4 * 0.5**halvings] * 2


def test_an_epochs_schedule_waits_for_its_last_batch():
    trainer = quiet_trainer(max_steps=7)
    trainer.fit(tiny(lr_scheduler=STEP_LR), images())

    assert rates(trainer) == [2e-4] * 2


def test_row_258_rates_are_halved_when_validations_find_no_better():
    # Only the first validation is better than all before it; the check before training does not count.
    trainer = quiet_trainer(max_epochs=3, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(tiny(lr_scheduler=PLATEAU), images(), images())

    assert rates(trainer) == [5e-5] * 2


def test_a_plateau_that_nobody_measures_is_refused():
    with pytest.raises(ValueError, match=r"^DCGAN: ReduceLROnPlateau watches val/discriminator and this fit valida"):
        quiet_trainer(max_epochs=1).fit(tiny(lr_scheduler=PLATEAU), images())
    unknown = partial(ReduceLROnPlateau, monitor="val/fid")
    told = r"^DCGAN: ReduceLROnPlateau watches val/fid and the validation logged val/discriminator, val/loss; set its"
    with pytest.raises(ValueError, match=told):
        quiet_trainer(max_epochs=1).fit(tiny(lr_scheduler=unknown), images(), images())


@pytest.mark.parametrize(
    ("every", "kill", "settings"),
    [
        pytest.param(5, {"kill_at": 12}, {"lr_scheduler": STEP_LR, "lr_interval": "step"}, id="inside"),
        pytest.param(8, {"kill_at": 8, "in_the_act": True}, {"lr_scheduler": STEP_LR}, id="last_batch"),
        pytest.param(None, {"kill_at": 8, "in_the_act": True}, {"lr_scheduler": PLATEAU}, id="validated"),
    ],
)
def test_a_resumed_run_is_the_straight_one(every, kill, settings, tmp_path):
    def go(name, **how):
        watched = {"every_n_train_steps": every} if every else {"monitor": "val/loss", "mode": "max"}
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, **watched)
        loaders = lambda: (images(), images())  # noqa: E731  # called once for each run
        callbacks = [ExactResume(), writer]
        return record(tiny(**settings), loaders, callbacks, max_epochs=2, default_root_dir=tmp_path, **how)

    straight, killed = go("straight"), go("killed", **kill)

    assert killed.end is not None and len(straight.state["optimizers"]) == 2
    again = go("killed", ckpt_path=newest(tmp_path / "killed"))
    # Killed while it writes, a run does not log what follows of that batch.
    assert differences(straight, killed, again, lost_rows=int("in_the_act" in kill)) == []


def test_averages_and_warm_up_see_a_batch_as_one_step(tmp_path):
    model, average = tiny(), EMA(decay=0.5, warmup=1)
    warm_up = WarmUpCosine(warmup=4, interval="step")
    quiet_trainer(max_epochs=1, callbacks=[average, warm_up]).fit(model, images())

    assert average.updates == 8
    assert torch.equal(average.average["network.generator.layers.0.weight"], model.network.generator.layers[0].weight)


def test_accumulation_and_clipping_are_refused_as_lightning_does():
    for option in ({"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}):
        with pytest.raises(MisconfigurationException, match="manual optimization"):
            quiet_trainer(max_steps=1, **option).fit(tiny(), images())


def test_parameters_in_shards_are_refused():
    with pytest.raises(ValueError, match=r"^DCGAN trains on one device or with DDP, not with FSDPStrategy; give stra"):
        refuse_sharded("DCGAN", FSDPStrategy())


def adams(model):
    parts = (model.network.generator, model.network.discriminator)
    return [torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in parts]


def test_a_scaler_serves_both_optimizers():
    model = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    before = copy.deepcopy(model.state_dict())
    trainer = quiet_trainer(max_epochs=8, plugins=[plugin])
    trainer.fit(model, images())

    # Steps whose gradients overflowed were left out and counted, and the scale came down to where both networks learn.
    assert trainer.global_step == 64 and scaler.get_scale() < 2.0**30
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name, _ in model.named_parameters() if "label" not in name} <= moved
    assert all(value.isfinite().all() for value in model.state_dict().values())


def on_this_rank(strategy, alone=False):
    model = tiny()

    def descend(optimizer, loss, shared=()):
        optimizer.zero_grad()
        with model.trainer.strategy.block_backward_sync():
            model.manual_backward(loss)

    if alone:
        model._descend = descend
    trainer = quiet_trainer(max_steps=3, strategy=strategy, devices=2, use_distributed_sampler=False)
    trainer.fit(model, images(torch.distributed.get_rank(), 2))
    return trainer.global_step, model.state_dict()


@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
def test_processes_keep_equal_weights_and_share_their_gradients(strategy, two_ranks):
    (steps, first), (_, second) = two_ranks(on_this_rank, strategy)
    hand = by_hand_on_two_shards()

    assert steps == 3
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    assert [name for name, value in first.items() if not torch.equal(value, hand[name])] == []


def test_processes_that_keep_their_own_gradients_are_noticed(two_ranks):
    (_, first), (_, second) = two_ranks(on_this_rank, "ddp", True)
    name = "network.discriminator.judge.weight"

    assert (first[name] - second[name]).abs().max() > 1e-4


def by_hand_on_two_shards():
    """The mean of two processes' gradients and running statistics, of one network after the other."""
    halves = [tiny(), tiny()]
    optimizers = [adams(half) for half in halves]
    latents = [[torch.randn(3, 4, generator=seeded(0, rank, 1, number)) for number in range(3)] for rank in range(2)]
    shards = [list(images(rank, 2)) for rank in range(2)]
    for number in range(3):
        made, batches = [], [shard[number] for shard in shards]
        for half, (image, label), latent in zip(halves, batches, (it[number] for it in latents), strict=True):
            network = half.network
            made.append(network.generator(latent, label))
            real = network.discriminator(image, label)
            network.zero_grad()
            gan_discriminator_loss(real, network.discriminator(made[-1].detach(), label)).backward()
        share([half.network.discriminator for half in halves])
        for pair in optimizers:
            pair[1].step()
        for half, (_, label), image in zip(halves, batches, made, strict=True):
            half.network.zero_grad()
            gan_generator_loss(half.network.discriminator(image, label)).backward()
        share([half.network.generator for half in halves])
        for pair in optimizers:
            pair[0].step()
        for buffers in zip(*(half.buffers() for half in halves), strict=True):
            mean = sum(buffers) / 2 if buffers[0].is_floating_point() else buffers[0]
            for buffer in buffers:
                buffer.copy_(mean)
    return halves[0].state_dict()


def share(parts):
    for parameters in zip(*(part.parameters() for part in parts), strict=True):
        mean = sum(parameter.grad for parameter in parameters) / 2
        for parameter in parameters:
            parameter.grad = mean.clone()

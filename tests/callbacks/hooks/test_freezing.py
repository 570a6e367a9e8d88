"""Freezing is a function of the epoch: resumed anywhere, on two processes, undone; HeadFirst stands for the seam.

Equality with a loop by hand is proved in `finetuning/test_head_first.py`, conditions and pairs in `conformance/`.
"""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_vision.callbacks import SAM, ExactResume, HeadFirst
from lightning_vision.callbacks.hooks._frozen import Frozen, lies_in
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.resuming import differences, record
from support.trainers import quiet_trainer

TRUNK = ("network.0.weight", "network.0.bias", "network.1.weight", "network.1.bias")


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


def wants(module):
    return {name for name, it in module.named_parameters() if it.requires_grad}


def resting(module):
    return {name for name, it in module.named_modules() if not it.training}


class Look(Callback):
    """Notes in each batch what wants a gradient and what rests, and after backward what has a gradient."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append([trainer.current_epoch, len(wants(pl_module)), sorted(resting(pl_module)), None])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen[-1][3] = sum(it.grad is not None for it in pl_module.parameters())


RESTING = [f"network.{number}" for number in range(5)]


def test_frozen_parameters_have_no_gradient_and_rest_and_all_come_back_with_the_epoch():
    look = Look()
    quiet_trainer(callbacks=[HeadFirst(epochs=1), look], max_epochs=2).fit(Plain(), train_loader())

    assert look.seen == [[0, 2, RESTING, 2]] * 10 + [[1, 6, [], 6]] * 10


class CallsTrain(Plain):
    """Wakes all its parts in each epoch, after callbacks have had their say."""

    def on_train_epoch_start(self):
        self.train()


def test_a_module_that_calls_train_is_put_to_rest_again_and_validation_leaves_it_resting():
    look = Look()
    trainer = quiet_trainer(callbacks=[HeadFirst(epochs=2), look], max_epochs=2, val_check_interval=3)
    with pytest.warns(UserWarning, match="nothing else ever trains"):
        trainer.fit(CallsTrain(), train_loader(), ResumableLoader(labelled_images(12), 6))

    assert all(rested == RESTING for _, _, rested, _ in look.seen)


class Mine(Plain):
    """Has frozen a weight and put a part to rest by itself; has parts without parameters beside its network."""

    def __init__(self):
        super().__init__()
        self.network[0].weight.requires_grad_(False)
        self.network[1].eval()
        self.loss, self.augment = torch.nn.CrossEntropyLoss(), torch.nn.Sequential(torch.nn.Dropout(0.1))


@pytest.mark.parametrize("epochs", [1, 5])
def test_what_the_module_froze_itself_stays_frozen_and_its_losses_stay_awake(epochs):
    module, look = Mine(), Look()
    trainer = quiet_trainer(callbacks=[HeadFirst(epochs=epochs, head="network.5"), look], max_epochs=3)
    trainer.fit(module, train_loader())

    assert look.seen[0][2] == RESTING
    assert wants(module) == {*TRUNK[1:], "network.5.weight", "network.5.bias"}
    assert resting(module) == {"network.1"}


class Fails(Callback):
    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, *args):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("hook", "modes"),
    [
        ("on_train_epoch_start", {True}),
        ("on_train_batch_start", {True}),
        # The rest of the module stays as it was evaluated.
        ("on_validation_batch_start", {False}),
    ],
)
def test_an_exception_gives_everything_back(hook, modes):
    module = Plain()
    trainer = quiet_trainer(callbacks=[HeadFirst(epochs=1), Fails(hook)], max_epochs=2, num_sanity_val_steps=0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, train_loader(), ResumableLoader(labelled_images(12), 6))

    assert len(wants(module)) == 6
    assert {it.training for it in module.modules()} == modes
    assert "optimizer_step" not in vars(trainer.precision_plugin)


@pytest.mark.parametrize("in_the_act", [False, True])
@pytest.mark.parametrize("step", [4, 10, 14, 20, 24])
def test_a_run_resumed_anywhere_equals_the_straight_one(step, in_the_act, tmp_path):
    """Two epochs of ten steps with the head alone, one with everything; step 10 and 20 are ends of epochs."""

    def run(**options):
        saves = ModelCheckpoint(tmp_path / str(len(options)), "{step}", every_n_train_steps=2, save_top_k=-1)
        callbacks = [HeadFirst(epochs=2), ExactResume(), saves]
        return record(seeded(Plain), train_loader, callbacks, max_epochs=3, **options)

    torch.manual_seed(5)
    straight = run()
    torch.manual_seed(5)
    killed = run(kill_at=step, in_the_act=in_the_act)
    resumed = run(ckpt_path=tmp_path / "2" / f"step={step}.ckpt")

    assert differences(straight, killed, resumed, lost_rows=1) == []


def test_a_second_fit_freezes_again_and_a_prolonged_one_does_not():
    callback, look = HeadFirst(epochs=1), Look()
    trainer = quiet_trainer(callbacks=[callback, look], max_epochs=2)
    module = Plain()
    trainer.fit(module, train_loader())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, train_loader())
    again = Look()
    quiet_trainer(callbacks=[callback, again], max_epochs=1).fit(Plain(), train_loader())

    assert [count for _, count, _, _ in look.seen] == [2] * 10 + [6] * 20
    assert [count for _, count, _, _ in again.seen] == [2] * 10


@pytest.mark.parametrize("other", [BackboneFinetuning(), HeadFirst(name="second")], ids=["Lightning's", "ours"])
def test_a_second_one_that_freezes_is_refused(other):
    with pytest.raises(ValueError, match=r"HeadFirst: the Trainer also has .*, and each would thaw what the other"):
        quiet_trainer(callbacks=[HeadFirst(), other], max_epochs=1).fit(Plain(), train_loader())


def test_two_optimizers_of_which_one_holds_only_frozen_weights_step_with_a_loss_scaler():
    module, look = seeded(TwoOptimizers), Look()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trainer = quiet_trainer(
        callbacks=[HeadFirst(epochs=1), look], max_epochs=2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )
    trainer.fit(module, train_loader())
    trunk, head = trainer.optimizers

    assert trainer.global_step == 40
    assert [look.seen[0][3], look.seen[-1][3]] == [2, 6]
    assert len(trunk.state) == 4
    assert {int(state["step"]) for state in head.state.values()} == {20}


def test_a_second_pass_over_the_batch_moves_the_head_alone():
    module, before = seeded(Plain), seeded(Plain).state_dict()
    with pytest.warns(UserWarning, match="nothing else ever trains"):
        quiet_trainer(callbacks=[SAM(), HeadFirst()], max_epochs=1).fit(module, train_loader())
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}

    assert moved == {"network.5.weight", "network.5.bias"}


def test_with_a_second_pass_the_trunk_stands_still_to_the_bit_until_all_of_it_trains():
    module, trunks = seeded(Plain), []

    class Trunk(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trunks.append([it.detach().clone() for it in pl_module.network[:-1].parameters()])

        on_train_end = on_train_epoch_start

    quiet_trainer(callbacks=[SAM(), HeadFirst(epochs=1), Trunk()], max_epochs=2).fit(module, train_loader())
    before, thawed, after = trunks

    assert all(torch.equal(*pair) for pair in zip(before, thawed, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(thawed, after, strict=True))


def test_names_are_compared_part_by_part_and_a_shared_weight_trains_if_one_of_its_names_does():
    module = Plain()
    module.extra = torch.nn.Linear(36, 10)
    module.extra.weight = module.network[5].weight
    frozen = Frozen(module, ("extra",))

    assert lies_in("network.fc2.weight", ("network.fc",)) is False
    assert wants(module) == {"network.5.weight", "extra.bias"}
    frozen.undo()
    assert len(wants(module)) == 7


# Two processes. Batch norm's statistics are each rank's own, so weights are compared.


def loader_of(rank):
    return ResumableLoader(labelled_images(120), 6, rank, 2)


class NotWrappedAnew(Callback):
    """Keeps the wrapper of the first epoch, as if nothing were wrapped anew when the trunk thaws."""

    def on_train_start(self, trainer, pl_module):
        self.first = trainer.strategy.model

    def on_train_batch_start(self, trainer, *args):
        trainer.strategy.model = self.first


def weights_and_wrappers(kind, strategy, *callbacks):
    module = seeded(kind)
    torch.manual_seed(5 + dist.get_rank())
    wrappers = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            model = trainer.strategy.model
            wrappers.append((type(model).__name__, id(model), model.module is pl_module))

    trainer = quiet_trainer(
        callbacks=[HeadFirst(epochs=1), *callbacks, Watch()],
        max_epochs=2,
        devices=2,
        strategy=strategy,
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader_of(dist.get_rank()))
    return {name: it.detach().clone() for name, it in module.named_parameters()}, wrappers


def by_hand():
    """The loop of two phases on two processes whose gradients are averaged, batch norm's buffers those of rank 0."""
    rank = dist.get_rank()
    module = seeded(Plain)
    torch.manual_seed(5 + rank)
    trunk, head = module.network[:-1], module.network[-1]
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    loader = loader_of(rank)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        trunk.train(epoch > 0)
        trunk.requires_grad_(epoch > 0)
        for image, target in loader:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
            optimizer.zero_grad()
            F.cross_entropy(head(trunk(image)), target).backward()
            for parameter in module.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad.div_(2))
            optimizer.step()
            schedule.step()
    return {name: it.detach().clone() for name, it in module.named_parameters()}


def on_both_ranks():
    ours, wrappers = weights_and_wrappers(Plain, DDPStrategy())
    manual, _ = weights_and_wrappers(TwoOptimizers, DDPStrategy())
    options = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    unused, _ = weights_and_wrappers(Plain, options)
    stale, _ = weights_and_wrappers(Plain, DDPStrategy(), NotWrappedAnew())
    return ours, by_hand(), manual, unused, stale, wrappers


def test_two_processes_equal_the_loop_and_would_part_without_a_new_wrapper(two_ranks):
    left, right = two_ranks(on_both_ranks)
    ours, hand, manual, unused, stale, wrappers = left

    assert distance(ours, hand) == distance(ours, right[0]) == 0.0
    assert distance(manual, right[2]) == 0.0
    assert distance(unused, ours) < 1e-6
    assert distance(stale, right[4]) > 1e-3
    assert {(name, whole) for name, _, whole in wrappers} == {(DistributedDataParallel.__name__, True)}
    assert len({number for _, number, _ in wrappers[:10]}) == len({number for _, number, _ in wrappers[10:]}) == 1


def test_lightning_still_wraps_by_configure_ddp():
    """What `hooks/_wrapped_anew.py` counts on: it is public, takes the bare module and keeps the strategy's options."""
    source = DDPStrategy.configure_ddp.__code__.co_names

    assert {"_setup_model", "_register_ddp_hooks", "model"} <= set(source)

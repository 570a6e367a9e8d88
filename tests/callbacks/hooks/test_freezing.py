"""Freezing by the epoch, for good and by measurement: resumed anywhere, on two processes, undone.

HeadFirst stands for the seam where nothing else is said. Equality with loops by hand on one process is proved in
`finetuning/`, conditions and pairs in `conformance/`.
"""

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_vision.callbacks import SAM, BatchNormOnly, ExactResume, HeadFirst, SlimFit, Unfreeze
from lightning_vision.callbacks.hooks._frozen import Frozen, StandingEntries, lies_in
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


def resumed_differences(make, step, in_the_act, folder):
    def run(**options):
        saves = ModelCheckpoint(folder / str(len(options)), "{step}", every_n_train_steps=2, save_top_k=-1)
        return record(seeded(Plain), train_loader, [make(), ExactResume(), saves], max_epochs=3, **options)

    torch.manual_seed(5)
    straight = run()
    torch.manual_seed(5)
    killed = run(kill_at=step, in_the_act=in_the_act)
    resumed = run(ckpt_path=folder / "2" / f"step={step}.ckpt")
    return differences(straight, killed, resumed, lost_rows=1)


@pytest.mark.parametrize("in_the_act", [False, True])
@pytest.mark.parametrize("step", [4, 10, 14, 20, 24])
def test_a_run_resumed_anywhere_equals_the_straight_one(step, in_the_act, tmp_path):
    """Two epochs of ten steps with the head alone, one with everything; step 10 and 20 are ends of epochs."""
    assert resumed_differences(lambda: HeadFirst(epochs=2), step, in_the_act, tmp_path) == []


OTHERS = {
    "group by group": Unfreeze,
    "for good": lambda: BatchNormOnly(gamma="uniform", control=True),
    # Steps 4 and 14 lie inside an interval of three, so what layers have moved so far has to be saved.
    "by measurement": lambda: SlimFit(0.5, interval=3, warmup_steps=4, exclude=[]),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(("step", "in_the_act"), [(4, False), (10, True), (14, True)])
def test_so_do_the_others(kind, step, in_the_act, tmp_path):
    assert resumed_differences(OTHERS[kind], step, in_the_act, tmp_path) == []


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


def test_parts_that_shall_not_rest_keep_their_mode():
    module = Plain()
    Frozen(module, ("network.1",), rests=False)

    assert wants(module) == {"network.1.weight", "network.1.bias"}
    assert resting(module) == set()


def test_entries_that_stand_still_outlast_momentum_and_weight_decay():
    """One step by hand, f = sum w^2: the entries that train go from 1 to 1 - 0.1 (2 + 0.5), the others nowhere."""
    module = Plain()
    weight = module.network[0].weight
    torch.nn.init.ones_(weight)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, :, 0] = True
    standing = StandingEntries(module, {"network.0.weight": mask})
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5, momentum=0.9)
    optimizer.register_step_post_hook(standing.restore)
    weight.square().sum().backward()
    optimizer.step()

    assert torch.equal(weight.grad, torch.where(mask, 2.0, torch.zeros(())))
    assert torch.equal(weight, torch.where(mask, 1 - 0.1 * 2.5, torch.ones(())))
    standing.undo()
    weight.grad = None
    weight.square().sum().backward()
    assert weight.grad.count_nonzero() == weight.numel()


class Filters(Plain):
    """Gives its optimizer what wants a gradient when it is asked."""

    def configure_optimizers(self):
        return torch.optim.AdamW([it for it in self.parameters() if it.requires_grad], lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("kind", [Plain, Filters])
def test_an_optimizer_holds_or_passes_over_what_is_frozen_for_good(kind):
    module = seeded(kind)
    trainer = quiet_trainer(callbacks=[BatchNormOnly()], max_epochs=1)
    trainer.fit(module, train_loader())
    (optimizer,) = trainer.optimizers
    held = [it for group in optimizer.param_groups for it in group["params"]]

    assert len(held) == {Plain: 6, Filters: 2}[kind]
    assert {id(it) for it in optimizer.state} == {id(it) for it in module.network[1].parameters()}
    assert len(wants(module)) == 6


# Two processes. Batch norm's statistics are each rank's own, so weights are compared.


def loader_of(rank):
    return ResumableLoader(labelled_images(120), 6, rank, 2)


class NotWrappedAnew(Callback):
    """Keeps the wrapper of the first epoch, as if nothing were wrapped anew when the set changes."""

    def on_train_start(self, trainer, pl_module):
        self.first = trainer.strategy.model

    def on_train_batch_start(self, trainer, *args):
        trainer.strategy.model = self.first


def weights_and_wrappers(kind, strategy, *callbacks, freezing=None):
    module = seeded(kind)
    torch.manual_seed(5 + dist.get_rank())
    wrappers = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            model = trainer.strategy.model
            wrappers.append((type(model).__name__, id(model), model.module is pl_module))

    trainer = quiet_trainer(
        callbacks=[freezing or HeadFirst(epochs=1), *callbacks, Watch()],
        max_epochs=2,
        devices=2,
        strategy=strategy,
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader_of(dist.get_rank()))
    return {name: it.detach().clone() for name, it in module.named_parameters()}, wrappers


def by_hand(starts):
    """The loop on two processes whose gradients are averaged, batch norm's buffers those of rank 0.

    Plain's convolution, batch norm and head train from the epochs `starts` on; what lies between them when all do.
    """
    rank = dist.get_rank()
    module = seeded(Plain)
    torch.manual_seed(5 + rank)
    network = module.network
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    loader = loader_of(rank)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        network[2:5].train(epoch >= max(starts))
        for part, start in zip((network[0], network[1], network[5]), starts, strict=True):
            part.train(epoch >= start).requires_grad_(epoch >= start)
        for image, target in loader:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
            optimizer.zero_grad()
            F.cross_entropy(network(image), target).backward()
            for parameter in module.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad.div_(2))
            optimizer.step()
            schedule.step()
    return {name: it.detach().clone() for name, it in module.named_parameters()}


def three_groups():
    return Unfreeze(epochs_per_group=[0, 1])


class Sets(Callback):
    """Notes which parameters want a gradient in each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(tuple(sorted(wants(pl_module))))


def on_both_ranks():
    ours, wrappers = weights_and_wrappers(Plain, DDPStrategy())
    manual, _ = weights_and_wrappers(TwoOptimizers, DDPStrategy())
    options = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    unused, _ = weights_and_wrappers(Plain, options)
    stale, _ = weights_and_wrappers(Plain, DDPStrategy(), NotWrappedAnew())
    return ours, by_hand((1, 1, 0)), manual, unused, stale, wrappers


def the_others_on_both_ranks():
    groups, _ = weights_and_wrappers(Plain, DDPStrategy(), freezing=three_groups())
    norms, _ = weights_and_wrappers(Plain, DDPStrategy(), freezing=BatchNormOnly())
    sets = Sets()
    movers, wrappers = weights_and_wrappers(Plain, DDPStrategy(), sets, freezing=SlimFit(0.5, interval=2, exclude=[]))
    try:
        stale = weights_and_wrappers(Plain, DDPStrategy(), NotWrappedAnew(), freezing=SlimFit(0.5, 2, exclude=[]))
    except RuntimeError as error:
        stale = str(error)
    return groups, by_hand((1, 0, 0)), norms, movers, sets.seen, wrappers, stale


def test_two_processes_equal_the_loop_and_would_part_without_a_new_wrapper(two_ranks):
    left, right = two_ranks(on_both_ranks)
    ours, hand, manual, unused, stale, wrappers = left

    assert distance(ours, hand) == distance(ours, right[0]) == 0.0
    assert distance(manual, right[2]) == 0.0
    assert distance(unused, ours) < 1e-6
    assert distance(stale, right[4]) > 1e-3
    assert {(name, whole) for name, _, whole in wrappers} == {(DistributedDataParallel.__name__, True)}
    assert len({number for _, number, _ in wrappers[:10]}) == len({number for _, number, _ in wrappers[10:]}) == 1


def test_the_others_agree_on_two_processes_and_wrap_anew_when_the_set_changes(two_ranks):
    left, right = two_ranks(the_others_on_both_ranks)
    groups, hand, norms, movers, sets, wrappers, stale = left

    assert distance(groups, hand) == distance(groups, right[0]) == 0.0
    assert distance(norms, right[2]) == 0.0
    assert distance(movers, right[3]) == 0.0
    assert sets == right[4]
    assert len(set(sets)) > 1
    changes = [earlier != later for earlier, later in pairwise(sets)]
    assert [a[1] != b[1] for a, b in pairwise(wrappers)] == changes
    assert "not used in producing the loss" in stale


def test_lightning_still_wraps_by_configure_ddp():
    """What `hooks/_wrapped_anew.py` counts on: it is public, takes the bare module and keeps the strategy's options."""
    source = DDPStrategy.configure_ddp.__code__.co_names

    assert {"_setup_model", "_register_ddp_hooks", "model"} <= set(source)

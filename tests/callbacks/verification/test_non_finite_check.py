"""Who made NaN is named, on each kind of task; a step left out is as if its batch had not come, to the bit.

Conformance proves that a run in which all is finite is the one without it.
"""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import SAM, NonFiniteCheck
from lightning_vision.callbacks.hooks import _snapshot
from lightning_vision.callbacks.verification.non_finite_check import all_finite, not_finite_in
from lightning_vision.generation import DCGAN
from lightning_vision.self_supervised import MoCo
from support.compare import distance, seeded
from support.data import labelled_images, plain_loader
from support.four_tasks import TASKS
from support.learners import tiny
from support.modules import Plain, TwoOptimizers
from support.trainers import quiet_trainer

PARTS = {
    "classification": "network.stages.1.0.bn2",
    "detection": "network.model.backbone.levels.network.stem.conv",
    "generation": "network.begin",
    "self-supervised": "network.backbone.stages.0",
}


def fit(module, *callbacks, loader=None, **options):
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 1} | options)
    trainer.fit(module, loader or plain_loader(24))
    return trainer


def poisoned(*places, count=48, value=torch.nan):
    """Eight batches of six; a pixel of the images at these places is `value`."""
    data = labelled_images(count)
    for place in places:
        data.tensors[0][place, 0, 0, 0] = value
    return DataLoader(data, batch_size=6, generator=torch.Generator())


def said(module, **settings):
    with pytest.raises(RuntimeError) as caught:
        fit(module, NonFiniteCheck(**settings))
    return str(caught.value)


class With(Plain):
    """A part of its network is another one."""

    def __init__(self, place, part):
        super().__init__(dropout=0.0)
        self.network[place] = part


class Logarithm(nn.Module):
    def forward(self, x):
        return x.log()


class Root(nn.Module):
    """Its derivative at 0 is infinite."""

    def forward(self, x):
        return x + (x * 0).sqrt()


class Divides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(x / 0)


class Masked(nn.Module):
    """Attention over positions, of which one is masked by minus infinity."""

    class Mask(nn.Module):
        def forward(self, x):
            return x.masked_fill(torch.arange(x.shape[-1]) == 0, -torch.inf)

    def __init__(self):
        super().__init__()
        self.mask, self.softmax = self.Mask(), nn.Softmax(-1)

    def forward(self, x):
        return self.softmax(self.mask(x))


@pytest.mark.parametrize("task", TASKS)
def test_on_each_kind_of_task_the_part_is_named_and_one_that_is_right_passes(task):
    module, loader = TASKS[task]()
    fit(module, NonFiniteCheck(), loader=loader)
    part = module.get_submodule(PARTS[task])
    part.register_forward_hook(lambda part, args, output: output * torch.nan)

    with pytest.raises(
        RuntimeError, match=rf"not finite in step 1: `{re.escape(PARTS[task])}` \({type(part).__name__}\)"
    ):
        fit(module, NonFiniteCheck(), loader=loader)


def test_the_first_part_in_the_order_of_calls_is_named_with_what_it_was_given():
    message = said(seeded(With, 2, Logarithm()))

    assert re.fullmatch(
        r"NonFiniteCheck: loss or gradient was not finite in step 1: `network.2` \(Logarithm\) put out \d+ NaN of 216 "
        r"numbers, first in sample 0, though what it was given is finite: \(6, 4, 3, 3\) from -\S+ to \S+, mean \S+\. "
        r"The step was not taken\.",
        message,
    )


def test_a_forward_between_its_parts_is_told_from_the_parts():
    message = said(seeded(With, 2, Divides()))

    assert "`network.2` (Divides) put out" in message
    assert "it is its own forward that does, `network.2.inner` was given it" in message


def test_a_part_that_writes_in_place_is_named():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.log_()

    assert "`network.2` (InPlace) put out" in said(seeded(With, 2, InPlace()))


def test_infinities_that_the_next_part_takes_in_are_nobodys_fault():
    module = seeded(With, 2, nn.Sequential(Masked(), Logarithm()))

    assert "`network.2.1` (Logarithm) put out" in said(module)


def test_infinities_that_only_a_part_beside_the_path_takes_in_are_still_blamed():
    class Overflows(nn.Module):
        def forward(self, x):
            return x.exp() / 0

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.overflows, self.bounds = Overflows(), nn.Sigmoid()

        def forward(self, x):
            x = self.overflows(x)
            return x - x + self.bounds(x)

    assert "`network.2.overflows` (Overflows) put out 216 infinite of 216" in said(seeded(With, 2, Branches()))


def test_an_infinite_slope_is_found_by_the_backward_pass():
    message = said(seeded(With, 2, Root()))

    assert "`network.2` (Root) gave what it was given a gradient with" in message
    assert message.endswith("a root, a logarithm or a norm has no finite slope at 0. The step was not taken.")


def test_a_loss_outside_of_all_parts_is_told():
    module = seeded(Plain)
    module.loss = lambda image, target: (module.network(image).softmax(1) - 2).log().mean()

    assert "all parts put out finite numbers, at last `network`, so `training_step` makes such a loss of them" in said(
        module
    )
    module.loss = lambda image, target: (module.network(image) * 0).sum().sqrt()
    assert "but the gradient that the loss gives it is not" in said(module)
    module.loss = lambda image, target: module.network(image / 0).mean()
    assert "`network` was given such numbers, which `training_step` made outside of all parts" in said(module)


def test_a_batch_that_holds_nan_is_told_with_the_sample():
    with pytest.raises(RuntimeError) as caught:
        fit(seeded(Plain), NonFiniteCheck(), loader=poisoned(8))

    assert str(caught.value) == (
        "NonFiniteCheck: loss or gradient was not finite in step 2: `batch[0]` holds 1 NaN of 384 numbers, first in "
        "sample 2, so the data are to blame. The step was not taken."
    )
    assert not_finite_in({"image": [torch.tensor([torch.inf])]}) == [
        "`batch['image'][0]` holds 1 infinite of 1 numbers"
    ]


def test_weights_that_were_spoilt_before_the_step_or_the_fit_are_named():
    class Spoils(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.network[0].bias.data[1] = torch.nan

    module = seeded(Plain)
    with pytest.raises(
        RuntimeError, match=r"in step 2: `network\.0\.bias` held such numbers before the step, so an earl"
    ):
        fit(module, Spoils(), NonFiniteCheck())
    with pytest.raises(ValueError, match=r"^NonFiniteCheck: before the first step `network\.0\.bias` of Plain holds"):
        fit(module, NonFiniteCheck())


def test_a_constant_of_minus_infinity_is_no_fault():
    module = seeded(Plain)
    module.register_buffer("mask", torch.tensor([-torch.inf]))
    fit(module, NonFiniteCheck())


def test_what_cannot_be_reproduced_is_said():
    module, calls = seeded(Plain), []

    def moody(image, target):
        calls.append(1)
        return F.cross_entropy(module.network(image), target) * (torch.nan if len(calls) == 2 else 1)

    module.loss = moody
    message = said(module)

    assert "in step 2: all parts put out finite numbers" in message


def test_stopping_leaves_weights_buffers_and_optimizer_clean():
    class Remembers(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            self.state = copy.deepcopy(pl_module.state_dict())

    module, remembers = seeded(Plain), Remembers()
    with pytest.raises(RuntimeError):
        fit(module, remembers, NonFiniteCheck(), loader=poisoned(8))

    assert distance(module.state_dict(), remembers.state) == 0


def by_hand(loader, accumulate=1, epochs=1, snapshot=None, buffers=True, gradients=None):
    """The training of `Plain`; a window that is not finite is skipped, or the last of the snapshots is put back.

    Args:
        buffers: Mutant where False: buffers keep what the bad batch left.
        gradients: Mutant with 0.0: the step is taken with gradients of zero.
    """
    module = seeded(Plain)
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    torch.manual_seed(7)
    step, kept = 0, None
    for _ in range(epochs):
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            if snapshot and step % snapshot == 0:
                kept = copy.deepcopy((module.state_dict(), optimizer.state_dict()["state"]))
            before = copy.deepcopy(dict(module.named_buffers()))
            losses = []
            optimizer.zero_grad()
            for image, target in batches[start : start + accumulate]:
                losses.append(F.cross_entropy(module.network(image), target))
                (losses[-1] / accumulate).backward()
            step += 1
            if all(it.isfinite() for it in losses):
                optimizer.step()
            elif kept is not None:
                module.load_state_dict(kept[0])
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict(copy.deepcopy({"state": kept[1], "param_groups": groups}))
            else:
                for name, it in module.named_buffers():
                    if buffers:
                        it.copy_(before[name])
                if gradients is not None:
                    for it in module.parameters():
                        it.grad.fill_(gradients)
                    optimizer.step()
            scheduler.step()
    return module


class Draws(Callback):
    def on_train_start(self, trainer, pl_module):
        torch.manual_seed(7)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_skipped_step_is_as_if_its_batches_had_not_come(accumulate):
    loader, module = poisoned(8, 30, 31), seeded(Plain)
    with pytest.warns(UserWarning, match=r"the step is skipped \(1 of 3\)\.$"):
        trainer = fit(
            module, Draws(), NonFiniteCheck("skip"), loader=loader, accumulate_grad_batches=accumulate, max_epochs=2
        )

    assert trainer.global_step == 2 * -(-8 // accumulate)
    assert distance(module.state_dict(), by_hand(loader, accumulate, epochs=2).state_dict()) == 0


@pytest.mark.parametrize(
    ("wrong", "apart"), [({"buffers": False}, "network.1.running_mean"), ({"gradients": 0.0}, "network.0.weight")]
)
def test_what_skips_less_than_all_of_a_step_is_noticed(wrong, apart):
    loader, module = poisoned(8), seeded(Plain)
    with pytest.warns(UserWarning, match="the step is skipped"):
        fit(module, Draws(), NonFiniteCheck("skip"), loader=loader)
    right, mutant = by_hand(loader).state_dict(), by_hand(loader, **wrong).state_dict()

    assert torch.equal(module.state_dict()[apart], right[apart])
    assert not torch.equal(module.state_dict()[apart], mutant[apart])


def test_going_back_puts_weights_buffers_and_momentum_where_they_were():
    loader, module = poisoned(33), seeded(Plain)
    with pytest.warns(UserWarning, match=r"the step is skipped and the snapshot put back \(1 of 3\)\.$"):
        fit(module, Draws(), NonFiniteCheck("rollback", snapshot_every=4), loader=loader, max_epochs=2)

    assert distance(module.state_dict(), by_hand(loader, epochs=2, snapshot=4).state_dict()) == 0
    assert distance(module.state_dict(), by_hand(loader, epochs=2, snapshot=5).state_dict()) > 0


def test_a_mutant_that_puts_no_momentum_back_is_noticed(monkeypatch):
    monkeypatch.setattr(_snapshot, "_copied", dict)
    loader, module = poisoned(33), seeded(Plain)
    with pytest.warns(UserWarning, match="put back"):
        fit(module, Draws(), NonFiniteCheck("rollback", snapshot_every=4), loader=loader, max_epochs=2)

    assert distance(module.state_dict(), by_hand(loader, epochs=2, snapshot=4).state_dict()) > 0


@pytest.mark.parametrize(
    ("action", "words"), [("skip", "2 steps in a row were skipped"), ("rollback", "2 times it went")]
)
def test_beyond_its_patience_it_stops(action, words):
    ends = pytest.raises(
        RuntimeError, match=rf"in step 5: `batch\[0\]` holds .* to blame\. {words} .*so the fit ends\.$"
    )
    with ends, pytest.warns(UserWarning, match="2 of 2"):
        fit(seeded(Plain), NonFiniteCheck(action, patience=2), loader=poisoned(12, 18, 24))


def test_a_good_step_makes_it_patient_again_when_skipping():
    with pytest.warns(UserWarning, match="1 of 1") as caught:
        trainer = fit(seeded(Plain), NonFiniteCheck("skip", patience=1), loader=poisoned(6, 18, 30))

    assert trainer.global_step == 8
    assert len([it for it in caught if "NonFiniteCheck" in str(it.message)]) == 3


def test_seldom_looks_find_it_later_and_say_between_which_steps():
    with pytest.raises(
        RuntimeError, match=r"between steps 5 and 8: `network\.0\.weight`, `network\.0\.bias` and \d+ more"
    ):
        fit(seeded(Plain), NonFiniteCheck(every_n_steps=4), loader=poisoned(30))


def test_the_last_answers_are_read_at_the_end_of_training():
    with pytest.raises(RuntimeError, match=r"not finite between steps 1 and 8: `network\.0\.weight`, .* was taken\.$"):
        fit(seeded(Plain), NonFiniteCheck(every_n_steps=10), loader=poisoned(40))
    fit(seeded(Plain), NonFiniteCheck(every_n_steps=10))


def test_the_last_answers_are_read_before_a_checkpoint_is_written(tmp_path):
    writer = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(RuntimeError, match=r"not finite between steps 4 and 6: "):
        fit(seeded(Plain), NonFiniteCheck(every_n_steps=10), writer, loader=poisoned(24), enable_checkpointing=True)

    assert [it.name for it in tmp_path.iterdir()] == ["epoch=0-step=3.ckpt"]


def test_on_two_processes_the_last_answer_of_one_ends_both(two_ranks):
    def one_is_poisoned():
        import torch.distributed as dist

        loader = poisoned(*([20] if dist.get_rank() == 1 else []), count=24)
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        try:
            fit(seeded(Plain, 0.0), NonFiniteCheck(every_n_steps=10), loader=loader, **options)
        except RuntimeError as error:
            return str(error)

    told = two_ranks(one_is_poisoned)

    assert ["not finite between steps 1 and 4" in it for it in told] == [True, True]


def test_going_back_twice_to_one_snapshot_finds_the_same_momentum():
    """The snapshot is of step 5; steps 6 and 8 are bad, and steps 7 and 9 go on with its momentum."""
    loader, module = poisoned(36, 48, count=60), seeded(Plain)
    with pytest.warns(UserWarning, match=r"put back \(2 of 3\)"):
        fit(module, Draws(), NonFiniteCheck("rollback", snapshot_every=5), loader=loader)

    assert distance(module.state_dict(), by_hand(loader, snapshot=5).state_dict()) == 0


def test_weights_that_were_spoilt_outside_of_a_step_enter_no_snapshot():
    """Something writes NaN right before a snapshot is due; going back is to those of before."""

    class Spoils(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 4:
                pl_module.network[0].bias.data[1] = torch.nan

    module = seeded(Plain)
    with pytest.warns(
        UserWarning, match=r"in step 5: `network\.0\.bias` held such numbers before .* put back \(1 of 3\)"
    ):
        trainer = fit(module, Spoils(), NonFiniteCheck("rollback", snapshot_every=4), loader=plain_loader(48))

    assert trainer.global_step == 8
    assert all(it.isfinite().all() for it in module.parameters())


def test_a_loss_scaler_sees_to_gradients_that_overflow():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    trainer = fit(seeded(Plain), NonFiniteCheck("skip"), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

    assert scaler.get_scale() < 2.0**30
    with pytest.warns(UserWarning, match=r"in step 2: `batch\[0\]` holds 1 NaN"):
        fit(seeded(Plain), NonFiniteCheck("skip"), loader=poisoned(8),
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))])  # fmt: skip
    assert trainer.global_step == 4


class Follows(Plain):
    """Its step moves a teacher and counts, and its third loss is not finite."""

    def __init__(self, trained=True):
        super().__init__()
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        torch.nn.init.zeros_(self.teacher.bias)
        self.calls, self.trained = 0, trained

    def training_step(self, batch, batch_idx):
        self.calls += 1
        self.teacher.bias.data += 1
        return super().training_step(batch, batch_idx) * (torch.nan if batch_idx == 2 else 1)

    def configure_optimizers(self):
        return torch.optim.SGD((self if self.trained else self.network).parameters(), lr=0.01)


@pytest.mark.parametrize("trained", [True, False])
def test_a_teacher_that_the_step_moves_does_not_follow_a_bad_batch(trained):
    module = seeded(Follows, trained)
    with pytest.warns(UserWarning, match="in step 3: all parts put out finite numbers"):
        fit(module, NonFiniteCheck("skip"))

    assert module.teacher.bias.tolist() == [3, 3]
    assert module.calls == 4
    module = seeded(Follows, trained)
    said(module)
    assert module.teacher.bias.tolist() == [2, 2]
    assert module.calls == 3


def test_computing_a_step_by_hand_again_moves_no_weights():
    class Clips(TwoOptimizers):
        @torch.no_grad()
        def training_step(self, batch, batch_idx):
            self.network[0].weight.data *= 2
            with torch.enable_grad():
                super().training_step(batch, batch_idx)

    module = seeded(Clips)
    module.network[2] = Logarithm()
    weight = module.network[0].weight.detach().clone()
    said(module)

    assert torch.equal(module.network[0].weight, 2 * weight)


def test_going_back_finds_what_an_optimizer_keeps_in_lists():
    class Lists(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            for it in self.param_groups[0]["params"]:
                self.state[it].setdefault("sums", [torch.zeros(1)])[0].add_(1)
            return loss

    module = seeded(Plain)
    module.configure_optimizers = lambda: Lists(module.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match="put back"):
        trainer = fit(module, NonFiniteCheck("rollback", snapshot_every=2), loader=poisoned(20, count=24))

    assert [it["sums"][0].item() for it in trainer.optimizers[0].state.values()] == [2.0] * 6


def test_parameters_of_whole_numbers_are_no_hindrance():
    module = seeded(Plain)
    module.codes = nn.Parameter(torch.arange(4, dtype=torch.int8), requires_grad=False)
    with pytest.warns(UserWarning, match="put back"):
        fit(module, NonFiniteCheck("rollback"), loader=poisoned(8))

    assert module.codes.tolist() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_scripted_teacher_is_passed_over_and_no_hook_is_left():
    module = seeded(With, 2, Logarithm())
    module.teacher = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False))

    assert "`network.2` (Logarithm) put out" in said(module)
    assert not any(it._forward_hooks or it._forward_pre_hooks for it in module.network.modules())


def test_of_the_hooks_of_a_skipped_step_only_torchs_pre_hooks_run():
    class Hooked(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            self.handles = [
                optimizer.register_step_pre_hook(lambda *_: ran.append("pre")),
                optimizer.register_step_post_hook(lambda *_: ran.append("post")),
            ]
            return optimizer

        def on_before_optimizer_step(self, optimizer):
            ran.append("before")

    ran = []
    with pytest.warns(UserWarning, match="the step is skipped"):
        fit(seeded(Hooked), NonFiniteCheck("skip"), loader=poisoned(0, count=6))

    assert ran == ["pre"]


def test_sam_computes_the_skipped_step_again_and_leaves_no_trace():
    loader, left, right = poisoned(8), seeded(Plain, 0.0), seeded(Plain, 0.0)
    with pytest.warns(UserWarning, match="the step is skipped"):
        fit(left, SAM(rho=0.05), NonFiniteCheck("skip"), loader=loader)
    fit(right, SAM(rho=0.05), Leaves(1), loader=loader)

    assert distance(left.state_dict(), right.state_dict()) == 0


class Leaves(Callback):
    """Has the module return no loss for a batch, and puts back what batch norm made of it; the schedule goes on."""

    def __init__(self, place):
        self.place = place

    def on_train_start(self, trainer, pl_module):
        own = pl_module.training_step
        pl_module.training_step = lambda batch, batch_idx: None if batch_idx == self.place else own(batch, batch_idx)

    def on_train_end(self, trainer, pl_module):
        del pl_module.training_step


def test_keys_of_a_bad_batch_do_not_enter_a_queue_with_the_next_step():
    module = tiny(MoCo, queue_size=32)
    with pytest.warns(UserWarning, match="the step is skipped") as caught:
        fit(module, NonFiniteCheck("skip"), loader=poisoned(8))

    assert len([it for it in caught if "skipped" in str(it.message)]) == 1
    assert all(it.isfinite().all() for it in module.state_dict().values() if it.is_floating_point())


def test_manual_optimisation_is_stopped_with_the_part_and_not_skipped():
    module = seeded(TwoOptimizers)
    fit(module, NonFiniteCheck())
    module.network[2] = Logarithm()
    weights = copy.deepcopy(dict(module.named_parameters()))

    assert "in step 1: `network.2` (Logarithm) put out" in said(module)
    assert distance(dict(module.named_parameters()), weights) == 0
    with pytest.raises(ValueError, match=r"^NonFiniteCheck: TwoOptimizers optimises manually, .* stop instead"):
        fit(module, NonFiniteCheck("skip"))


def test_two_networks_against_each_other_are_stopped_with_the_part():
    torch.manual_seed(0)
    module = DCGAN(image_size=8, in_channels=1, channels=4, latent_dim=4)
    module.network.discriminator.register_forward_hook(lambda part, args, output: output / 0)

    assert "`network.discriminator" in said(module)


def test_on_two_processes_both_skip_and_the_one_with_the_bad_batch_is_named(two_ranks):
    def one_is_poisoned():
        import warnings

        import torch.distributed as dist

        module = seeded(Plain, 0.0)
        loader = poisoned(*([8] if dist.get_rank() == 1 else []), count=24)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(module, NonFiniteCheck("skip"), loader=loader, strategy="ddp", devices=2, use_distributed_sampler=False)
        told = [str(it.message) for it in caught if "NonFiniteCheck" in str(it.message)]
        return told, {name: it.clone() for name, it in module.named_parameters()}

    (told, first), (_, second) = two_ranks(one_is_poisoned)

    assert told == [
        "NonFiniteCheck: loss or gradient was not finite in step 2: process 1, `batch[0]` holds 1 NaN of 384 numbers, "
        "first in sample 2, so the data are to blame; the step is skipped (1 of 3)."
    ]
    assert distance(first, second) == 0
    assert all(it.isfinite().all() for it in first.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_among_many_is_seen(value):
    gradients = [torch.randn(1000), torch.randn(30, 7).bfloat16(), torch.full((3,), 6e4).half()]

    assert all_finite([torch.tensor(1.0)], gradients)
    gradients[1][29, 6] = value
    assert not all_finite([torch.tensor(1.0)], gradients)
    assert not all_finite([torch.tensor(value)], [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "shout"}, "NonFiniteCheck: action is 'shout'; give 'stop', 'skip', 'rollback' or 'off'."),
        ({"patience": 0}, "NonFiniteCheck: patience is 0; give a whole number of at least 1."),
        ({"snapshot_every": 0}, "NonFiniteCheck: snapshot_every is 0; give a whole number of at least 1."),
        (
            {"action": "skip", "every_n_steps": 2},
            "NonFiniteCheck: every_n_steps is 2, but a step that was taken unseen can no longer be left out; give 1 "
            "with action='skip', or stop.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        NonFiniteCheck(**settings)

    assert str(caught.value) == message

"""What must not train is caught moving, with a gradient or on trained memory, on each kind of task; what rests is not.

Conformance proves that the run is the one without it.
"""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_vision.callbacks import FrozenPartCheck, HeadFirst
from lightning_vision.callbacks.hooks.freezing import Freezing
from lightning_vision.callbacks.verification._tensors import fingerprints, overlapping
from lightning_vision.callbacks.verification.frozen_part_check import frozen_parts
from support.compare import seeded
from support.data import plain_loader
from support.four_tasks import TASKS
from support.modules import Plain
from support.trainers import quiet_trainer

# By task, a part that rests where it is frozen, and how its parameters are reached.
PARTS = {
    "classification": "network.stem",
    "detection": "network.model.backbone",
    "generation": "network.begin",
    "self-supervised": "network.backbone.stages.0",
}


class Taught(Plain):
    """Learns from a teacher, a frozen network in evaluation mode."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False).eval()

    def loss(self, image, target):
        return super().loss(image, target) + (self.network(image) - self.teacher(image)).square().mean()


def zeroing(module):
    """The module with gradients set to zero instead of none, as before torch 2."""
    module.optimizer_zero_grad = lambda epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)
    return module


class Nudge(Callback):
    """A stranger's bug: after optimizer step `step` one number of a parameter is the next larger one."""

    def __init__(self, path, step=1):
        self.path, self.step = path, step

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            first = next(pl_module.get_submodule(self.path).parameters()).view(-1)[:1]
            first.copy_(first.nextafter(first + 1))


def fit(module, *callbacks, loader=None, **options):
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_steps": 3} | options)
    trainer.fit(module, loader or plain_loader(24))
    return trainer


@pytest.mark.parametrize("task", TASKS)
def test_on_each_kind_of_task_a_part_that_rests_passes_and_one_that_moves_is_named(task):
    path = PARTS[task]
    for wrong in (False, True):
        module, loader = TASKS[task]()
        module.get_submodule(path).requires_grad_(False).eval()
        callbacks = [*([Nudge(path)] if wrong else []), FrozenPartCheck([path])]
        if not wrong:
            fit(module, *callbacks, loader=loader)
            continue
        with pytest.raises(RuntimeError, match=rf"^FrozenPartCheck: after step 1, parameters of `{path}` moved \(`"):
            fit(module, *callbacks, loader=loader)


def test_a_momentum_teacher_moves_by_design_and_its_gradient_is_still_an_error():
    module, loader = TASKS["self-supervised"]()
    with pytest.raises(RuntimeError, match=r"parameters of `target` moved .* name 'target' in may_move"):
        fit(module, FrozenPartCheck(), loader=loader)
    module, loader = TASKS["self-supervised"]()
    fit(module, FrozenPartCheck(may_move=["target"]), loader=loader)
    module.target.requires_grad_(True)

    with pytest.raises(RuntimeError, match="before the first step, `target` requires a gradient"):
        fit(module, FrozenPartCheck(may_move=["target"]), loader=loader)


def test_what_rests_is_found_without_a_name_and_passes():
    module = seeded(Taught)
    fit(module, FrozenPartCheck(every_n_steps=1))

    assert frozen_parts(module) == ["teacher"]


def test_a_batch_norm_in_training_mode_is_named_with_the_way_out():
    module = seeded(Taught)
    module.teacher.train()
    with pytest.raises(RuntimeError) as caught:
        fit(module, FrozenPartCheck(["teacher"]))

    assert str(caught.value) == (
        "FrozenPartCheck: after step 1, batch norm `teacher.1` of the frozen part `teacher` ran in training mode, so "
        "its statistics followed the batches; put the part into evaluation mode, `self.teacher.eval()`, where the "
        "module is made."
    )


def test_a_part_that_requires_a_gradient_is_refused_before_the_first_step():
    module = seeded(Taught)
    module.teacher[0].requires_grad_(True)
    with pytest.raises(RuntimeError) as caught:
        fit(module, FrozenPartCheck(["teacher"]))

    assert str(caught.value) == (
        "FrozenPartCheck: before the first step, `teacher` requires a gradient (`teacher.0.weight` and "
        "`teacher.0.bias`); call `self.teacher.requires_grad_(False)` before optimizers are made."
    )


def test_a_gradient_with_which_decay_and_momentum_would_act_is_found_though_it_is_zero():
    class Leaves(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            pl_module.teacher[0].weight.grad = torch.zeros_like(pl_module.teacher[0].weight)

    own = zeroing(seeded(Taught))
    with pytest.raises(RuntimeError, match=r"`teacher` has a gradient \(`teacher.0.weight`\)") as caught:
        fit(own, Leaves(), FrozenPartCheck(["teacher"]))

    assert "parameters of `teacher` moved (`teacher.0.weight`), which optimizer 0 (SGD) holds" in str(caught.value)


def test_standing_in_an_optimizer_with_decay_and_momentum_is_no_fault():
    module = seeded(Taught)
    held = {id(it) for group in module.configure_optimizers()["optimizer"].param_groups for it in group["params"]}

    assert {id(it) for it in module.teacher.parameters()} <= held
    fit(module, FrozenPartCheck(["teacher"], every_n_steps=1))


def test_memory_shared_with_a_trained_parameter_is_found_before_the_first_step():
    module = seeded(Taught)
    module.teacher[5].weight.data = module.network[5].weight.data

    with pytest.raises(RuntimeError, match=r"`teacher.5.weight` shares its memory with the trained `network.5.weight`"):
        fit(module, FrozenPartCheck(["teacher"]))


def test_a_teacher_in_a_plain_list_is_reached():
    module = seeded(Taught)
    module.hidden = [module.teacher]
    del module.teacher
    module.loss = lambda image, target: Plain.loss(module, image, target) + 0 * module.hidden[0](image).sum()
    fit(module, FrozenPartCheck(["hidden.0"]))
    module.hidden[0].train()

    with pytest.raises(RuntimeError, match=r"batch norm `hidden.0.1` of the frozen part `hidden.0` ran"):
        fit(module, FrozenPartCheck(["hidden.0"]))


@pytest.mark.parametrize(("step", "found"), [(1, 1), (2, 4), (6, 7)])
def test_it_looks_after_the_first_step_after_every_nth_and_at_the_end_of_the_epoch(step, found):
    module = seeded(Taught)
    with pytest.raises(RuntimeError, match=f"after step {found},"):
        fit(module, Nudge("teacher.0", step), FrozenPartCheck(every_n_steps=4), loader=plain_loader(42), max_steps=7)


def test_a_part_that_head_first_thaws_is_let_go_unless_it_was_named():
    thaws = {"epochs": 1, "head": "network.5"}
    fit(seeded(Plain), HeadFirst(**thaws), FrozenPartCheck(), max_epochs=2, max_steps=-1)

    with pytest.raises(RuntimeError, match=r"after step 5, `network\.0` requires a gradient"):
        fit(seeded(Plain), HeadFirst(**thaws), FrozenPartCheck(["network.0"], None, 1), max_epochs=2, max_steps=-1)


class Thaws(Callback):
    """Thaws the last layer of a frozen teacher after a step."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.teacher[5].requires_grad_(True)


def test_of_a_part_of_which_one_layer_is_thawed_the_others_are_watched_on():
    fit(seeded(Taught), Thaws(), FrozenPartCheck(every_n_steps=1))

    with pytest.raises(RuntimeError, match=r"after step 2, parameters of `teacher\.0` moved"):
        fit(seeded(Taught), Thaws(), Nudge("teacher.0", 2), FrozenPartCheck(every_n_steps=1))
    with pytest.raises(RuntimeError, match=r"after step 1, `teacher\.5` requires a gradient"):
        fit(seeded(Taught), Thaws(), FrozenPartCheck(may_move=["teacher.5"]))


@pytest.mark.parametrize("part", ["teacher", "teacher.0", "teacher._orig_mod.0"])
def test_parts_of_a_compiled_network_have_their_plain_names(part, compiler):
    module = seeded(Taught)
    module.teacher = torch.compile(module.teacher, backend="eager")

    assert frozen_parts(module) == ["teacher"]
    with torch.compiler.set_stance("force_eager"):
        fit(module, Nudge("teacher", 1), FrozenPartCheck(may_move=[part]))
        with pytest.raises(RuntimeError, match=r"parameters of `teacher(\.0)?` moved \(`teacher\.0\.weight`\)"):
            fit(module, Nudge("teacher", 1), FrozenPartCheck([part]))
        module.teacher.train()
        with pytest.raises(RuntimeError, match=r"batch norm `teacher\.1` of the frozen part `teacher` ran"):
            fit(module, FrozenPartCheck())


def test_batch_norms_that_a_callback_freezes_and_lets_run_are_no_fault_unless_they_were_named():
    class NormsRun(Freezing):
        rests = ""
        neutral = "it only stands in a test of another"

        def plan(self, pl_module, epochs):
            return None

        def trained(self, epoch):
            return ("network.5",)

    fit(seeded(Plain), NormsRun(), FrozenPartCheck())

    with pytest.raises(RuntimeError, match=r"batch norm `network\.1` of the frozen part `network\.1` ran"):
        fit(seeded(Plain), NormsRun(), FrozenPartCheck(["network.1"]))


def test_with_warn_it_is_told_once_and_the_fit_goes_on():
    module = seeded(Taught)
    module.teacher.train()
    with pytest.warns(UserWarning, match="^FrozenPartCheck: after step 1, batch norm `teacher.1`") as caught:
        trainer = fit(module, FrozenPartCheck(["teacher"], every_n_steps=1, action="warn"))

    assert trainer.global_step == 3
    assert len([it for it in caught if "FrozenPartCheck" in str(it.message)]) == 1


def test_on_two_processes_both_hear_of_what_one_of_them_found(two_ranks):
    def one_moves():
        import torch.distributed as dist

        module = seeded(Taught)
        nudges = [Nudge("teacher.0")] if dist.get_rank() == 1 else []
        try:
            fit(module, *nudges, FrozenPartCheck(), strategy="ddp", devices=2, use_distributed_sampler=False)
        except RuntimeError as error:
            return str(error)

    first, second = two_ranks(one_moves)

    assert first == "FrozenPartCheck: after step 1, another process found something, which it says."
    assert second.startswith("FrozenPartCheck: after step 1, parameters of `teacher` moved (`teacher.0.weight`)")


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.complex64, torch.bool]
)
def test_a_fingerprint_tells_a_changed_element_and_an_exchange_of_two(kind):
    torch.manual_seed(0)
    for shape in [(), (3, 5), (2051,), (64, 33)]:
        own = (torch.randn(shape) * 100).to(kind)
        first = own.clone().view(-1)
        first[-1:] = ~first[-1:] if kind is torch.bool else first[-1:] + 1
        same, changed = fingerprints([own, own.clone()]), fingerprints([first.view(shape)])

        assert same[0] == same[1] != changed[0]
        if len(first) > 1:
            own = own.clone().view(-1)
            own[0], own[-1] = 0, 1
            assert fingerprints([own]) != fingerprints([torch.cat([own[-1:], own[1:-1], own[:1]])])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("width", [1000, 1024, 2048])
def test_rows_of_a_wide_tensor_that_are_exchanged_are_noticed(width, kind):
    torch.manual_seed(0)
    own = (torch.randn(16, width) * 100).to(kind)
    others = [own.roll(by, 0) for by in range(1, 16)] + [own.flip(0), own.roll(1024, 1), own.view(-1).roll(1024)]
    first, *rest = fingerprints([own, *(it.reshape(16, width) for it in others if not torch.equal(it, own))]).tolist()

    assert first not in rest


@pytest.mark.parametrize("width", [1024, 2048])
def test_a_frozen_layer_whose_rows_are_rolled_is_caught(width):
    class Rolls(Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.wide.weight.copy_(pl_module.wide.weight.roll(1, 0))

    module = seeded(Plain)
    module.wide = nn.Linear(width, 8, bias=False).requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"parameters of `wide` moved \(`wide.weight`\)"):
        fit(module, Rolls(), FrozenPartCheck(["wide"]))


def test_turned_signs_that_cancel_in_a_plain_sum_are_noticed():
    own = torch.tensor([1.0, -1.0])

    assert own.view(torch.int32).sum() == (-own).view(torch.int32).sum()
    assert fingerprints([own]) != fingerprints([-own])


def test_views_of_one_storage_overlap_only_where_they_share_bytes():
    flat = torch.zeros(10)
    left, right = {"a": flat[:4], "b": flat[4:8]}, {"c": flat[3:5], "d": flat[8:], "e": torch.zeros(0)}

    assert overlapping(left, right) == [("a", "c"), ("b", "c")]
    assert overlapping({"f": flat[5:8]}, right) == []


def test_the_largest_frozen_parts_are_named_and_single_parameters():
    body = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.BatchNorm1d(2))
    body[1].requires_grad_(False)
    body[2].bias.requires_grad_(False)

    assert frozen_parts(body) == ["1", "2.bias"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": "teacher"}, "FrozenPartCheck: parts is 'teacher'; give a list of dotted names."),
        ({"may_move": [""]}, "FrozenPartCheck: may_move is ['']; give a list of dotted names."),
        ({"every_n_steps": 0}, "FrozenPartCheck: every_n_steps is 0; give a whole number of at least 1."),
        ({"action": "shout"}, "FrozenPartCheck: action is 'shout'; give 'error', 'warn' or 'off'."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        FrozenPartCheck(**settings)

    assert str(caught.value) == message


def test_a_name_that_the_module_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ValueError) as caught:
        fit(seeded(Taught), FrozenPartCheck(["tutor"]))

    assert str(caught.value) == (
        "FrozenPartCheck: Taught has no part 'tutor'; give a dotted name below network, teacher."
    )


def test_a_part_without_tensors_is_refused():
    with pytest.raises(ValueError) as caught:
        fit(seeded(Taught), FrozenPartCheck(["network.2"]))

    assert str(caught.value) == (
        "FrozenPartCheck: the part 'network.2' (ReLU) has neither parameters nor buffers that could move; name another."
    )

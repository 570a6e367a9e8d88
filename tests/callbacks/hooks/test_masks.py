"""Masks hold through optimizers, resumes and ranks; the run equals a loop with masks written by hand."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from lightning_vision.callbacks import ExactResume
from lightning_vision.callbacks.hooks.masks import Masks
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.resuming import differences, newest, record


class Magnitude(Masks):
    """At some steps the smaller half of the weights left in each matrix or kernel goes."""

    def __init__(self, steps=(3,), name=None):
        super().__init__(name=name)
        self.steps = list(steps)

    def due(self, step):
        return step in self.steps

    def masks(self, step, weights):
        return {name: smaller_half_gone(weight) for name, weight in weights.items() if weight.ndim > 1}


def smaller_half_gone(weight):
    left = weight[weight != 0].abs()
    return weight.abs() > left.median()


class Adam(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class Drifting(Plain):
    """Its optimizer moves every weight, whatever the gradient."""

    def configure_optimizers(self):
        class Drift(torch.optim.SGD):
            def step(self, closure=None):
                loss = super().step(closure)
                for group in self.param_groups:
                    torch._foreach_add_([it.data for it in group["params"]], 0.01)
                return loss

        return Drift(self.parameters(), lr=0.05)


class Watch(Callback):
    """Masked fraction of the head after each batch."""

    def __init__(self):
        self.zeros = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.zeros.append(float((pl_module.network[5].weight == 0).float().mean()))


def loader():
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return ResumableLoader(labelled_images(60), 6, *ranks)


def run(*callbacks, kind=Plain, **options):
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    return record(module, loader, callbacks, **{"max_epochs": 2} | options)


def flat(run):
    return torch.cat([value.flatten() for value in run.state["weights"].values()])


def by_hand(kind, steps=(3,), once=False):
    """The loop of `run`, with masks; with `once` they are put on at their step and not held."""
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    schedule = configured["lr_scheduler"]["scheduler"] if isinstance(configured, dict) else None
    masks, data, step = {}, loader(), 0

    @torch.no_grad()
    def hold():
        for parameter, mask in masks.items():
            parameter *= mask

    @torch.no_grad()
    def prune():
        for parameter in [it for it in module.parameters() if it.ndim > 1]:
            masks[parameter] = smaller_half_gone(parameter)
            for value in optimizer.state[parameter].values():
                if value is not None and value.shape == parameter.shape:
                    value *= masks[parameter]
        hold()

    if 0 in steps:
        prune()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            optimizer.zero_grad()
            F.cross_entropy(module(image), target).backward()
            if not once:
                for parameter, mask in masks.items():
                    parameter.grad *= mask
            optimizer.step()
            if schedule is not None:
                schedule.step()
            step += 1
            if not once:
                hold()
            if step in steps:
                prune()
    return torch.cat([value.flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize("kind", [Plain, Adam])
def test_it_equals_a_loop_with_masks_written_by_hand(kind):
    steps = (0, 3, 11)

    assert torch.equal(by_hand(kind, steps), flat(run(Magnitude(steps), kind=kind)))


def test_masks_that_are_put_on_and_not_held_are_noticed():
    for kind in (Plain, Adam):
        assert (by_hand(kind, once=True) - flat(run(Magnitude(), kind=kind))).abs().max() > 1e-3


CONDITIONS = {
    "momentum and weight decay": {},
    "AdamW": {"kind": Adam},
    "drift": {"kind": Drifting},
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"plugins": lambda: MixedPrecision("16-mixed", "cpu")},
    "clipping": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_sparsity_is_constant_from_the_step_of_the_mask_on(condition):
    watch, callback = Watch(), Magnitude()
    run(callback, watch, **{key: it() if key == "plugins" else it for key, it in condition.items()})

    assert watch.zeros == [0.0] * 2 + [0.5] * 18


def test_steps_are_counted_not_micro_batches():
    watch = Watch()
    run(Magnitude(), watch, accumulate_grad_batches=3, max_epochs=1)

    assert watch.zeros == [0.0] * 8 + [0.5] * 2


def test_manual_optimisation_keeps_masks_in_every_optimizer():
    watch = Watch()
    result = run(Magnitude([4]), watch, kind=TwoOptimizers, max_epochs=1)

    assert watch.zeros == [0.0] + [0.5] * 9
    assert float((result.state["weights"]["network.0.weight"] == 0).float().mean()) == 0.5


def test_gradients_and_optimizer_states_of_masked_weights_are_zero():
    found = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            weight = pl_module.network[5].weight
            if trainer.global_step >= 3:
                gone = weight == 0
                values = [weight.grad, *optimizer.state[weight].values()]
                found.extend(bool(it[gone].any()) for it in values if it is not None and it.shape == weight.shape)

    run(Magnitude(), Look(), kind=Adam, max_epochs=1)

    assert found == [False] * 3 * 7


@pytest.mark.parametrize(
    ("saving", "kill_at"), [({"every_n_train_steps": 4}, 6), ({"every_n_epochs": 1}, 12)], ids=["inside", "epoch's end"]
)
def test_a_resumed_run_equals_the_straight_one(tmp_path, saving, kill_at):
    def go(name, **how):
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, **saving)
        return run(Magnitude((3, 7, 13)), ExactResume(), writer, **how)

    straight, killed = go("straight"), go("killed", kill_at=kill_at)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    assert differences(straight, killed, resumed) == []
    assert float((straight.state["weights"]["network.5.weight"] == 0).float().mean()) == 0.875


def test_files_hold_masked_weights_under_plain_names(tmp_path):
    whole = ModelCheckpoint(tmp_path, filename="whole", every_n_epochs=1)
    light = ModelCheckpoint(tmp_path, filename="light", every_n_train_steps=10, save_weights_only=True)
    run(Magnitude(), whole, light, max_epochs=1)
    for name in ("whole", "light"):
        weights = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]

        assert weights.keys() == Plain().state_dict().keys()
        assert float((weights["network.5.weight"] == 0).float().mean()) == 0.5


def test_a_callback_that_is_never_due_leaves_the_run_alone():
    assert torch.equal(flat(run()), flat(run(Magnitude(()))))


def test_on_two_ranks_rank_zero_decides(two_ranks):
    class Random(Magnitude):
        def masks(self, step, weights):
            assert dist.get_rank() == 0
            return {"network.5.weight": torch.rand(10, 36, generator=torch.Generator().manual_seed(3)) > 0.5}

    def masked():
        callback, watch = Random(), Watch()
        result = run(callback, watch, strategy="ddp", devices=2, use_distributed_sampler=False)
        shared = [value.flatten() for name, value in result.state["weights"].items() if "running" not in name]
        return torch.cat(shared), callback.kept_masks["network.5.weight"], len(set(watch.zeros))

    (weights0, mask0, levels0), (weights1, mask1, levels1) = two_ranks(masked)

    assert torch.equal(weights0, weights1)
    assert torch.equal(mask0, mask1)
    assert (levels0, levels1) == (2, 2)


@pytest.mark.parametrize("error", [False, True], ids=["end", "exception"])
def test_it_is_undone_and_a_second_fit_begins_dense(error):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, *args):
            if error and trainer.global_step == 5:
                raise RuntimeError("in a step")

    optimizers = []

    class Keep(Plain):
        def configure_optimizers(self):
            configured = super().configure_optimizers()
            optimizers.append(configured["optimizer"])
            return configured

    torch.manual_seed(0)
    module, callback = Keep(), Magnitude()
    try:
        record(module, loader, [callback, Fails()], max_epochs=1)
    except RuntimeError:
        assert error
    weight = module.network[5].weight
    assert not optimizers[0]._optimizer_step_post_hooks
    weight.grad = None
    weight.sum().backward()
    assert bool(weight.grad.all())

    watch = Watch()
    run(callback, watch, max_epochs=1)
    assert watch.zeros == [0.0] * 2 + [0.5] * 8


WRONG = {
    "name": (
        {"network.9": torch.ones(3, dtype=torch.bool)},
        "Gives: there is a mask of 'network.9', which is no parameter of the module; train the module that the masks "
        "were made for, or leave the callback out to drop them.",
    ),
    "shape": (
        {"network.5.bias": torch.ones(3, dtype=torch.bool)},
        "Gives: the mask of 'network.5.bias' is torch.bool of shape (3,); give a boolean one of the parameter's shape "
        "(10,).",
    ),
    "type": (
        {"network.5.bias": torch.ones(10)},
        "Gives: the mask of 'network.5.bias' is torch.float32 of shape (10,); give a boolean one of the parameter's "
        "shape (10,).",
    ),
}


@pytest.mark.parametrize(("masks", "sentence"), WRONG.values(), ids=WRONG)
def test_masks_that_do_not_fit_are_refused(masks, sentence):
    class Gives(Magnitude):
        def masks(self, step, weights):
            return masks

    with pytest.raises(ValueError) as refusal:
        run(Gives([0]))

    assert str(refusal.value) == sentence

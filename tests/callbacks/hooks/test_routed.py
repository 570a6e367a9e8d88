"""The second pass of a step is that of the same batch, mixed alike, and is seen by nobody; FeatureGates stands for it.

Equality with a loop by hand is proved in `pruning/test_feature_gates.py`, conditions and pairs in `conformance/`.
"""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_vision.callbacks import EMA, SAM, ExactResume, FeatureGates, HeadFirst, MixUp
from lightning_vision.callbacks.hooks.ascent import replaying
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import differences, record
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory", "ignore:The dirpath has changed", "ignore:HeadFirst"
)


def loaders(rank=0, world_size=1):
    return tuple(
        ResumableLoader(labelled_images(count, seed=seed), 6 // world_size, rank, world_size)
        for count, seed in ((60, 0), (24, 1))
    )


def fitted(*callbacks, module=None, rank=0, world_size=1, **options):
    module = module or seeded(Plain)
    torch.manual_seed(5)
    settings = {"max_epochs": 2, "enable_checkpointing": any(isinstance(it, ModelCheckpoint) for it in callbacks)}
    quiet_trainer(callbacks=list(callbacks), **settings | options).fit(module, *loaders(rank, world_size))
    return module


def gates(**settings):
    return FeatureGates(**{"layers": ["network.1", "network.5"], "gate_lr": 0.1} | settings)


@pytest.mark.parametrize(
    ("step", "others", "accumulate"), [(4, [], 1), (8, [], 2), (14, [lambda: EMA(decay=0.8), lambda: SAM(rho=0.1)], 1)]
)
def test_a_run_resumed_anywhere_equals_the_straight_one(step, others, accumulate, tmp_path):
    def run(name, **more):
        saves = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=2, save_top_k=-1)
        module, own = seeded(Plain), gates(every_n_steps=2)
        torch.manual_seed(5)
        callbacks = [own, *(make() for make in others), ExactResume(), saves]
        options = {"max_epochs": 3, "accumulate_grad_batches": accumulate} | more
        return record(module, loaders, callbacks, **options), module.state_dict() | own.scores

    straight, weights = run("straight")
    killed, _ = run("killed", kill_at=step, in_the_act=True)
    resumed, again = run("resumed", ckpt_path=tmp_path / "killed" / f"step={step}.ckpt")

    assert differences(straight, killed, resumed, lost_rows=1) == []
    assert distance(weights, again) == 0.0


def test_keys_of_module_and_optimizer_in_a_file_are_a_plain_runs(tmp_path):
    files = []
    for name, callbacks in (("ours", [gates()]), ("plain", [])):
        fitted(*callbacks, ModelCheckpoint(tmp_path, name), max_epochs=1)
        files.append(torch.load(tmp_path / f"{name}.ckpt", weights_only=True))
    ours, plain = files
    states = [file["optimizer_states"][0] for file in files]

    assert list(ours["state_dict"]) == list(plain["state_dict"])
    assert [it["param_groups"] for it in states] == [states[1]["param_groups"]] * 2
    assert [{key: sorted(value) for key, value in it["state"].items()} for it in states] == [
        {key: sorted(value) for key, value in states[1]["state"].items()}
    ] * 2


class Calls(Plain):
    """Keeps of each call of `training_step` its images and whether it is a second pass."""

    def __init__(self):
        super().__init__(0.0)
        self.calls, self.counted = [], 0

    def training_step(self, batch, batch_idx):
        again = replaying(self)
        self.calls.append((batch[0].clone(), again))
        self.counted += not again
        return super().training_step(batch, batch_idx)


def test_a_pass_computes_the_steps_batches_again_and_tells_the_module():
    module = fitted(gates(every_n_steps=2), module=seeded(Calls), accumulate_grad_batches=3, max_epochs=1)
    again = [it for _, it in module.calls]
    images = [it for it, _ in module.calls]

    # Ten batches are three steps of three and one of one; the second and the fourth step have a pass of the gates.
    assert again == [False] * 6 + [True] * 3 + [False] * 4 + [True]
    assert module.counted == 10
    assert all(torch.equal(images[3 + place], images[6 + place]) for place in range(3))


class Losses(Plain):
    """Keeps the loss of each pass."""

    def __init__(self):
        super().__init__(0.0)
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("first", [True, False])
def test_both_passes_mix_images_and_labels_alike(first):
    """Without a rate of the weights the gates' pass repeats the loss, which two labels share."""
    module = seeded(Losses)
    callbacks = [gates(gate_lr=1e-9), MixUp(alpha=1.0)]
    fitted(*(callbacks if first else callbacks[::-1]), module=module)
    mixed = seeded(Losses)
    fitted(*callbacks[1:], FeatureGates(["network.1", "network.5"], gate_lr=0.0), module=mixed)

    assert module.losses[::2] == pytest.approx(module.losses[1::2], rel=1e-6)
    assert module.losses[::2] == pytest.approx(mixed.losses, rel=1e-6)


def test_beside_an_ascent_the_gates_learn_at_the_weights_and_not_at_perturbed_ones():
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(dict(pl_module.state_dict()))

    module = fitted(gates(), SAM(rho=0.5), Look(), module=seeded(Calls), max_epochs=1)

    # First pass, ascent, gates: the ascent's window holds none of the gates' calls.
    assert [it for _, it in module.calls] == [False, True, True] * 10
    assert len(seen) == 10


def test_the_head_may_train_first_and_the_gates_from_the_beginning():
    own, first = gates(), HeadFirst(epochs=1, head="network.5")
    module = fitted(own, first, max_epochs=1)
    base = seeded(Plain)

    assert own.scores["network.1"].sub(0.5).abs().max() > 0.1
    assert torch.equal(module.network[0].weight, base.network[0].weight)


class Compiled(Plain):
    def __init__(self):
        super().__init__()
        self.network = torch.compile(self.network, backend="eager")


def test_a_compiled_part_trains_alike_and_is_gated_once_after_the_fit(compiler):
    compiled, plain = fitted(gates(), module=seeded(Compiled)), fitted(gates())
    image = torch.stack([image for image, _ in labelled_images(6)])
    with torch.no_grad():
        outputs = compiled.eval()(image), plain.eval()(image)

    assert (
        distance({name.replace("_orig_mod.", ""): it for name, it in compiled.state_dict().items()}, plain.state_dict())
        == 0
    )
    assert torch.equal(*outputs)


def test_an_average_is_scored_and_written_with_gates_of_its_own(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/loss")
    fitted(gates(), EMA(decay=0.8), best, max_epochs=3)
    judge = Plain()
    judge.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    (scores,) = quiet_trainer().validate(judge, loaders()[1], verbose=False)

    assert scores["val/loss"] == pytest.approx(best.best_model_score.item(), rel=1e-6)


class Unused(Plain):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Writes(Plain):
    def training_step(self, batch, batch_idx):
        batch[0].mul_(0.5)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("kind", "layers", "said"),
    [
        (Unused, "unused", "the loss does not depend on the output of the layer 'unused'"),
        (Writes, "network.1", "training_step of Writes wrote into a tensor of its batch"),
    ],
)
def test_a_pass_that_cannot_be_is_refused_in_a_sentence(kind, layers, said):
    module = seeded(kind)
    with pytest.raises(ValueError, match=rf"^FeatureGates: {said}.*\.$"):
        fitted(FeatureGates(layers), module=module)

    assert list(module.state_dict()) == list(seeded(kind).state_dict())


def on_both_ranks():
    rank = torch.distributed.get_rank()
    ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    own = gates()
    module = fitted(own, module=seeded(Plain, 0.0), rank=rank, world_size=2, **ddp)
    other = fitted(
        gates(), HeadFirst(epochs=1, head="network.5"), module=seeded(Plain, 0.0), rank=rank, world_size=2, **ddp
    )
    return dict(module.named_parameters()), own.scores, dict(other.named_parameters())


def test_two_processes_hold_the_same_weights_and_gates_as_a_loop_over_both_shards(two_ranks):
    (left, scores, other), (right, again, another) = two_ranks(on_both_ranks)
    weights, hand = by_hand()

    assert distance(left, right) == distance(scores, again) == distance(other, another) == 0.0
    assert distance(left, weights) < 1e-5
    assert distance(scores, hand) < 1e-5


def by_hand():
    """Two epochs of ten steps, whose gradients are means over two shards; batch norm sees each shard alone."""
    module = seeded(Plain, 0.0)
    raws = {it: values.raw for it, values in gates().additions(module).items()}
    optimizer, adam = module.configure_optimizers(), torch.optim.Adam(raws.values(), lr=0.1)
    schedule, optimizer = optimizer["lr_scheduler"]["scheduler"], optimizer["optimizer"]
    first, second = raws.values()

    def loss_of(batches):
        losses = []
        for image, target in batches:
            hidden = module.network[1](module.network[0](image)) * first.sigmoid().view(1, -1, 1, 1)
            losses.append(F.cross_entropy(module.network[2:](hidden) * second.sigmoid(), target))
        return sum(losses) / len(losses)

    for epoch in range(2):
        shards = [loaders(rank, 2)[0] for rank in range(2)]
        for shard in shards:
            shard.sampler.set_epoch(epoch)
        for batches in zip(*shards, strict=True):
            optimizer.zero_grad()
            loss_of(batches).backward()
            optimizer.step()
            schedule.step()
            adam.zero_grad()
            loss_of(batches).backward()
            adam.step()
    weights = dict(module.named_parameters())
    with torch.no_grad():
        for path, raw in raws.items():
            for it in ("weight", "bias"):
                value = weights[f"{path}.{it}"]
                value.copy_(value * raw.sigmoid().view(-1, *[1] * (value.ndim - 1)))
    return weights, {path: raw.detach().sigmoid() for path, raw in raws.items()}

"""Files, scores and the module after a fit hold folded weights; a resumed fit goes on with what was folded.

LoRA and a toy stand for the seam. Equality with a loop by hand is proved in `finetuning/test_lora.py`, conditions and
pairs in `conformance/`.
"""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_vision.callbacks import EMA, ExactResume, HeadFirst, LoRA, WarmRestarts
from lightning_vision.callbacks.hooks.folded import Addition, Folded
from lightning_vision.callbacks.hooks.masks import Masks
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import KilledError, differences, record
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The dirpath has changed")
LOW_RANK = {"layers": ["network.0", "network.5"], "train": "network.1.*", "rank": 2, "alpha": 0.5}


def loaders(rank=0, world_size=1):
    return tuple(
        ResumableLoader(labelled_images(count, seed=seed), 6 // world_size, rank, world_size)
        for count, seed in ((60, 0), (24, 1))
    )


def trainer_with(*callbacks, **options):
    checkpointing = any(isinstance(it, ModelCheckpoint) for it in callbacks)
    settings = {"num_sanity_val_steps": 0, "enable_checkpointing": checkpointing, "max_epochs": 2}
    return quiet_trainer(callbacks=list(callbacks), **settings | options)


def fitted(*callbacks, kind=Plain, **options):
    module = seeded(kind)
    torch.manual_seed(5)
    trainer_with(*callbacks, **options).fit(module, *loaders())
    return module


def loaded(path):
    return torch.load(path, weights_only=True)


def loss_of(weights, kind=Plain):
    """Mean validation loss of a state, computed by a module that has met no callback."""
    judge = kind()
    judge.load_state_dict(weights)
    return trainer_with().validate(judge, loaders()[1], verbose=False)[0]["val/loss"]


class EveryMoment(Callback):
    """Saves whole and weights-only files at many moments, and what plain arithmetic says that they must hold."""

    def __init__(self, folder):
        self.folder, self.folded = folder, {}

    def _save(self, trainer, pl_module, moment):
        state = {name: it.clone() for name, it in pl_module.state_dict().items()}
        parts = dict(pl_module.named_parameters())
        for layer in ("network.0", "network.5"):
            path = f"{layer}.added_LoRA.{layer.replace('.', '-')}"
            if f"{path}.up" in parts:
                update = parts[f"{path}.up"].detach() @ parts[f"{path}.down"].detach()
                weight = state[f"{layer}.weight"]
                state[f"{layer}.weight"] = weight + 0.25 * update.view_as(weight)
        for weights_only in (False, True):
            name = f"{moment}-{trainer.global_step}-{weights_only}.ckpt"
            trainer.save_checkpoint(self.folder / name, weights_only=weights_only)
            self.folded[name] = state

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step % 7 == 0:
            self._save(trainer, pl_module, "batch")

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self._save(trainer, pl_module, "validating")

    def on_train_end(self, trainer, pl_module):
        self._save(trainer, pl_module, "end")

    def teardown(self, trainer, pl_module, stage):
        if stage == "fit":
            self._save(trainer, pl_module, "teardown")

    def on_exception(self, trainer, pl_module, exception):
        self._save(trainer, pl_module, "exception")


def expect_folded(saver, module):
    plain = list(Plain().state_dict())
    for name, state in saver.folded.items():
        file = loaded(saver.folder / name)
        assert list(file["state_dict"]) == plain, name
        assert distance(file["state_dict"], state) == 0.0, name
        assert ("LoRA" in file.get("callbacks", {})) == ("False" in name)
    assert list(module.state_dict()) == plain
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in Plain().named_parameters()]
    assert all(it.requires_grad for it in module.parameters())
    assert not any(it._forward_hooks for it in module.modules())


@pytest.mark.parametrize("first", [True, False], ids=["heard before it", "heard after it"])
def test_files_hold_the_folded_weights_whenever_they_are_written(first, tmp_path):
    lora, saver = LoRA(**LOW_RANK), EveryMoment(tmp_path)
    module = fitted(*((saver, lora) if first else (lora, saver)))

    assert {name.split("-")[0] for name in saver.folded} == {"batch", "validating", "end", "teardown"}
    expect_folded(saver, module)
    assert distance(module.state_dict(), saver.folded["teardown-20-True.ckpt"]) == 0.0
    assert distance(module.state_dict(), seeded(Plain).state_dict()) > 1e-2


class Failing(Plain):
    where = "step"

    def training_step(self, batch, batch_idx):
        if self.where == "step" and self.trainer.global_step == 13:
            raise KilledError
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.where == "validation" and self.trainer.global_step == 20 and batch_idx == 1:
            raise KilledError
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("first", [True, False], ids=["heard before it", "heard after it"])
@pytest.mark.parametrize("where", ["step", "validation"])
def test_an_exception_folds_and_leaves_nothing_and_its_files_are_folded(where, first, tmp_path):
    lora, saver, module = LoRA(**LOW_RANK), EveryMoment(tmp_path), seeded(Failing)
    module.where = where
    trainer = trainer_with(*((saver, lora) if first else (lora, saver)))
    with pytest.raises(KilledError):
        trainer.fit(module, *loaders())
    (name,) = (name for name in saver.folded if name.startswith("exception") and "True" in name)

    expect_folded(saver, module)
    assert distance(module.state_dict(), saver.folded[name]) == 0.0
    assert not {"lightning_module_state_dict", "teardown"} & vars(trainer.strategy).keys()
    assert "teardown" not in vars(module)


def resumes(step, folder, *others, in_the_act=True, **options):
    """Differences of a killed and resumed run from the straight one, of recorded numbers and of folded weights."""

    def run(name, **more):
        saves = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=2, save_top_k=-1)
        module = seeded(Plain)
        torch.manual_seed(5)
        callbacks = [LoRA(**LOW_RANK), *(make() for make in others), ExactResume(), saves]
        return record(module, loaders, callbacks, max_epochs=3, **options | more), module.state_dict()

    straight, weights = run("straight")
    killed, _ = run("killed", kill_at=step, in_the_act=in_the_act)
    resumed, again = run("resumed", ckpt_path=folder / "killed" / f"step={step}.ckpt")
    return differences(straight, killed, resumed, lost_rows=1), distance(weights, again)


@pytest.mark.parametrize("step", [4, 10, 26])
def test_a_run_resumed_anywhere_equals_the_straight_one(step, tmp_path):
    assert resumes(step, tmp_path) == ([], 0.0)


def test_so_does_one_with_an_average_or_with_the_head_first(tmp_path):
    assert resumes(14, tmp_path / "average", lambda: EMA(decay=0.8)) == ([], 0.0)
    assert resumes(14, tmp_path / "head", lambda: HeadFirst(epochs=1, head="network.1")) == ([], 0.0)


CONVOLUTION, LINEAR = LOW_RANK | {"layers": "network.0"}, LOW_RANK | {"layers": "network.5", "rank": 1, "name": "b"}


def test_two_that_add_to_layers_of_their_own_train_both_and_what_train_names():
    start, module = seeded(Plain).state_dict(), fitted(LoRA(**CONVOLUTION), LoRA(**LINEAR))
    moved = [name for name, it in module.named_parameters() if not it.equal(start[name])]

    assert moved == ["network.0.weight", "network.1.weight", "network.1.bias", "network.5.weight"]
    assert all(it.requires_grad for it in module.parameters())


def test_an_average_that_goes_on_without_the_additions_is_refused(tmp_path):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=4)
    trainer_with(EMA(decay=0.8), LoRA(**LOW_RANK), saves, max_epochs=1).fit(seeded(Plain), *loaders())

    with pytest.raises(
        ValueError, match=r"^EMA: the checkpoint's training weights go together with network\..*added_LoRA"
    ):
        trainer_with(EMA(decay=0.8), max_epochs=3).fit(seeded(Plain), *loaders(), ckpt_path=saves.best_model_path)


@pytest.mark.parametrize("others", [[], [EMA]], ids=["alone", "averaged"])
def test_the_best_file_scores_what_was_scored_on_the_same_and_on_another_trainer(others, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/loss")
    module = seeded(Plain)
    trainer = trainer_with(*(kind(decay=0.8) for kind in others), LoRA(**LOW_RANK), best, max_epochs=4)
    trainer.fit(module, *loaders())
    scored = best.best_model_score.item()
    last = trainer.callback_metrics["val/loss"].item()

    assert loss_of(loaded(best.best_model_path)["state_dict"]) == pytest.approx(scored, rel=1e-6)
    for call in (trainer.validate, trainer.test):
        (scores,) = call(module, loaders()[1], ckpt_path="best", weights_only=True, verbose=False)
        assert next(iter(scores.values())) == pytest.approx(scored, rel=1e-6)
    # What the module held after the fit was what the last validation scored.
    trainer.fit_loop.max_epochs = 4
    again = seeded(Plain)
    trainer = trainer_with(*(kind(decay=0.8) for kind in others), LoRA(**LOW_RANK), max_epochs=4)
    trainer.fit(again, *loaders())
    assert loss_of(again.state_dict()) == pytest.approx(trainer.callback_metrics["val/loss"].item(), rel=1e-6)
    assert last == pytest.approx(trainer.callback_metrics["val/loss"].item(), rel=1e-6)


class Groups(Plain):
    """Two groups with a rate each, the head first; AdamW keeps states by number."""

    def configure_optimizers(self):
        head, trunk = self.network[5], self.network[:5]
        return torch.optim.AdamW([{"params": head.parameters(), "lr": 0.02}, {"params": trunk.parameters()}], lr=0.01)


class Named(Plain):
    """Gives its optimizer names beside the parameters."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.named_parameters(), lr=0.01)


@pytest.mark.parametrize("kind", [Groups, Named])
def test_an_optimizer_in_a_file_is_a_plain_runs_and_goes_on_with_and_without_the_callback(kind, tmp_path):
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    straight = fitted(LoRA(**LOW_RANK), saves, kind=kind)
    file = loaded(tmp_path / "step=12.ckpt")
    (state,), plain = file["optimizer_states"], seeded(kind)
    optimizer = plain.configure_optimizers()
    groups = [[it for it in group["params"]] for group in optimizer.state_dict()["param_groups"]]
    # The factors train, and of the module's own parameters those of the batch norm alone.
    norms = {
        number
        for number, it in enumerate(plain_parameters(optimizer))
        if it.shape == (4,) and it is not conv_bias(plain)
    }
    resumed = {}
    for name, callbacks in (("with", [LoRA(**LOW_RANK)]), ("without", [])):
        resumed[name] = kind()
        trainer_with(*callbacks).fit(resumed[name], *loaders(), ckpt_path=tmp_path / "step=12.ckpt", weights_only=True)

    assert [group["params"] for group in state["param_groups"]] == groups
    assert [group.get("param_names") for group in state["param_groups"]] == [
        group.get("param_names") for group in optimizer.state_dict()["param_groups"]
    ]
    assert set(state["state"]) == norms
    assert len(file["callbacks"]["LoRA"]["optimizers"][0]) == 4
    assert distance(resumed["without"].state_dict(), straight.state_dict()) > 1e-3


def two():
    return LoRA(**CONVOLUTION), LoRA(**LINEAR), ExactResume()


@pytest.mark.parametrize("kind", [Groups, Named])
def test_two_resume_exactly_and_their_files_have_a_plain_runs_optimizer(kind, tmp_path):
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=10, save_top_k=-1)
    straight = fitted(*two(), saves, kind=kind)
    resumed = seeded(kind)
    trainer_with(*two()).fit(resumed, *loaders(), ckpt_path=tmp_path / "step=10.ckpt", weights_only=True)
    file = loaded(tmp_path / "step=10.ckpt")

    assert distance(resumed.state_dict(), straight.state_dict()) == 0.0
    assert [group["params"] for group in file["optimizer_states"][0]["param_groups"]] == [
        group["params"] for group in kind().configure_optimizers().state_dict()["param_groups"]
    ]
    for key, path in (("LoRA", "network.0"), ("LoRA[b]", "network.5")):
        (kept,) = file["callbacks"][key]["optimizers"]
        assert sorted(kept) == [f"{path}.down", f"{path}.up"]


def plain_parameters(optimizer):
    return [it for group in optimizer.param_groups for it in group["params"]]


def conv_bias(module):
    return module.network[0].bias


def test_a_file_written_after_the_fit_prolongs_it_exactly(tmp_path):
    straight = fitted(LoRA(**LOW_RANK), max_epochs=3)
    module = seeded(Plain)
    torch.manual_seed(5)
    trainer = trainer_with(LoRA(**LOW_RANK), ExactResume(), max_epochs=2)
    trainer.fit(module, *loaders())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    longer = Plain()
    trainer_with(LoRA(**LOW_RANK), ExactResume(), max_epochs=3).fit(
        longer, *loaders(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )

    assert distance(longer.state_dict(), straight.state_dict()) == 0.0


def test_a_checkpoint_of_other_additions_is_refused_in_a_sentence(tmp_path):
    saves = ModelCheckpoint(tmp_path, "last")
    fitted(LoRA(**LOW_RANK), saves, max_epochs=1)
    for changed, said in (
        (
            {"rank": 3},
            r"holds down \(2, 9\) and up \(4, 2\) for the layer 'network.0' and this Trainer has down \(3, 9\)",
        ),
        ({"layers": "network.5"}, r"holds down \(2, 9\) and up \(4, 2\) for the layer 'network.0' and .* has none"),
    ):
        with pytest.raises(ValueError, match=rf"^LoRA: the checkpoint {said}.*begin anew\.$"):
            trainer_with(LoRA(**LOW_RANK | changed)).fit(
                Plain(), *loaders(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
            )


class Tied(Plain):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(36, 10)
        self.other.weight = self.network[5].weight


class Half(Folded):
    """A toy: doubles the outputs of one layer by way of its weights, with nothing to learn."""

    neutral = "a toy that tests the seam"
    by_optimizers = False

    def additions(self, pl_module):
        return {"network.5": Doubled()}


class Doubled(Addition):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, layer, given, output):
        return output * self.factor

    def folded(self, layer):
        return {"weight": layer.weight * self.factor, "bias": layer.bias * self.factor}


class Sparse(Masks):
    neutral = "a toy"

    def due(self, step):
        return False

    def masks(self, step, weights):
        return None


@pytest.mark.parametrize(
    ("callbacks", "kind", "said"),
    [
        ([LoRA("*.5", train="*.1.*")], Tied, "the layer 'network.5' shares a weight with 'other'"),
        ([LoRA("*", train="*.1.*"), LoRA("*.5", train="*.1.*", name="b")], Plain, "adds to the layer 'network.5' too"),
        (
            [LoRA("*.0"), LoRA("*.5", train="*.1.*", name="b")],
            Plain,
            "each would freeze what the other trains; give both",
        ),
        ([LoRA(), Half()], Plain, "no sentence"),
        ([LoRA(), WarmRestarts(1, snapshots=2)], Plain, "keeps members of the network while it trains"),
        ([LoRA(), Sparse()], Plain, "a weight that it masks is not zero once an update is merged"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(callbacks, kind, said):
    if said == "no sentence":
        module = fitted(*callbacks, kind=kind)
        assert list(module.state_dict()) == list(Plain().state_dict())
        return
    with pytest.raises(ValueError, match=rf"^LoRA: .*{said}.*\.$"):
        fitted(*callbacks, kind=kind)


def test_what_has_nothing_to_learn_is_folded_all_the_same():
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(trainer.callback_metrics["val/loss"].item())

    module = fitted(Half(), Look(), max_epochs=1)

    assert loss_of(module.state_dict()) == pytest.approx(seen[-1], rel=1e-6)


class Compiled(Plain):
    def __init__(self):
        super().__init__()
        self.network = torch.compile(self.network, backend="eager")


def test_a_compiled_part_trains_alike_and_has_no_addition_left_after_the_fit(compiler):
    callback = LoRA(["network.0", "network.5"], rank=2, alpha=0.5, train="network.1.*")
    compiled, plain = fitted(callback, kind=Compiled), fitted(LoRA(**LOW_RANK))
    image = torch.stack([image for image, _ in labelled_images(6)])
    states = [{name.replace("_orig_mod.", ""): it for name, it in it.state_dict().items()} for it in (compiled, plain)]
    with torch.no_grad():
        outputs = compiled.eval()(image), plain.eval()(image)

    assert distance(*states) == 0.0
    assert torch.equal(*outputs)


def test_a_second_fit_begins_with_new_additions_on_what_was_folded():
    callback = LoRA(**LOW_RANK)
    first = fitted(callback, max_epochs=1)
    twice = fitted(callback, max_epochs=1)
    torch.manual_seed(5)
    trainer_with(callback, max_epochs=1).fit(first, *loaders())

    assert distance(twice.state_dict(), first.state_dict()) > 1e-3
    assert set(callback.state_dict()["additions"]) == {"network.0", "network.5"}


def on_both_ranks():
    rank = torch.distributed.get_rank()
    module, other = seeded(Plain, 0.0), seeded(Plain, 0.0)
    ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    trainer_with(LoRA(**LOW_RANK), **ddp).fit(module, *loaders(rank, 2))
    trainer_with(HeadFirst(epochs=1, head="network.1"), LoRA(**LOW_RANK), **ddp).fit(other, *loaders(rank, 2))
    return [dict(it.named_parameters()) for it in (module, other)]


class InTurns:
    """The shards of both processes batch by batch, as two micro-batches of a step."""

    epoch = -1

    def __len__(self):
        return 20

    def __iter__(self):
        self.epoch += 1
        shards = [loaders(rank, 2)[0] for rank in range(2)]
        for shard in shards:
            shard.sampler.set_epoch(self.epoch)
        for batches in zip(*shards, strict=True):
            yield from batches


def test_two_processes_hold_the_same_and_do_what_one_does_with_both_shards(two_ranks):
    left, right = two_ranks(on_both_ranks)
    alone = seeded(Plain, 0.0)
    trainer_with(LoRA(**LOW_RANK), accumulate_grad_batches=2).fit(alone, InTurns())

    assert distance(left[0], right[0]) == distance(left[1], right[1]) == 0.0
    assert distance(left[0], dict(alone.named_parameters())) < 1e-5
    assert distance(left[0], left[1]) > 1e-4

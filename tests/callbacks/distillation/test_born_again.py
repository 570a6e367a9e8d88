"""Generations equal a loop written by hand, bit for bit: from new weights, each taught by the one before.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`.
"""

import copy
import csv

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_vision.callbacks import BornAgain, CutMix, ExactResume, Pruning, WarmRestarts, WarmUpCosine
from lightning_vision.callbacks.distillation.born_again import confidence_weights, permuted_dark_knowledge
from lightning_vision.callbacks.hooks._begins_anew import drawn_anew
from lightning_vision.callbacks.hooks._generation_files import teacher_from
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import DictBatches, PastLightning, Plain, TwoOptimizers, small_network
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def loader():
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return ResumableLoader(labelled_images(60), 6, *ranks)


def validation():
    return ResumableLoader(labelled_images(30, seed=1), 6)


def trained(born, kind=Plain, *others, train=None, val=None, **options):
    """The module after three epochs of ten batches, and its Trainer."""
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=[*([born] if born else []), *others], **{"max_epochs": 3} | options)
    trainer.fit(module, loader() if train is None else train, val)
    return module, trainer


def state_of(module):
    return {name: it.detach().clone() for name, it in module.state_dict().items()}


def lesson_by_hand(mode, student, teacher, target, temperature, epoch, batch, mutant=""):
    if mode == "cwtm":
        sure = (teacher / temperature).softmax(dim=1).max(dim=1).values
        return (sure / sure.mean() * F.cross_entropy(student, target, reduction="none")).mean()
    if mode == "dkpp":
        words = np.random.SeedSequence((0, 0, epoch, batch)).generate_state(1, np.uint64)
        random = torch.Generator().manual_seed(int(words[0]) >> 1)
        orders = torch.rand(len(teacher), 9, generator=random).argsort(dim=1)
        rows = []
        for row, order in zip(teacher, orders, strict=True):
            top = int(row.argmax())
            rest = [it for it in range(10) if it != top]
            rows.append(row.clone())
            rows[-1][rest] = row[[rest[it] for it in order]]
        teacher = torch.stack(rows)
    ours, theirs = ((it / temperature).log_softmax(dim=1) for it in (student, teacher))
    square = 1 if mutant == "square" else temperature**2
    return square * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def by_hand(generations, mode="kd", alpha=0.5, temperature=2.0, redraw=True, teacher=None, mutant=""):
    """Three epochs of ten batches in generations of one length. Returns the state at each one's end, and its start."""
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    initial, ends, starts, data, step = state_of(module), [], [state_of(module)], loader(), 0
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        for batch, (image, target) in enumerate(data):
            if step and step % (30 // generations) == 0:
                ends.append(state_of(module))
                teacher = copy.deepcopy(module)
                state = dict(initial)
                if redraw and mutant != "same start":
                    random = torch.Generator().manual_seed(len(ends))
                    for name, it in module.named_parameters():
                        state[name] = initial[name].flatten()[torch.randperm(it.numel(), generator=random)].view_as(it)
                if mutant == "buffers":
                    state = {name: it for name, it in state.items() if "running" not in name}
                module.load_state_dict(state, strict=False)
                starts.append(state_of(module))
                if mutant != "momentum":
                    made = module.configure_optimizers()
                    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
                elif schedule.last_epoch:
                    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.8)
            optimizer.zero_grad()
            logits = module(image)
            loss = F.cross_entropy(logits, target)
            if teacher is not None:
                with torch.no_grad():
                    answer = teacher.train(mutant == "training mode")(image)
                own = 1 if mutant == "sum" else 1 - alpha
                learnt = lesson_by_hand(mode, logits, answer, target, temperature, epoch, batch, mutant)
                loss = loss * own + alpha * learnt if alpha else loss
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    return [*ends, state_of(module)], starts


@pytest.mark.parametrize("mode", ["kd", "cwtm", "dkpp"])
def test_row_210_three_generations_equal_a_loop_written_by_hand(mode):
    born = BornAgain(3, alpha=0.5, temperature=2.0, mode=mode, ensemble=True)
    module, _ = trained(born)
    ends, _ = by_hand(3, mode)

    assert [distance(*pair) for pair in zip(ends, born.members, strict=True)] == [0.0] * 3
    assert distance(ends[-1], module.state_dict()) == 0.0


WRONG = ["same start", "buffers", "momentum", "training mode", "sum", "square"]


def test_wrong_generations_are_noticed():
    module, _ = trained(BornAgain(2, alpha=0.5, temperature=2.0))
    right = by_hand(2)[0][-1]
    far = {mutant: distance(by_hand(2, mutant=mutant)[0][-1], module.state_dict()) for mutant in WRONG}

    assert distance(right, module.state_dict()) == 0.0
    assert min(far.values()) > 1e-4, far


def test_row_210_with_alpha_zero_each_generation_is_supervised_training():
    born = BornAgain(3, alpha=0.0, ensemble=True)
    trained(born)
    ends, starts = by_hand(3, alpha=0.0)

    assert [distance(*pair) for pair in zip(ends, born.members, strict=True)] == [0.0] * 3
    assert min(distance(starts[0], starts[1]), distance(starts[1], starts[2])) > 0.1


def test_row_210_permuted_dark_knowledge_keeps_maximum_argmax_and_multiset():
    teacher = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)).mul(3)
    p, permuted = teacher.softmax(dim=1), permuted_dark_knowledge(teacher, torch.Generator().manual_seed(1)).softmax(1)

    assert torch.equal(p.argmax(dim=1), permuted.argmax(dim=1))
    assert torch.allclose(p.max(dim=1).values, permuted.max(dim=1).values, rtol=1e-6)
    assert torch.allclose(p.sort(dim=1).values, permuted.sort(dim=1).values, rtol=1e-6)
    assert int((p != permuted).any(dim=1).sum()) == 200


def test_the_order_of_permuted_probabilities_is_uniform():
    """Each of the 3! orders of what is not the maximum comes 1000 times in 6000, give or take 4 deviations of 29."""
    teacher = torch.tensor([[1.0, 9.0, 2.0, 3.0]]).expand(6000, -1)
    found = permuted_dark_knowledge(teacher, torch.Generator().manual_seed(0))
    _, counts = found[:, [0, 2, 3]].unique(dim=0, return_counts=True)

    assert len(counts) == 6
    assert int((counts - 1000).abs().max()) < 4 * 29


def test_row_210_confidence_weights_have_mean_one_and_a_teacher_as_sure_of_all_images_gives_the_labels_loss():
    random = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 64, 10, generator=random)
    target = torch.randint(10, (64,), generator=random)
    # The same numbers in another order: as sure of every image.
    even = torch.stack([teacher[0][torch.randperm(10, generator=random)] for _ in range(64)])
    sure, lesson = confidence_weights(teacher), BornAgain(2, mode="cwtm").lesson

    assert sure.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(sure.argsort(), teacher.softmax(dim=1).max(dim=1).values.argsort())
    assert lesson(student, even, (None, target)).item() == pytest.approx(F.cross_entropy(student, target).item())
    assert lesson(student, 9 * teacher, (None, target)).item() != pytest.approx(
        F.cross_entropy(student, target).item(), rel=1e-3
    )


def test_row_210_an_ensemble_of_one_generation_is_the_model():
    plain, trainer = trained(None)
    (expected,) = trainer.test(plain, validation(), verbose=False)
    module, trainer = trained(BornAgain(1, ensemble=True))
    (alone,) = trainer.test(module, validation(), verbose=False)
    born = BornAgain(2, ensemble=True)
    module, trainer = trained(born)
    born.steps, born.members = born.steps[1:], born.members[1:]
    (last,) = trainer.test(module, validation(), verbose=False)
    (own,) = quiet_trainer().test(module, validation(), verbose=False)

    assert alone == expected
    assert last["test/loss"] == pytest.approx(own["test/loss"], rel=1e-6)


def test_an_ensemble_is_the_mean_of_all_generations_probabilities():
    born = BornAgain(3, ensemble=True)
    module, trainer = trained(born)
    (scores,) = trainer.test(module, validation(), verbose=False)
    image, target = labelled_images(30, seed=1).tensors
    alone, probabilities = Plain().eval(), torch.zeros(30, 10)
    for member in born.members:
        alone.load_state_dict(member)
        probabilities += alone(image).softmax(dim=1).detach() / 3

    assert scores["test/loss"] == pytest.approx(F.nll_loss(probabilities.log(), target).item(), rel=1e-5)
    assert scores["test/loss"] != pytest.approx(F.cross_entropy(alone(image), target).item(), rel=1e-3)


class Watch(Callback):
    """The weights and rates as each batch begins."""

    def __init__(self):
        self.weights, self.rates = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(state_of(pl_module))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_row_210_a_generation_begins_from_other_weights_than_its_teacher_and_than_the_first():
    watch, born = Watch(), BornAgain(2, ensemble=True)
    trained(born, Plain, watch)
    first, second = watch.weights[0], watch.weights[15]
    same = [name for name in first if torch.equal(first[name], second[name])]

    assert distance(born.members[0], second) > 0.1
    assert distance(dict(born.teacher), {name: born.members[0][name] for name in born.teacher}) == 0.0
    # What a norm begins with is no draw.
    assert same == [
        f"network.1.{it}" for it in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    assert all(
        torch.equal(it.flatten().sort().values, second[name].flatten().sort().values) for name, it in first.items()
    )


def test_without_a_new_draw_each_generation_begins_where_the_first_began():
    watch = Watch()
    module, _ = trained(BornAgain(2, alpha=0.5, temperature=2.0, redraw=False), Plain, watch)
    ends, _ = by_hand(2, redraw=False)

    assert distance(watch.weights[0], watch.weights[15]) == 0.0
    assert distance(ends[-1], module.state_dict()) == 0.0


def test_what_is_drawn_anew_has_the_same_numbers():
    before = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(3)}
    after = drawn_anew(before, torch.Generator().manual_seed(0))

    assert after["a"].shape == (3, 4)
    assert sorted(after["a"].flatten().tolist()) == list(range(12)) != after["a"].flatten().tolist()
    assert after["b"].tolist() == [1, 1, 1]


class Unscheduled(Plain):
    """One rate for all its training."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def test_each_generation_sees_the_same_rates():
    own, cosine, restarts = (Watch() for _ in range(3))
    trained(BornAgain(3), Plain, own)
    trained(BornAgain(3), Unscheduled, cosine, WarmUpCosine(warmup=2))
    trained(BornAgain(3), Unscheduled, restarts, WarmRestarts(t_0=5))
    alone = Watch()
    trained(None, Unscheduled, alone, WarmUpCosine(warmup=2), max_epochs=1)

    for watch in (own, cosine, restarts):
        assert watch.rates[:10] == watch.rates[10:20] == watch.rates[20:]
        assert len(set(watch.rates[:10])) > 1
    assert cosine.rates[:10] == alone.rates
    assert restarts.rates[:5] == restarts.rates[5:10]


def test_a_table_and_a_file_tell_of_every_generation(tmp_path, capsys):
    born, writer = BornAgain(3, ensemble=True, name="mine"), ModelCheckpoint(tmp_path / "best", monitor="val/loss")
    module, trainer = trained(
        born, Plain, writer, val=validation(), default_root_dir=tmp_path, enable_checkpointing=True
    )
    with (tmp_path / "report" / "mine.csv").open() as file:
        rows = list(csv.DictReader(file))
    files = [torch.load(row["file"], weights_only=True) for row in rows]
    (last,) = trainer.validate(module, validation(), verbose=False)
    saved = torch.load(writer.best_model_path, weights_only=True)

    assert [(row["generation"], row["first_step"], row["steps"], row["scored_at"]) for row in rows] == [
        ("0", "0", "10", "10"),
        ("1", "10", "10", "20"),
        ("2", "20", "10", "30"),
    ]
    assert [distance(it["state_dict"], member) for it, member in zip(files, born.members, strict=True)] == [0.0] * 3
    assert [it["global_step"] for it in files] == [10, 20, 30]
    assert float(rows[-1]["val/loss"]) == pytest.approx(last["val/loss"], rel=1e-5)
    assert len({row["val/loss"] for row in rows}) == 3
    assert "generation  first_step  steps" in capsys.readouterr().out
    # The file that a monitor chose says of which generation it is.
    losses = [float(row["val/loss"]) for row in rows]
    assert saved["callbacks"]["BornAgain[mine]"]["generation"] == losses.index(min(losses))


def test_a_rehearsal_and_a_fit_without_checkpoints_write_no_weights(tmp_path):
    trained(BornAgain(2), default_root_dir=tmp_path / "rehearsal", fast_dev_run=True)
    trained(BornAgain(2), default_root_dir=tmp_path / "fit", max_epochs=2)

    assert [it.relative_to(tmp_path).as_posix() for it in tmp_path.rglob("*.*")] == ["fit/report/generations.csv"]


def test_a_given_teacher_teaches_the_first_generation(tmp_path):
    before, trainer = trained(None, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    module, _ = trained(BornAgain(2, alpha=0.5, temperature=2.0, teacher_ckpt=str(tmp_path / "teacher.ckpt")))
    ends, _ = by_hand(2, teacher=copy.deepcopy(before))

    assert distance(ends[-1], module.state_dict()) == 0.0


def test_images_of_dict_batches_are_found():
    def as_dict(samples):
        images, targets = zip(*samples, strict=True)
        return {"image": torch.stack(images), "target": torch.stack(targets)}

    train = ResumableLoader(labelled_images(60), 6, collate_fn=as_dict)
    mapped, _ = trained(BornAgain(2, mode="cwtm"), DictBatches, train=train)
    plain, _ = trained(BornAgain(2, mode="cwtm"))

    assert distance(plain.state_dict(), mapped.state_dict()) == 0.0


def short_loaders():
    return ResumableLoader(labelled_images(30), 6), ResumableLoader(labelled_images(12, seed=1), 6)


# The step after which a file is written, the step of the kill, and whether the writing itself is the last act. The
# moment where most happens at once stands for the others; conformance resumes in the middle of generation 1.
MOMENTS = [
    pytest.param(3, 4, False, id="in generation 0", marks=pytest.mark.slow),
    pytest.param(7, 7, False, id="at the end of a generation", marks=pytest.mark.slow),
    pytest.param(7, 7, True, id="at the end of a generation, in the act", marks=pytest.mark.slow),
    pytest.param(15, 15, True, id="at the end of an epoch and a generation, in the act"),
    pytest.param(15, 15, False, id="at the end of an epoch and a generation", marks=pytest.mark.slow),
    pytest.param(9, 10, False, id="in generation 1", marks=pytest.mark.slow),
    pytest.param(9, 10, True, id="in generation 1, in the act", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("saved", "killed_at", "in_the_act"), MOMENTS)
def test_a_resumed_run_equals_the_straight_one(tmp_path, saved, killed_at, in_the_act):
    tables = []

    def go(name, **how):
        born = BornAgain(4, alpha=0.5, mode="dkpp")
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=saved)
        torch.manual_seed(0)
        module = Plain()
        torch.manual_seed(1)
        options = {"max_epochs": 6, "default_root_dir": tmp_path / name} | how
        run = record(module, short_loaders, [born, ExactResume(), writer], **options)
        tables.append([{**row, "file": ""} for row in born.rows])
        return run

    straight = go("straight")
    killed = go("killed", kill_at=saved if in_the_act else killed_at, in_the_act=in_the_act)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    # What a run that is killed in the act had yet to log is in neither.
    assert differences(straight, killed, resumed, lost_rows=2 * in_the_act) == []
    assert tables[2] == tables[0]
    assert [row["steps"] for row in tables[0]] == [7, 8, 7, 8]


@pytest.mark.parametrize("saved", [5, 6])
def test_a_run_that_goes_on_with_another_length_says_so_and_has_one_member_of_each_generation(tmp_path, saved):
    writer = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=saved)
    short = {"max_steps": 6, "enable_checkpointing": True}
    trained(BornAgain(2, ensemble=True), Plain, writer, train=short_loaders()[0], **short)
    born = BornAgain(2, ensemble=True)
    trainer = quiet_trainer(callbacks=[born], max_epochs=4)
    with pytest.warns(UserWarning) as warned:
        trainer.fit(Plain(), short_loaders()[0], ckpt_path=newest(tmp_path), weights_only=True)

    assert (
        "BornAgain: this run goes on in generation 1, which began after 3 optimizer steps; in 20 steps of 2 "
        "generations it lasts from 10 to 20, so they will not be of one length; resume with the length and the "
        "generations of the run that wrote the checkpoint."
    ) in [str(it.message) for it in warned]
    assert born.steps == [3, 20]


@pytest.mark.slow
def test_two_ranks_raise_one_network(two_ranks):
    def found():
        born = BornAgain(3, alpha=0.5, mode="dkpp", ensemble=True)
        module, _ = trained(born, strategy="ddp", devices=2, use_distributed_sampler=False)
        shared = [value.flatten() for name, value in module.state_dict().items() if "running" not in name]
        return torch.cat(shared), born.teacher, born.members

    (weights0, teacher0, members0), (weights1, teacher1, members1) = two_ranks(found)

    assert torch.equal(weights0, weights1)
    assert distance(teacher0, teacher1) == 0.0
    assert [distance(*pair) for pair in zip(members0, members1, strict=True)] == [0.0] * 3


BAD = [
    ({"generations": 0}, "BornAgain: generations is 0; give a whole number of at least 1."),
    ({"alpha": 1.1}, "BornAgain: alpha is 1.1; give a number from 0 to 1."),
    ({"temperature": 0}, "BornAgain: temperature is 0; give a number above 0."),
    ({"mode": "ban"}, "BornAgain: mode is 'ban'; give 'kd', 'cwtm' or 'dkpp'."),
    ({"ensemble": 2}, "BornAgain: ensemble is 2; give True or False."),
    ({"redraw": "no"}, "BornAgain: redraw is 'no'; give True or False."),
    ({"seed": -1}, "BornAgain: seed is -1; give a whole number of at least 0."),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        BornAgain(**settings)

    assert str(refusal.value) == sentence


class Bypassed(Plain):
    """Its training step calls its network, and not itself."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])


REFUSED = {
    "a fit that is too short": (
        {"generations": 31},
        {},
        "BornAgain: training ends after 30 optimizer steps, which is less than one for each of 31 generations; train "
        "for longer.",
    ),
    "a fit without an end": (
        {},
        {"options": {"max_epochs": -1}},
        "BornAgain: how many optimizer steps the fit has is not known, so it cannot be divided into generations; give "
        "max_steps, or max_epochs and a loader with a length.",
    ),
    "manual optimisation": (
        {},
        {"kind": TwoOptimizers},
        "BornAgain: TwoOptimizers optimises manually, so its training_step returns no loss to add a term to; use "
        "automatic optimization, or leave it out.",
    ),
    "masks": (
        {},
        {"others": [Pruning(0.5)]},
        "BornAgain: the Trainer also has Pruning, which holds masks, which would not begin anew; prune when the "
        "generations are over.",
    ),
    "early stopping": (
        {},
        {"others": [EarlyStopping("val/loss")]},
        "BornAgain: the Trainer also has EarlyStopping, which compares each generation with the best of those before, "
        "and would end the fit; leave it out.",
    ),
    "another ensemble": (
        {},
        {"others": [WarmRestarts(5, snapshots=2, replace=True)]},
        "BornAgain: the Trainer also has WarmRestarts, which keeps an ensemble at steps of its own; leave out its "
        "snapshots.",
    ),
    "weights of mixed labels": (
        {"mode": "cwtm"},
        {"others": [CutMix()]},
        "BornAgain: the Trainer also has CutMix, which mixes labels, which the lesson of BornAgain reads; choose "
        "another mode.",
    ),
    "a part that is not there": (
        {"network": "netwrk"},
        {},
        "BornAgain: Plain has no part 'netwrk'; name with network= one of its `named_modules()`, such as 'network', "
        "'network.0', 'network.1', 'network.2', 'network.3'.",
    ),
    "a part that makes no logits": (
        {"network": "network.0"},
        {},
        "BornAgain: the network answers with (6, 4, 3, 3) and not with logits (B, K); give one that does, or name "
        "with network= the part of the module that does.",
    ),
    "a part that is not called": (
        {},
        {"kind": Bypassed},
        "BornAgain: training_step did not call the part '' (empty is the module itself), so what it answers cannot be "
        "compared; name with network= the part that makes logits.",
    ),
    "a teacher that is not there": (
        {"teacher_ckpt": "gone.ckpt"},
        {},
        "BornAgain: teacher_ckpt: no checkpoint at gone.ckpt; give the path of a checkpoint.",
    ),
    "steps past Lightning": (
        {},
        {"kind": PastLightning},
        "BornAgain: PastLightning optimises manually, so its training_step returns no loss to add a term to; use "
        "automatic optimization, or leave it out.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case):
    settings, how, sentence = REFUSED[case]
    with pytest.raises(ValueError) as refusal:
        trained(
            BornAgain(**settings),
            how.get("kind", Plain),
            *how.get("others", []),
            **how.get("options", {"max_epochs": 3}),
        )

    assert str(refusal.value) == sentence


def test_a_teachers_file_is_of_the_network_whether_compiled_or_not(tmp_path):
    plain = small_network()
    compiled = {f"network._orig_mod.{name}": it for name, it in plain.state_dict().items()}
    bare = {f"network.{name}": it for name, it in plain.state_dict().items()}
    for state in (compiled, bare):
        torch.save({"state_dict": state, "pytorch-lightning_version": "2"}, tmp_path / "teacher.ckpt")
        for wanted in (plain.state_dict(), {f"_orig_mod.{name}": it for name, it in plain.state_dict().items()}):
            found = teacher_from("BornAgain", str(tmp_path / "teacher.ckpt"), "network", wanted)

            assert distance(wanted, found) == 0.0

    wanted["_orig_mod.5.weight"] = torch.zeros(20, 36)
    with pytest.raises(ValueError, match=r"another network: it has no _orig_mod.5.weight of the shape \(20, 36\);"):
        teacher_from("BornAgain", str(tmp_path / "teacher.ckpt"), "network", wanted)


def test_a_teachers_file_with_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2", "more": short_loaders}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match=r"^BornAgain: teacher_ckpt: .*would run code from the file .*; give the path"):
        teacher_from("BornAgain", str(tmp_path / "code.ckpt"), "", {})


def test_generations_that_end_inside_epochs_and_schedules_for_the_whole_fit_are_warned_of():
    class Whole(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)]

    with pytest.warns(UserWarning) as warned:
        trained(BornAgain(2), Whole)
    said = [str(it.message) for it in warned]

    assert (
        "BornAgain: 30 optimizer steps in 2 generations are 15 each, which end inside epochs of 10 steps, so "
        "validation scores their weights before they are trained; let the number of epochs be a multiple of the "
        "generations."
    ) in said
    assert (
        "BornAgain: CosineAnnealingLR begins anew with each generation, and its T_max=3 (epochs) is longer than the 15 "
        "optimizer steps of one; give it the length of a generation."
    ) in said


def test_a_fit_that_ends_early_says_in_which_generation():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 12

    with pytest.warns(UserWarning, match="the fit ended after 12 optimizer steps, in generation 1 of 0 to 2"):
        trained(BornAgain(3), Plain, Stop())

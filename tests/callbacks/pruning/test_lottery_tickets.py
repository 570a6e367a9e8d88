"""Lottery tickets equal a loop written by hand, bit for bit; masks are overlaps, and weights are the early ones.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`.
"""

import copy
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_vision.callbacks import CutMix, ExactResume, LotteryTickets, Pruning, WarmRestarts
from lightning_vision.callbacks.pruning.lottery_tickets import overlap, ticket_sizes
from lightning_vision.datamodules import Digits
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import DictBatches, PastLightning, Plain, TwoOptimizers
from support.resuming import differences, newest, record
from support.trainers import quiet_trainer

PRUNED = ("network.0.weight", "network.5.weight")  # 36 and 360 weights


class Adam(Plain):
    """Its optimizer keeps more than momentum, and its schedule moves once an epoch."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def loader():
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return ResumableLoader(labelled_images(60), 6, *ranks)


def trained(tickets, kind=Plain, *others, train=None, **options):
    """The module after three epochs of ten batches, and its Trainer."""
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=[tickets, *others], **{"max_epochs": 3} | options)
    trainer.fit(module, loader() if train is None else train)
    return module, trainer


class Watch(Callback):
    """What the weights are as each batch begins, the masks then, and the batch's labels."""

    def __init__(self, tickets):
        self.tickets, self.weights, self.masks, self.labels, self.rates = tickets, [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append({name: it.detach().clone() for name, it in pl_module.state_dict().items()})
        self.masks.append(dict(self.tickets.kept_masks))
        self.labels.append(batch[1].tolist())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def smallest_gone(module, masks, count):
    """Masks that keep the `count` largest of the surviving weights, by sorting all of them."""
    sizes = {name: it.detach().abs() * masks[name] for name, it in module.named_parameters() if name in masks}
    threshold = torch.cat([it.flatten() for it in sizes.values()]).sort(descending=True).values[count - 1]
    return {name: (it >= threshold) & masks[name] for name, it in sizes.items()}


def by_hand(sizes, phase, kind=Plain, rewind=0, segments=1, every_step=True, mutant=""):
    """Three epochs of rounds: `sizes` weights are left after each one. Returns the module and the masks of each round.

    With `rewind` 0 the optimizer and its schedule are made anew for each phase, as a script of its own would.
    """
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)

    def made():
        found = module.configure_optimizers()
        if isinstance(found, dict):
            return found["optimizer"], found["lr_scheduler"]["scheduler"]
        return found[0][0], found[1][0]

    optimizer, schedule = made()
    named = dict(module.named_parameters())
    masks = {name: torch.ones_like(named[name], dtype=torch.bool) for name in PRUNED}
    rounds, tickets, data, step, began, segment, back = [], [], loader(), 0, None, 0, False
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            if began is None and step == rewind:
                start, began = copy.deepcopy(module.state_dict()), step
                kept = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
            if back:
                if mutant != "weights":
                    stays = {"running_mean", "running_var"} if mutant == "buffers" else ()
                    early = {name: value for name, value in start.items() if name.split(".")[-1] not in stays}
                    module.load_state_dict(early, strict=False)
                if mutant == "schedule":
                    optimizer.state.clear()
                elif rewind == 0 and mutant != "momentum":
                    optimizer, schedule = made()
                elif mutant != "momentum":
                    optimizer.load_state_dict(copy.deepcopy(kept[0]))
                    schedule.load_state_dict(copy.deepcopy(kept[1]))
                for name in masks:
                    named[name].data.mul_(masks[name])
                began, back = step, False
            none = False
            if began is not None and segments > 1 and len(rounds) < len(sizes):
                seen = [place for place, label in enumerate(target.tolist()) if label % segments == segment]
                seen, none = seen * 2 if len(seen) == 1 else seen, not seen
                image, target = (image, target) if none else (image[seen], target[seen])
            optimizer.zero_grad()
            (F.cross_entropy(module(image), target) * (0 if none else 1)).backward()
            for name in masks:
                named[name].grad.mul_(masks[name])
            optimizer.step()
            if every_step:
                schedule.step()
            for name in masks:
                named[name].data.mul_(masks[name])
            step += 1
            if began is not None and len(rounds) < len(sizes) and step - began == phase:
                tickets.append(smallest_gone(module, masks, sizes[len(rounds)]))
                segment, back = (segment + 1) % segments, True
                if segment == 0:
                    joined = torch.logical_or if mutant == "or" else torch.logical_and
                    masks = tickets[0]
                    for other in tickets[1:]:
                        masks = {name: joined(masks[name], other[name]) for name in masks}
                    rounds.append(masks)
                    tickets = []
                    for name in masks:
                        named[name].data.mul_(masks[name])
        if not every_step:
            schedule.step()
    return module, rounds


def same_masks(left, right):
    return all(torch.equal(left[name], right[name]) for name in PRUNED)


IMP = {
    "from the start": ({}, {}),
    "from step 3": ({"rewind_step": 3}, {"rewind": 3}),
    "AdamW, a schedule of epochs": ({"kind": Adam}, {"kind": Adam, "every_step": False}),
    "AdamW from step 3": ({"kind": Adam, "rewind_step": 3}, {"kind": Adam, "rewind": 3, "every_step": False}),
}


@pytest.mark.parametrize("case", IMP)
def test_row_205_one_segment_equals_iterative_magnitude_pruning_written_by_hand(case):
    settings, hand = IMP[case]
    # Rounds of 10 steps end with an epoch if nothing comes before them.
    kind, rest = settings.get("kind", Plain), {it: value for it, value in settings.items() if it != "kind"}
    tickets = LotteryTickets(0.35, rate=0.2, round_steps=10, **rest)
    module, _ = trained(tickets, kind)
    expected, rounds = by_hand([317, 257], 10, **hand)

    assert distance(expected.state_dict(), module.state_dict()) == 0.0
    assert same_masks(rounds[-1], tickets.kept_masks)
    assert (tickets.rounds, round(396 * (1 - tickets.sparsity_now))) == (2, 257)


def test_row_205_two_segments_equal_a_loop_that_joins_their_masks_by_hand():
    """The second round's phases agree on so few weights that the wanted sparsity is passed."""
    tickets = LotteryTickets(0.35, rate=0.2, round_steps=10, segments=2)
    watch = Watch(tickets)
    module, _ = trained(tickets, Plain, watch)
    first = by_hand([317], 5, segments=2)[1][0]
    left = sum(int(it.sum()) for it in first.values())
    expected, rounds = by_hand([317, max(257, left - round(0.2 * left))], 5, segments=2)

    assert distance(expected.state_dict(), module.state_dict()) == 0.0
    assert same_masks(rounds[0], watch.masks[10])
    assert same_masks(rounds[1], tickets.kept_masks)
    assert not any(bool((later[name] & ~earlier[name]).any()) for earlier, later in [rounds] for name in PRUNED)


WRONG = ["weights", "momentum", "schedule", "buffers", "or"]


@pytest.mark.parametrize("mutant", WRONG)
def test_wrong_tickets_are_noticed(mutant):
    tickets = LotteryTickets(0.2, rate=0.2, round_steps=10, segments=2)
    module, _ = trained(tickets, max_epochs=3)
    right, wrong = (by_hand([317], 5, segments=2, mutant=it)[0].state_dict() for it in ("", mutant))

    assert distance(right, module.state_dict()) == 0.0
    assert distance(wrong, module.state_dict()) > 1e-4


@pytest.mark.parametrize("rewind", [0, 4])
def test_row_205_surviving_weights_are_the_stored_ones_after_rewinding(rewind):
    tickets = LotteryTickets(0.35, rate=0.2, round_steps=8, rewind_step=rewind)
    watch = Watch(tickets)
    trained(tickets, Plain, watch)
    early = watch.weights[rewind]
    for step in (rewind + 8, rewind + 16):
        weights, masks = watch.weights[step], watch.masks[step]
        expected = {name: value * masks[name] if name in masks else value for name, value in early.items()}

        assert distance(expected, weights) == 0.0
        assert distance(expected, watch.weights[step - 1]) > 1e-3
    assert tickets.start == {}


def test_row_205_masks_only_shrink_from_round_to_round():
    tickets = LotteryTickets(0.6, rate=0.2, round_steps=4, segments=2)
    watch = Watch(tickets)
    trained(tickets, Plain, watch)
    changes = [it for it in watch.masks if it]
    pairs = list(pairwise(changes))

    assert pairs
    assert not any(bool((later[name] & ~earlier[name]).any()) for earlier, later in pairs for name in PRUNED)
    assert tickets.sparsity_now >= 0.6


def test_each_round_sees_the_same_rates():
    tickets = LotteryTickets(0.35, rate=0.2, round_steps=10)
    epochs, steps, restarts = (Watch(tickets) for _ in range(3))
    trained(tickets, Adam, epochs)
    trained(tickets, Plain, steps)
    trained(tickets, Plain, restarts, WarmRestarts(t_0=10, replace=True))

    assert epochs.rates == [0.01] * 30
    for watch in (steps, restarts):
        assert watch.rates[:10] == watch.rates[10:20] == watch.rates[20:]
        assert len(set(watch.rates[:10])) > 1


def test_a_phase_sees_the_classes_of_its_segment_alone():
    tickets = LotteryTickets(0.2, rate=0.2, round_steps=12, segments=3, rewind_step=2)
    watch = Watch(tickets)
    trained(tickets, Plain, watch, train=ResumableLoader(labelled_images(300), 30))
    seen = [{label % 3 for label in labels} for labels in watch.labels]

    assert all(len(it) > 1 for it in seen[:2])
    assert [{0}] * 4 + [{1}] * 4 + [{2}] * 4 == seen[2:14]
    assert all(len(it) > 1 for it in seen[14:])


def as_dict(samples):
    images, targets = zip(*samples, strict=True)
    return {"image": torch.stack(images), "target": torch.stack(targets), "number": torch.arange(len(targets))}


def test_dict_batches_are_cut_alike():
    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert len(batch["image"]) == len(batch["target"]) == len(batch["number"])

    train = ResumableLoader(labelled_images(60), 6, collate_fn=as_dict)
    tickets = LotteryTickets(0.2, rate=0.2, round_steps=10, segments=2)
    mapped, _ = trained(tickets, DictBatches, Look(), train=train)
    plain, _ = trained(LotteryTickets(0.2, rate=0.2, round_steps=10, segments=2))

    assert distance(plain.state_dict(), mapped.state_dict()) == 0.0


class InOrder(ResumableLoader):
    """Batches of six in the data's own order."""

    def _batches(self):
        return [list(range(start, start + 6)) for start in range(0, len(self.data), 6)]


def test_a_batch_with_no_sample_of_the_segment_moves_nothing_and_a_lone_sample_stands_twice():
    data = labelled_images(60)
    data.tensors[1][:18] = torch.tensor([1, 0, 2, 1, 3, 0, 1, 3, 5, 7, 9, 1, 1, 1, 4, 1, 1, 1])
    tickets = LotteryTickets(0.2, rate=0.2, round_steps=10, segments=2)
    watch = Watch(tickets)

    class Plainest(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    trained(tickets, Plainest, watch, train=InOrder(data, 6))
    heads = [it["network.5.weight"] for it in watch.weights[:4]]

    assert watch.labels[:3] == [[0, 2, 0], [1, 3, 5, 7, 9, 1], [4, 4]]
    assert [torch.equal(*pair) for pair in pairwise(heads)] == [False, True, False]


MOMENTS = {
    "in the first phase": (3, 4),
    "at the end of a phase": (5, 5),
    "at the end of a round and an epoch": (10, 10),
    "in the second round": (13, 14),
    "when the ticket trains": (23, 24),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("in_the_act", [False, True], ids=["later", "in the act"])
def test_a_resumed_run_equals_the_straight_one(tmp_path, moment, in_the_act):
    saved, killed_at = MOMENTS[moment]

    def go(name, **how):
        tickets = LotteryTickets(0.35, rate=0.2, round_steps=10, segments=2)
        writer = ModelCheckpoint(tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=saved)
        torch.manual_seed(0)
        module = Adam()
        torch.manual_seed(1)
        options = {"max_epochs": 3, "default_root_dir": tmp_path} | how
        return record(module, loader, [tickets, ExactResume(), writer], **options)

    straight = go("straight")
    killed = go("killed", kill_at=saved if in_the_act else killed_at, in_the_act=in_the_act)
    resumed = go("killed", ckpt_path=newest(tmp_path / "killed"))

    # What a run that is killed in the act had yet to log is in neither.
    assert differences(straight, killed, resumed, lost_rows=int(in_the_act)) == []


def test_manual_optimisation_counts_the_steps_of_both_optimizers():
    """Ten batches of two steps an epoch: a round of seven steps ends after its fourth batch."""
    tickets = LotteryTickets(0.2, rate=0.2, round_steps=7)
    watch = Watch(tickets)
    trained(tickets, TwoOptimizers, watch, max_epochs=1)

    assert [bool(it) for it in watch.masks] == [False] * 4 + [True] * 6
    assert tickets.given_at == 8


def test_two_ranks_find_one_ticket(two_ranks):
    def found():
        tickets = LotteryTickets(0.35, rate=0.2, round_steps=10, segments=2)
        module, _ = trained(tickets, strategy="ddp", devices=2, use_distributed_sampler=False, max_epochs=6)
        shared = [value.flatten() for name, value in module.state_dict().items() if "running" not in name]
        return torch.cat(shared), tickets.kept_masks, tickets.sparsity_now

    (weights0, masks0, sparsity0), (weights1, masks1, sparsity1) = two_ranks(found)

    assert torch.equal(weights0, weights1)
    assert same_masks(masks0, masks1)
    assert sparsity0 == sparsity1 >= 0.35


def test_the_sizes_of_tickets_end_at_the_sparsity_exactly():
    """By hand: 100, then four fifths of it each time, 80, 64, 51.2, 41, 32.8, rounded; 0.65 ends at 35."""
    assert ticket_sizes(100, 0.65, 0.2) == [80, 64, 51, 41, 35]
    assert ticket_sizes(100, 0.0) == []
    assert ticket_sizes(3, 0.67, 0.01) == [2, 1]


def test_an_overlap_is_the_logical_and():
    left, right = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) > 0.5

    assert overlap({"w": left}, {"w": right})["w"].tolist() == [a and b for a, b in zip(left, right, strict=True)]


BAD = [
    ({"sparsity": 1.0}, "LotteryTickets: sparsity is 1.0; give a share from 0 (dense) to below 1."),
    ({"sparsity": -0.1}, "LotteryTickets: sparsity is -0.1; give a share from 0 (dense) to below 1."),
    ({"rate": 0.0}, "LotteryTickets: rate is 0.0; give a share above 0 and below 1."),
    ({"rate": 1}, "LotteryTickets: rate is 1; give a share above 0 and below 1."),
    ({"round_steps": 0}, "LotteryTickets: round_steps is 0; give a whole number of at least 1."),
    ({"rewind_step": -1}, "LotteryTickets: rewind_step is -1; give a whole number of at least 0."),
    ({"segments": 0}, "LotteryTickets: segments is 0; give a whole number of at least 1."),
    (
        {"segments": 3},
        "LotteryTickets: round_steps=10 is no multiple of segments=3, whose phases have one length; give 12.",
    ),
    (
        {"round_epochs": 2},
        "LotteryTickets: round_steps is 10 and round_epochs is 2; give one of the two.",
    ),
    (
        {"round_steps": None},
        "LotteryTickets: round_steps is None and round_epochs is None; give one of the two.",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        LotteryTickets(**{"sparsity": 0.5, "round_steps": 10} | settings)

    assert str(refusal.value) == sentence


REFUSED = {
    "a fit that is too short": (
        {"sparsity": 0.5},
        {},
        "LotteryTickets: sparsity=0.5 at rate=0.2 takes 4 rounds of 10 optimizer steps, and training ends after 30, "
        "before the ticket is trained; train for 50 steps, or shorten the rounds.",
    ),
    "epochs whose steps are not known": (
        {"round_steps": None, "round_epochs": 1},
        {"kind": TwoOptimizers},
        "LotteryTickets: how many optimizer steps an epoch has is not known (a loader without length, manual "
        "optimisation or a GradientAccumulationScheduler); give round_steps in place of round_epochs=1.",
    ),
    "segments where the loss is out of reach": (
        {"segments": 2},
        {"kind": TwoOptimizers},
        "LotteryTickets: TwoOptimizers optimises manually, so the loss of a batch without a sample of the segment is "
        "out of reach; use automatic optimization, or segments=1.",
    ),
    "segments of mixed labels": (
        {"segments": 2},
        {"others": [CutMix()]},
        "LotteryTickets: the Trainer also has CutMix, which mixes the labels by which segments are told; use "
        "segments=1, or leave it out.",
    ),
    "other masks": (
        {},
        {"others": [Pruning(0.5)]},
        "LotteryTickets: the Trainer also has Pruning, and each would hold masks of its own on the same weights; keep "
        "one of them.",
    ),
    "a pattern that matches nothing": (
        {"include": ["netwrk.5"]},
        {},
        "LotteryTickets: include has 'netwrk.5', which matches no Linear or convolutional layer of Plain; did you mean "
        "network.5 or network.0?",
    ),
    "labels that are none": (
        {"segments": 2, "target_key": "image"},
        {"kind": DictBatches},
        "LotteryTickets: segments are told by integer labels (B,), and the batch has (6, 1, 8, 8) torch.float32; say "
        "with target_key= where labels are, or use segments=1.",
    ),
    "steps past Lightning": (
        {},
        {"kind": PastLightning},
        "LotteryTickets: SGD was stepped past Lightning, which does not count such a step, so LotteryTickets could do "
        "nothing; call `step` of what `self.optimizers()` gives, without `use_pl_optimizer=False` and not of its "
        "`.optimizer`.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_weights_change(case):
    settings, how, sentence = REFUSED[case]
    kind = how.get("kind", Plain)
    torch.manual_seed(0)
    module = kind()
    before = {name: it.detach().clone() for name, it in module.named_parameters()}
    tickets = LotteryTickets(**{"sparsity": 0.2, "round_steps": 10} | settings)
    trainer = quiet_trainer(callbacks=[*how.get("others", []), tickets], max_epochs=3)
    train = ResumableLoader(labelled_images(60), 6, collate_fn=as_dict if kind is DictBatches else None)
    with pytest.raises(ValueError) as refusal:
        trainer.fit(module, train)

    assert str(refusal.value) == sentence
    assert distance(before, dict(module.named_parameters())) == 0.0


def test_segments_that_may_agree_too_much_are_warned_of():
    """From 396 weights two segments may take 40% or 20% a round: one round to 0.35 or two."""
    tickets = LotteryTickets(0.35, rate=0.2, round_steps=14, segments=2)
    with pytest.warns(UserWarning) as warned:
        trained(tickets, max_epochs=2)

    assert any(
        str(it.message)
        == "LotteryTickets: training ends after 20 optimizer steps, and the 2 rounds that it may take to "
        "sparsity=0.35 need 29; segments that agree leave it denser."
        for it in warned
    )


def digits_rounds(segments, seed):
    """Rounds that a small network on the digits takes to a sparsity of 0.9."""
    torch.manual_seed(seed)
    tickets = LotteryTickets(0.9, rate=0.3, round_steps=60, segments=segments)
    module, data = Plain(dropout=0.0), Digits(batch_size=100, seed=seed)
    trainer = quiet_trainer(callbacks=[tickets], max_steps=60 * 7 + 1, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    return tickets.rounds, tickets.sparsity_now


def test_row_205_digits_reach_the_sparsity_in_fewer_rounds_than_iterative_magnitude_pruning():
    (colt, reached), (imp, wanted) = digits_rounds(segments=2, seed=0), digits_rounds(segments=1, seed=0)

    assert reached >= wanted >= 0.9 - 1 / 396
    assert colt < imp == 7

"""SlimFit equals a loop by hand, chooses what hand-set updates say, and packs as many bytes as shapes say.

What is held of activations is proved in `test_held_activations.py`, two processes and resumes in
`hooks/test_freezing.py`, the rest in `conformance/`.
"""

import math
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import SlimFit
from lightning_vision.callbacks.finetuning.slimfit import layers_that_move_least, relative_movement
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


def fitted(*callbacks, kind=Plain, epochs=2, **options):
    module = seeded(kind)
    torch.manual_seed(5)
    trainer = quiet_trainer(callbacks=list(callbacks), max_epochs=epochs, **options)
    trainer.fit(module, train_loader())
    return module.state_dict(), trainer


def by_hand(freeze_rate, interval, warmup=0, mutant=""):
    """Two epochs of ten steps; what of Plain's convolution, batch norm and head is frozen by their distances."""
    module = seeded(Plain)
    torch.manual_seed(5)
    parts = [module.network[0], module.network[1], module.network[5]]
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    distances, frozen = [math.inf] * 3, set()

    def choose():
        order = sorted(range(3), key=lambda it: distances[it] * (-1 if mutant == "the farthest" else 1))
        return set(order[: int(3 * freeze_rate)])

    frozen = set() if warmup else choose()
    before = [[it.detach().clone() for it in part.parameters()] for part in parts]
    loader, step = train_loader(), 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for image, target in loader:
            for number, part in enumerate(parts):
                part.zero_grad()
                part.requires_grad_(number not in frozen)
                part.train(number not in frozen or mutant != "frozen parts rest")
            optimizer.zero_grad()
            F.cross_entropy(module.network(image), target).backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % interval:
                continue
            for number, part in enumerate(parts):
                if number in frozen and mutant != "a frozen layer is at 0":
                    continue
                moved = sum((a - b).abs().sum() for a, b in zip(part.parameters(), before[number], strict=True))
                distances[number] = (moved / sum(it.abs().sum() for it in before[number])).item()
            before = [[it.detach().clone() for it in part.parameters()] for part in parts]
            if step >= warmup:
                frozen = choose()
    return module.state_dict()


@pytest.mark.parametrize("setting", [(0.4, 1, 0), (0.7, 1, 0), (0.4, 3, 0), (0.7, 2, 5)])
def test_it_equals_a_loop_by_hand(setting):
    ours, _ = fitted(SlimFit(*setting, exclude=[]))

    assert distance(ours, by_hand(*setting)) == 0.0


@pytest.mark.parametrize("mutant", ["the farthest", "a frozen layer is at 0", "frozen parts rest"])
def test_a_wrong_loop_is_noticed(mutant):
    ours, _ = fitted(SlimFit(0.7, 1, exclude=[]))

    assert distance(ours, by_hand(0.7, 1, mutant=mutant)) > 1e-4


def test_row_2_without_freezing_and_packing_it_is_the_plain_run():
    assert distance(fitted(SlimFit(freeze_rate=0.0))[0], fitted()[0]) == 0.0


class HandSet(LightningModule):
    """Four weights of one; each step moves them by what is written down, in the layer's share of its size."""

    moves = ()

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(4))
        for layer in self.layers:
            nn.init.ones_(layer.weight)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append({name for name, layer in self.layers.named_children() if not layer.weight.requires_grad})
        return -sum(layer.weight.sum() * move for layer, move in zip(self.layers, self.moves[batch_idx], strict=True))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def hand_set(freeze_rate, interval, moves):
    module = HandSet()
    module.moves = moves
    callback = SlimFit(freeze_rate, interval, warmup_steps=interval, exclude=[])
    quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, DataLoader(torch.zeros(len(moves), 1)))
    return module.seen


def test_row_2_hand_set_updates_decide_what_is_frozen_and_what_returns():
    """A step with all, in which layer 0 moves by 0.4, 1 by 0.1, 2 by 0.3, 3 by 0.2, freezes 1 and 3.

    Then 0 and 2 hardly move, so 1 and 3, which kept 0.1 and 0.2, return, move by half, and stay awake.
    """
    first, hardly, half = (0.4, 0.1, 0.3, 0.2), (0.01, 0.9, 0.02, 0.9), (0.9, 0.5, 0.9, 0.5)

    assert hand_set(0.5, 1, [first, hardly, half, half]) == [set(), {"1", "3"}, {"0", "2"}, {"0", "2"}]


def test_row_2_over_an_interval_movements_that_cancel_out_count_nothing():
    there, back = (0.4, 0.1, 0.5, 0.2), (-0.4, 0.1, 0.5, 0.2)

    assert hand_set(0.25, 2, [there, back, back, back]) == [set(), set(), {"0"}, {"0"}]


def test_steps_that_move_nothing_say_nothing_of_an_order():
    first, nothing = (0.4, 0.1, 0.3, 0.2), (0.0,) * 4

    assert hand_set(0.5, 1, [first, nothing, nothing]) == [set(), {"1", "3"}, {"1", "3"}]


def test_all_layers_train_once_before_any_trains_twice():
    seen = []

    class Sets(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append([name for name, it in pl_module.named_parameters() if it.requires_grad])

    fitted(SlimFit(0.7, 1, exclude=[]), Sets(), epochs=1)

    assert [names[0] for names in seen[:3]] == ["network.5.weight", "network.1.weight", "network.0.weight"]


def test_row_2_what_is_frozen_stays_to_the_bit_and_has_no_gradient():
    found = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = {name: it.detach().clone() for name, it in pl_module.named_parameters()}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            # SlimFit, which acts before, may have chosen anew: what trained in this step has moved.
            moved = {name for name, it in pl_module.named_parameters() if not torch.equal(it, self.before[name])}
            found.append((moved, self.graded))

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.graded = {name for name, it in pl_module.named_parameters() if it.grad is not None}

    fitted(SlimFit(0.5, 1), Look(), epochs=1)

    trunk, norm, head = ({f"network.{it}.weight", f"network.{it}.bias"} for it in (0, 1, 5))
    assert {frozenset(graded) for _, graded in found} == {frozenset(trunk | head), frozenset(norm | head)}
    assert all(moved <= graded for moved, graded in found)


def test_movement_is_a_ratio_of_sums():
    before = [torch.tensor([1.0, -3.0]), torch.tensor([[4.0]])]
    after = [torch.tensor([2.0, -3.0]), torch.tensor([[1.0]])]

    assert relative_movement(before, after).item() == 0.5


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.0, []), (0.24, []), (0.25, ["b"]), (0.5, ["b", "d"]), (0.99, ["b", "d", "a"])],
)
def test_the_least_movers_are_rounded_down(rate, expected):
    assert layers_that_move_least({"a": 0.3, "b": 0.0, "c": math.inf, "d": 0.1}, rate) == expected


def test_so_many_tenths_of_ten_layers_are_so_many_layers():
    layers = {str(number): 0.0 for number in range(10)}

    assert [len(layers_that_move_least(layers, tenths / 10)) for tenths in range(10)] == list(range(10))


def test_the_number_of_frozen_layers_is_logged():
    _, trainer = fitted(SlimFit(0.7, 1, exclude=[]), epochs=1)

    assert trainer.callback_metrics["train/layers_frozen"].item() == 2


SHAPE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "depth": 4, "embed_dim": 16, "num_heads": 2, "num_classes": 10}


class Vit(LightningModule):
    def __init__(self, **shape):
        super().__init__()
        self.network = timm.create_model("vit_tiny_patch16_224", **SHAPE | shape)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("accuracy", (self.network(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.003, weight_decay=0.01)


def test_row_2_bytes_of_a_step_fall_by_the_computed_ratio():
    """Batch 6, 17 tokens, width 16, 2 heads of 8, 4 blocks; float32. By block, in rows of N numbers each:

    two layer norms and one at the end, 16; GELU, 64; q, k, v and the attention's result, 8. In 8 bits a row of N takes
    N + 4 bytes in the place of 4 N.
    """
    _, trainer = fitted(SlimFit(0.0, activation_bits=8), kind=Vit, epochs=1)
    tokens = 6 * 17
    rows = {16: (4 * 2 + 1) * tokens, 64: 4 * tokens, 8: 4 * 4 * 2 * tokens}
    plain, held = (sum(count * each(n) for n, count in rows.items()) for each in (lambda n: 4 * n, lambda n: n + 4))
    logged = trainer.callback_metrics

    assert logged["train/activation_mb"].item() == pytest.approx(plain / 1e6)
    assert logged["train/activation_mb_held"].item() == pytest.approx(held / 1e6)


class FirstFive(Digits):
    """The training digits 0 to 4, to pretrain on."""

    def load(self):
        super().load()
        kept = self.train_set.targets < 5
        self.train_set = ArrayImages(self.train_set.images[kept], self.train_set.targets[kept])


@cache
def pretrained(seed, epochs):
    torch.manual_seed(seed)
    module = Vit(depth=2, embed_dim=48)
    quiet_trainer(max_epochs=epochs).fit(module, FirstFive(batch_size=32, seed=seed))
    return module.state_dict()


def fine_tuned(seed, epochs, freeze_rate, bits=None):
    """Accuracy on all ten digits, having pretrained on five of them for as many epochs."""
    module = Vit(depth=2, embed_dim=48)
    module.load_state_dict(pretrained(seed, epochs))
    callbacks = [SlimFit(freeze_rate, interval=5, warmup_steps=20, activation_bits=bits)]
    trainer = quiet_trainer(callbacks=callbacks, max_epochs=epochs)
    trainer.fit(module, Digits(batch_size=32, seed=seed))
    return trainer.test(module, Digits(), verbose=False)[0]["accuracy"]


def test_row_2_a_vit_learns_digits_with_half_of_its_layers_frozen_and_activations_in_8_bits():
    assert fine_tuned(0, 7, 0.5, 8) > 0.5


@pytest.mark.slow
def test_row_2_a_vit_keeps_its_accuracy_on_digits_within_five_points_with_half_of_it_frozen():
    """Within five points of plain fine-tuning on average over five seeds; 3.6 points were measured."""
    losses = [fine_tuned(seed, 10, 0.0) - fine_tuned(seed, 10, 0.5) for seed in range(5)]

    assert sum(losses) / 5 < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_rate": 1.0}, "freeze_rate is 1, so nothing would train; give a number from 0 to below 1."),
        ({"freeze_rate": -0.1}, "freeze_rate is -0.1; give a number from 0 to 1."),
        ({"freeze_rate": "0.5"}, "freeze_rate is '0.5'; give a number from 0 to 1."),
        ({"interval": 0}, "interval is 0; give a whole number of at least 1."),
        ({"warmup_steps": -1}, "warmup_steps is -1; give a whole number of at least 0."),
        ({"activation_bits": 16}, "activation_bits is 16; give 4, 8 or None."),
        ({"softmax_keep": 0.0}, "softmax_keep is 0, so nothing would be held; give a number above 0, up to 1."),
        ({"softmax_keep": 1.5}, "softmax_keep is 1.5; give a number from 0 to 1."),
        ({"exclude": 3}, "exclude is 3; give a pattern such as 'blocks.*.act', or a list of them."),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^SlimFit: {message}$"):
        SlimFit(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": "netwrk.*"}, r"exclude 'netwrk.\*' matches none of the layers of Plain; there are network"),
        (
            {"freeze_rate": 0.3},
            "freeze_rate=0.3 of the 2 layers of Plain that may be frozen is less than one; raise it",
        ),
        ({"activation_bits": 8}, "training_step called no GELU, layer norm or matrix product, whose inputs were to be"),
        ({"softmax_keep": 0.1}, "training_step called no softmax of which the top 0.1 could be held"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_it_has_stepped(settings, message):
    module = seeded(Plain)
    with pytest.raises(ValueError, match=f"^SlimFit: {message}"):
        quiet_trainer(callbacks=[SlimFit(**{"freeze_rate": 0.5} | settings)], max_epochs=1).fit(module, train_loader())

    parameters = dict(seeded(Plain).named_parameters())
    assert distance(dict(module.named_parameters()), parameters) == 0.0

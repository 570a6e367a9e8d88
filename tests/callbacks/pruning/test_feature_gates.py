"""Gates learn in a pass of their own: equality with a loop by hand, open gates, and gates of noise that close.

The seam (resumes, several processes, other callbacks) is proved in `hooks/test_routed.py`, the rest in `conformance/`.
"""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from sklearn.datasets import load_digits
from torch import nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import FeatureGates
from lightning_vision.callbacks.pruning.feature_gates import gated, gated_weights, residual_branches
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, TwoOptimizers
from support.trainers import quiet_trainer

BOTH = ["network.1", "network.5"]


def loaders():
    return ResumableLoader(labelled_images(60), 6), ResumableLoader(labelled_images(24, seed=1), 6)


def fitted(*callbacks, kind=Plain, **options):
    module = seeded(kind)
    torch.manual_seed(5)
    quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options).fit(module, *loaders())
    return module


def by_hand(accumulate=1, precision="fp32", every=1, mutant=""):
    """Two epochs of ten batches: a pass for the weights, then with the same dropout one for the gates."""
    module, random = seeded(Plain), torch.Generator().manual_seed(0)
    raws = [torch.randn(count, generator=random) * math.sqrt(2 / (1 + count)) for count in (4, 10)]
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    gates = torch.optim.Adam(raws, lr=0.1)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3, enabled=precision == "fp16")
    # As a Trainer does, whose sanity check would come first.
    torch.manual_seed(5)

    def loss_of(image, target):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            hidden = module.network[1](module.network[0](image))
            hidden = (hidden * raws[0].sigmoid().view(1, -1, 1, 1)).to(hidden.dtype)
            logits = module.network[2:](hidden)
            return F.cross_entropy((logits * raws[1].sigmoid()).to(logits.dtype), target) / accumulate

    loader, steps = loaders()[0], 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        window = []
        for number, (image, target) in enumerate(loader):
            if number % accumulate == 0:
                optimizer.zero_grad()
            window.append((image, target, torch.get_rng_state()))
            scaler.scale(loss_of(image, target)).backward()
            if (number + 1) % accumulate and number < 9:
                continue
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            steps += 1
            if steps % every == 0:
                seen = {name: it.clone() for name, it in module.named_buffers()}
                stream, total = torch.get_rng_state(), [torch.zeros_like(it) for it in raws]
                for raw in raws:
                    raw.requires_grad_(True)
                for image, target, state in window:
                    if mutant != "other dropout":
                        torch.set_rng_state(state)
                    found = torch.autograd.grad(loss_of(image, target) * scaler.get_scale(), raws)
                    total = [left + right for left, right in zip(total, found, strict=True)]
                torch.set_rng_state(stream)
                for raw, gradient in zip(raws, total, strict=True):
                    raw.requires_grad_(False)
                    raw.grad = gradient / scaler.get_scale()
                if all(raw.grad.isfinite().all() for raw in raws):
                    gates.step()
                for name, it in module.named_buffers():
                    if mutant != "batches count twice":
                        it.copy_(seen[name])
            window.clear()
    with torch.no_grad():
        for layer, raw in zip((module.network[1], module.network[5]), raws, strict=True):
            for it in (layer.weight, layer.bias):
                it.copy_(it * raw.sigmoid().view(-1, *[1] * (it.ndim - 1)))
    return module.state_dict(), [raw.sigmoid() for raw in raws]


def ours(accumulate=1, precision="fp32", every=1):
    options = {"precision": "bf16-mixed"} if precision == "bf16" else {}
    if precision == "fp16":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    callback = FeatureGates(BOTH, gate_lr=0.1, every_n_steps=every)
    return fitted(callback, accumulate_grad_batches=accumulate, **options).state_dict(), callback.scores


@pytest.mark.parametrize(
    ("accumulate", "precision", "every"), [(1, "fp32", 1), (3, "fp32", 1), (1, "bf16", 2), (2, "fp16", 1)]
)
def test_it_equals_a_loop_by_hand(accumulate, precision, every):
    (weights, scores), (expected, hand) = ours(accumulate, precision, every), by_hand(accumulate, precision, every)

    assert distance(weights, expected) == 0.0
    assert [torch.equal(scores[name], it) for name, it in zip(BOTH, hand, strict=True)] == [True, True]


@pytest.mark.parametrize("mutant", ["other dropout", "batches count twice"])
def test_a_wrong_second_pass_is_noticed(mutant):
    assert distance(ours()[0], by_hand(mutant=mutant)[0]) > 1e-4


def test_row_249_gates_at_infinity_reproduce_the_ungated_network():
    layer, images = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5)
    opened = torch.full((3,), math.inf)
    # Trained with all its passes, gates included, for an open gate has no gradient.
    run = fitted(FeatureGates(BOTH, gate_lr=0.1, init=math.inf)).state_dict()

    assert torch.equal(gated(layer(images), opened, channel=1), layer(images))
    assert distance(run, fitted().state_dict()) == 0.0
    assert distance(run, fitted(FeatureGates(BOTH, gate_lr=0.1, init=4.0)).state_dict()) > 1e-4


class Passes(Callback):
    """Notes after backward, the step and the batch what weights and gates are: the gates' pass ends the batch."""

    def __init__(self):
        self.notes = []

    def note(self, pl_module, when):
        values = {name: it.detach().clone() for name, it in pl_module.named_parameters()}
        gradients = {name: it.grad for name, it in pl_module.named_parameters() if "added_" in name}
        gates = {name: values.pop(name) for name in list(values) if "added_" in name}
        buffers = {name: it.clone() for name, it in pl_module.named_buffers()}
        self.notes.append((when, values, gates, gradients, buffers))

    def on_train_start(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        optimizer.register_step_post_hook(lambda *_: self.note(pl_module, "stepped"))

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.note(pl_module, "begins")

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.note(pl_module, "ends")


def test_row_249_the_pass_of_the_gates_leaves_the_weights_and_that_of_the_weights_the_gates():
    passes = Passes()
    fitted(FeatureGates(BOTH, gate_lr=0.1), passes)
    begins, stepped, ends = (passes.notes[place::3] for place in range(3))

    assert [note[0] for note in passes.notes] == ["begins", "stepped", "ends"] * 20
    for first, second, third in zip(begins, stepped, ends, strict=True):
        assert distance(first[2], second[2]) == 0.0 < distance(second[2], third[2])
        assert distance(second[1], third[1]) == 0.0 < distance(first[1], second[1])
        assert distance(second[4], third[4]) == 0.0
        assert set(second[3].values()) == {None}


class Fixed(Plain):
    """Scales the outputs of its batch norm and head by numbers that no optimizer knows."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        raws = [torch.randn(count, generator=random) * math.sqrt(2 / (1 + count)) for count in (4, 10)]
        self.scores = [it.sigmoid() for it in raws]

    def forward(self, image):
        hidden = self.network[1](self.network[0](image)) * self.scores[0].view(1, -1, 1, 1)
        return self.network[2:](hidden) * self.scores[1]


def test_row_249_a_rate_of_zero_equals_training_with_fixed_gates():
    callback = FeatureGates(BOTH, gate_lr=0.0)
    module, fixed = fitted(callback).state_dict(), fitted(kind=Fixed)
    expected = fixed.state_dict()
    for place, scores in zip((1, 5), fixed.scores, strict=True):
        for it in ("weight", "bias"):
            value = expected[f"network.{place}.{it}"]
            expected[f"network.{place}.{it}"] = value * scores.view(-1, *[1] * (value.ndim - 1))

    assert distance(module, expected) == 0.0
    assert distance(module, fitted(FeatureGates(BOTH, gate_lr=0.1)).state_dict()) > 1e-3
    assert [torch.equal(callback.scores[name], it) for name, it in zip(BOTH, fixed.scores, strict=True)] == [True] * 2


class Noisy(LightningModule):
    """Digits' 64 pixels beside as many numbers that say nothing; `select` has a channel for each of them."""

    def __init__(self):
        super().__init__()
        self.select = nn.Linear(128, 128, bias=False)
        nn.init.eye_(self.select.weight)
        self.select.requires_grad_(False)
        self.rest = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.rest(self.select(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.rest.parameters(), lr=1e-3)


def test_row_249_on_digits_the_gates_of_noise_end_lower():
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32)
    pixels = (pixels - pixels.mean(0)) / pixels.std(0).clamp(min=0.1)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(torch.cat([pixels, noise], dim=1)[:512], torch.tensor(digits.target)[:512])
    callback = FeatureGates("select", gate_lr=0.03, init=0.0)
    train = torch.utils.data.DataLoader(data, 64)
    quiet_trainer(callbacks=[callback], max_epochs=20).fit(seeded(Noisy), train)
    # Pixels that are the same in all digits say nothing either.
    told = pixels.std(0) > 0.5
    image, other = callback.scores["select"][:64][told], callback.scores["select"][64:]

    assert image.mean() - other.mean() > 0.1
    assert image.median() > other.quantile(0.9)


CHANNELS = {
    "linear": (nn.Linear(6, 5), (2, 3, 6), -1),
    "without bias": (nn.Linear(6, 5, bias=False), (2, 6), -1),
    "convolution": (nn.Conv2d(6, 5, 3, groups=1), (2, 6, 5, 5), 1),
    "batch norm": (nn.BatchNorm2d(5), (3, 5, 4, 4), 1),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_the_layer_with_the_gated_weights_puts_out_what_it_and_its_gates_do(name):
    layer, shape, channel = CHANNELS[name]
    torch.manual_seed(0)
    layer, raw, given = layer.double(), torch.randn(5).double(), torch.randn(shape).double()
    for it in layer.parameters():
        nn.init.normal_(it)
    folded = torch.func.functional_call(layer, gated_weights(layer, raw), (given,))

    torch.testing.assert_close(folded, gated(layer(given), raw, channel))


def test_the_first_gates_have_xaviers_spread_and_scores_near_one_half():
    (addition,) = FeatureGates("0").additions(nn.Sequential(nn.Linear(2, 4999))).values()

    assert addition.raw.std().item() == pytest.approx(math.sqrt(2 / 5000), rel=0.05)
    assert addition.raw.sigmoid().mean().item() == pytest.approx(0.5, abs=1e-3)


SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
BRANCHES = {
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", **SMALL),
        [f"blocks.{block}.{layer}" for block in range(2) for layer in ("attn.proj", "mlp.fc2")],
    ),
    "basic blocks": (
        lambda: torchvision.models.resnet18(),
        [f"layer{stage}.{block}.bn2" for stage in range(1, 5) for block in range(2)],
    ),
    "bottlenecks": (
        lambda: timm.create_model("resnet26"),
        [f"layer{stage}.{block}.bn3" for stage in range(1, 5) for block in range(2)],
    ),
    "ours": (
        lambda: create("resnet8_cifar", num_classes=10, in_channels=1),
        [f"stages.{stage}.0.bn2" for stage in range(3)],
    ),
    "no branches": (lambda: Plain().network, ["1"]),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_ends_of_residual_branches_are_found(name):
    make, expected = BRANCHES[name]

    assert residual_branches(make()) == expected


class Standardised(nn.Conv2d):
    def forward(self, images):
        return self._conv_forward(images, self.weight - self.weight.mean(), self.bias)


class Odd(Plain):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))
        self.attention, self.standardised = nn.MultiheadAttention(8, 2), Standardised(1, 1, 3)
        self.plain = nn.BatchNorm2d(3, affine=False)


@pytest.mark.parametrize(
    ("kind", "layers", "said"),
    [
        (Odd, None, "neither residual branches with the names of timm's transformers and ResNets nor batch norms"),
        (Odd, "network.1", "names 'network.1', a LayerNorm, whose weights cannot absorb a gate"),
        (Odd, "attention.*", "names 'attention.out_proj', a NonDynamically"),
        (Odd, "standardised", "names 'standardised', a Standardised"),
        (Odd, "plain", "matches none of the layers with weights"),
        (Plain, "*.bn2", "matches none of the layers with weights; there are network"),
        (TwoOptimizers, None, "optimises manually"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_in_a_sentence(kind, layers, said):
    with pytest.raises(ValueError, match=rf"^FeatureGates: .*{said}.*\.$"):
        fitted(FeatureGates(layers), kind=kind)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gate_lr": -0.1}, "gate_lr is -0.1"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [3]}, "layers is "),
        ({"init": math.nan}, "init is nan; give a number, infinity"),
        ({"init": "xavier"}, "init is 'xavier'"),
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(settings, said):
    with pytest.raises(ValueError, match=rf"^FeatureGates: {said}.*\.$"):
        FeatureGates(**settings)

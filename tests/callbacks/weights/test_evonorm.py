"""EvoNorm: timm's layers are the formulas, pairs are found in the forward itself, a swapped network trains and loads.

Conformance (resume, processes, precision) is proved in `conformance/`.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dS0, EvoNorm2dS1
from torch import nn

from lightning_vision.callbacks import EvoNorm, swap_norms
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

LAYERS = {"B0": EvoNorm2dB0, "B1": EvoNorm2dB1, "S0": EvoNorm2dS0, "S1": EvoNorm2dS1}
EVONORMS = tuple(LAYERS.values())
EPS = {"B0": 1e-3, "B1": 1e-5, "S0": 1e-5, "S1": 1e-5}


def formula(variant, x, gamma, beta, v1, running=None, swap=False):
    """Table 2 of the paper, of four groups; the running variance in the place of the batch's where it is given."""
    eps = EPS[variant]
    column = [it[None, :, None, None] for it in (gamma, beta, v1)]
    instance = x.var((2, 3), unbiased=False, keepdim=True)
    if variant in ("B0", "B1"):
        batch = x.var((0, 2, 3), unbiased=False, keepdim=True) if running is None else running[None, :, None, None]
        own = x.square().mean((2, 3), keepdim=True)
        right = column[2] * x + (instance + eps).sqrt() if variant == "B0" else (x + 1) * (own + eps).sqrt()
        y = x / torch.maximum((batch + eps).sqrt(), -right if swap else right)
    else:
        grouped = x.reshape(len(x), 4, -1)
        deviation = (
            (grouped.var(2, unbiased=False) + eps).sqrt().repeat_interleave(x.shape[1] // 4, 1)[:, :, None, None]
        )
        gate = column[2] * x if variant == "S0" else x
        y = x * torch.sigmoid(-gate if swap else gate) / deviation
    return y * column[0] + column[1]


@pytest.mark.parametrize("variant", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_row_119_timms_layer_is_the_formula_written_out(variant, training):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, 3, 4, generator=generator) * 2 + 1
    gamma, beta, v1 = (torch.randn(8, generator=generator) for _ in range(3))
    layer = LAYERS[variant](8, groups=4).train(training)
    for name, value in {"weight": gamma, "bias": beta, "v": v1}.items():
        if name in layer.state_dict():
            getattr(layer, name).data.copy_(value)
    running = None
    if variant in ("B0", "B1") and not training:
        running = layer.running_var.uniform_(0.5, 2.0, generator=generator).clone()

    with torch.no_grad():
        torch.testing.assert_close(layer(x), formula(variant, x, gamma, beta, v1, running), rtol=1e-5, atol=1e-5)
        wrong = formula(variant, x, gamma, beta, v1, running, swap=True)
        assert (layer(x) - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("variant", ["S0", "S1"])
def test_row_119_an_image_answers_alike_whatever_is_in_its_batch(variant):
    torch.manual_seed(0)
    model = timm.create_model("resnetv2_18", num_classes=5)
    swap_norms(model, variant)
    image, others = torch.randn(1, 3, 32, 32), torch.randn(2, 7, 3, 32, 32)

    first, second = (model.train()(torch.cat([image, it]))[0] for it in others)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_b0_looks_at_the_batch():
    layer = EvoNorm2dB0(4)
    image, other = torch.randn(1, 4, 5, 5), 9 * torch.randn(1, 4, 5, 5)

    assert (layer(image) - layer(torch.cat([image, other]))[:1]).abs().max() > 1e-2


def follows_in_a_run(model, images):
    """By running: for each batch norm the kinds of the layers that are given the very tensor that it put out."""
    given, made = [], {}
    for name, layer in model.named_modules():
        if not list(layer.children()):
            # With its version, for an addition in place leaves the tensor the same and not what the norm put out.
            layer.register_forward_pre_hook(lambda it, args, name=name: given.append((name, args[0], args[0]._version)))
            layer.register_forward_hook(
                lambda it, args, out, name=name: made.setdefault(name, []).append((out, out._version))
            )
    model(images)
    norms = [name for name, it in model.named_modules() if isinstance(it, nn.BatchNorm2d)]
    return {
        name: {
            type(model.get_submodule(who)).__name__
            for who, *it in given
            if any(x is it[0] and v == it[1] for x, v in made.get(name, []))
        }
        for name in norms
    }


NETWORKS = {
    "resnet18": (9, 11),
    "mobilenetv3_small_100": (23, 11),
    "regnetx_002": (27, 17),
    "efficientnet_b0": (33, 16),
    "resnetv2_18": (17, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_row_119_no_pair_is_left_and_shapes_are_kept(name):
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    shape = model(images).shape
    done = swap_norms(model)
    left = follows_in_a_run(model, images)

    assert NETWORKS[name] == (len(done.swapped), len(done.left))
    assert shape == model(images).shape
    assert not {"ReLU", "SiLU", "Hardswish"} & set().union(set(), *left.values())
    assert [
        it
        for it in model.modules()
        if hasattr(it, "drop") and isinstance(it, nn.BatchNorm2d) and not isinstance(it.act, nn.Identity)
    ] == []
    assert len(done.swapped) == sum(isinstance(it, EVONORMS) for it in model.modules())


def test_an_activation_that_is_shared_rests_behind_an_evonorm_and_works_behind_the_addition():
    model = torchvision.models.resnet18(num_classes=5).eval()
    done = swap_norms(model, "S0")
    block, x = model.layer1[0], torch.randn(2, 64, 8, 8)
    by_hand = F.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)))) + x)

    assert len(done.swapped) == 9
    assert torch.equal(by_hand, block(x))
    assert torch.equal(F.relu(x), block.relu(x))
    assert not torch.equal(by_hand, F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + x))


class Odd(nn.Module):
    """Norms that are no pairs: seen before the activation, added to, behind a function, before a gate, never called."""

    def __init__(self):
        super().__init__()
        for name in ("twice", "added", "function", "gated", "idle"):
            setattr(self, name, nn.BatchNorm2d(4))
        self.act, self.gate = nn.ReLU(), nn.Sigmoid()

    def forward(self, x):
        seen = self.twice(x)
        x = self.act(seen) + seen
        x = self.act(self.added(x) + x)
        return self.gate(self.gated(F.relu(self.function(x))))


def test_what_is_no_pair_stays_and_is_told():
    model = Odd()
    done = swap_norms(nn.Sequential(model, nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.SiLU()), skip="3")

    assert done.swapped == ("1",)
    assert done.left == {
        "3": "it was to be skipped",
        "0.twice": "its output does not go to one layer alone",
        "0.added": "its output does not go to one layer alone",
        "0.function": "its output does not go to one layer alone",
        "0.gated": "a Sigmoid follows it",
        "0.idle": "no forward that can be followed calls it",
    }
    assert isinstance(model.act, nn.ReLU)


def test_groups_that_do_not_divide_the_channels_become_their_common_divisor():
    model = nn.Sequential(nn.BatchNorm2d(48), nn.ReLU())
    swap_norms(model, "S0", groups=32)

    assert model[0].groups == 16


def test_following_a_forward_leaves_the_global_stream_and_the_model_alone():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, x):
            return self.act(self.norm(x)) * torch.rand(1)

    before = torch.get_rng_state()
    swap_norms(model := Draws())

    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(model.norm, EvoNorm2dS0)


def test_row_119_a_swapped_network_learns_digits(tmp_path):
    torch.manual_seed(0)
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    trainer = quiet_trainer(callbacks=[EvoNorm("S0")], max_epochs=2)
    trainer.fit(module, datamodule=Digits(batch_size=32))

    assert any(isinstance(it, EvoNorm2dS0) for it in module.modules())
    assert trainer.validate(module, datamodule=Digits(), verbose=False)[0]["val/acc"] > 0.9


def test_a_file_is_tested_with_the_callback_or_loaded_after_the_swap(tmp_path):
    loader = plain_loader(24)
    writer = ModelCheckpoint(tmp_path, save_weights_only=True)
    trainer = quiet_trainer(callbacks=[EvoNorm("B0"), writer], enable_checkpointing=True, max_epochs=1)
    trainer.fit(Plain(), loader, loader)
    scored = trainer.test(ckpt_path="best", dataloaders=loader, verbose=False)
    again = quiet_trainer(callbacks=[EvoNorm("B0")])

    assert scored == again.test(Plain(), loader, ckpt_path=writer.best_model_path, verbose=False)
    module, state = Plain(), torch.load(writer.best_model_path, weights_only=True)["state_dict"]
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(state)
    swap_norms(module, "B0")
    module.load_state_dict(state)
    assert scored == quiet_trainer().test(module, loader, verbose=False)


def test_a_module_that_is_swapped_already_is_left_alone():
    module, loader = Plain(), plain_loader(12)
    quiet_trainer(callbacks=[EvoNorm("S0")], max_epochs=1).fit(module, loader)
    layer = module.network[1]
    quiet_trainer(callbacks=[EvoNorm("S0")], max_epochs=1).fit(module, loader)

    assert layer is module.network[1] and isinstance(layer, EvoNorm2dS0)
    with pytest.raises(ValueError, match=r"^EvoNorm: variant is 'B1' and Plain has EvoNorm-S0 layers already; give"):
        quiet_trainer(callbacks=[EvoNorm("B1")], max_epochs=1).fit(module, loader)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "S2"}, "EvoNorm: variant is 'S2'; give one of 'B0', 'B1', 'S0', 'S1'."),
        ({"groups": 0}, "EvoNorm: groups is 0; give a whole number of at least 1."),
        ({"momentum": 1.5}, "EvoNorm: momentum is 1.5; give a number from 0 to 1."),
        ({"eps": -1.0}, "EvoNorm: eps is -1.0; give a finite number of at least 0."),
        ({"skip": [3]}, "EvoNorm: skip is [3]; give a pattern such as 'blocks.*.act', or a list of them."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        EvoNorm(**settings)

    assert message == str(error.value)


def test_a_pattern_that_matches_nothing_and_a_network_without_pairs_are_refused():
    with pytest.raises(ValueError) as error:
        quiet_trainer(callbacks=[EvoNorm(skip="netwrk.1")]).validate(Plain(), plain_loader(6))
    assert str(error.value) == "swap_norms: skip 'netwrk.1' matches none of the norms; there are network.1."
    module = Plain()
    module.network[2] = nn.Identity()
    with pytest.raises(ValueError) as error:
        quiet_trainer(callbacks=[EvoNorm()], max_epochs=1).fit(module, plain_loader(6))
    assert str(error.value) == (
        "EvoNorm: Plain has no norm over maps whose output goes to an activation alone (network.1 stays, for a Dropout "
        "follows it); make the network in the constructor, with activations that are layers, or leave the callback out."
    )

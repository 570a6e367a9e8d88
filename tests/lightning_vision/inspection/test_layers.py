"""Layers are found by name, their outputs read as maps, and the network is left as it was."""

import random

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

from lightning_vision.inspection.at_rest import at_rest
from lightning_vision.inspection.layers import find_layer, read_layer, read_maps, spatial_layer
from lightning_vision.inspection.maps import Layout, as_maps, layout_of
from lightning_vision.inspection.scores import class_scores
from support.compare import seeded

# Last layer whose maps reach the answer, of images 96x64: convolutional, with a class token or two, pooled tokens,
# windows, channels last, heads that begin at zero, a part that runs twice, tokens that get their class token late.
LAYERS = {
    "resnet10t": ("layer4", {}),
    "test_efficientnet": ("bn2", {}),
    "test_convnext": ("stages", {}),
    "test_nfnet": ("final_act", {}),
    "test_byobnet": ("stages", {}),
    "test_maxvit": ("norm", {"img_size": (96, 64)}),
    "test_vit": ("blocks.5.norm1", {"img_size": (96, 64)}),
    "test_vit2": ("blocks", {"img_size": (96, 64)}),
    "deit_tiny_distilled_patch16_224": ("blocks.1.norm1", {"img_size": (96, 64), "depth": 2}),
    "swin_tiny_patch4_window7_224": ("norm", {"img_size": (96, 64), "depths": (1, 1, 1, 1)}),
    "mixer_s32_224": ("norm", {"img_size": (96, 64)}),
    "resnetv2_50x1_bit": ("norm", {}),
    "cait_xxs24_224": ("blocks_token_only.1.norm1", {"img_size": (96, 64), "depth": 2}),
    "shvit_s1": ("stages", {}),
}
MORE = [
    "botnet26t_256",
    "coat_lite_tiny",
    "coatnet_nano_rw_224",
    "convit_tiny",
    "convmixer_768_32",
    "convnextv2_atto",
    "crossvit_tiny_240",
    "cspresnet50",
    "darknet53",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla34",
    "dm_nfnet_f0",
    "dpn48b",
    "eca_nfnet_l0",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientnet_b0",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "fbnetc_100",
    "flexivit_small",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "gmixer_12_224",
    "gmlp_ti16_224",
    "halonet26t",
    "hardcorenas_a",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_next_atto",
    "inception_v3",
    "lambda_resnet26t",
    "lcnet_035",
    "levit_128s",
    "mambaout_femto",
    "maxvit_rmlp_pico_rw_256",
    "mnasnet_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "nest_tiny",
    "nfnet_l0",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnety_002",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_26w_4s",
    "resmlp_12_224",
    "resnest14d",
    "resnet18",
    "rexnet_100",
    "samvit_base_patch16_224",
    "selecsls42",
    "sequencer2d_s",
    "skresnet18",
    "starnet_s1",
    "swin_s3_tiny_224",
    "swinv2_cr_tiny_ns_224",
    "test_resnet",
    "test_vit3",
    "test_vit4",
    "tf_efficientnetv2_b0",
    "tiny_vit_5m_224",
    "tinynet_e",
    "tnt_s_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_base_patch16_siglip_gap_224",
    "vit_relpos_small_patch16_224",
    "vit_small_r26_s32_224",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "volo_d1_224",
    "vovnet39a",
    "xception41",
    "xcit_nano_12_p16_224",
]


class Net(nn.Module):
    """Maps `(B, 4, h, w)`, a ReLU that writes in place, and logits of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.act(self.conv(images)).mean((2, 3)))


class Changed(Net):
    """The same, with `forward` as given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.forward = lambda images: forward(self, images)


def by_hand(net, images, chosen):
    """Output of the convolution and gradient of the chosen logits by it, with nothing but autograd."""
    maps = net.conv(images)
    logits = net.head(maps.relu().mean((2, 3)))
    gradient = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), maps)[0]
    return maps.detach(), gradient, logits.detach()


def pictures(*size, count=2):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def test_a_part_is_found_by_each_of_its_names():
    net = Net()
    net.again = net.conv
    whole = nn.ModuleDict({"inner": torch.compile(net, backend="eager")})

    assert find_layer(net, "again") is net.conv
    assert find_layer(whole, "inner.conv") is net.conv


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("covn", "Net has no layer 'covn'; did you mean conv?"),
        ("zzz", "Net has no layer 'zzz'; its parts begin conv, act, head."),
        (nn.ReLU(), "a layer is given by its dotted name, as 'head', and not as a ReLU."),
    ],
)
def test_an_unknown_part_is_refused_with_the_nearest_names(name, message):
    with pytest.raises(ValueError) as refused:
        find_layer(Net(), name)

    assert str(refused.value) == message


def test_a_name_without_its_beginning_is_completed():
    with pytest.raises(ValueError, match=r"no layer 'conv'; did you mean inner\.conv\?"):
        find_layer(nn.ModuleDict({"inner": Net()}), "conv")


@pytest.mark.parametrize(
    ("shape", "size", "prefix", "maps"),
    [
        ((2, 5, 3, 4), (48, 64), None, (2, 5, 3, 4)),
        ((2, 3, 4, 9), (48, 64), None, (2, 9, 3, 4)),
        ((2, 12, 5), (48, 64), None, (2, 5, 3, 4)),
        ((2, 13, 5), (48, 64), 1, (2, 5, 3, 4)),
        ((2, 17, 5), (48, 64), None, (2, 5, 3, 4)),
        ((2, 12, 5), (48, 64), 1, (2, 5, 3, 4)),
        ((2, 5, 26, 58), (32, 64), None, (2, 5, 26, 58)),
        ((2, 5, 2, 3), (50, 70), None, (2, 5, 2, 3)),
    ],
    ids=["channels", "last", "tokens", "class", "registers", "later", "no_padding", "rounded"],
)
def test_shapes_are_read_as_maps(shape, size, prefix, maps):
    assert as_maps(torch.zeros(shape), size, Layout(prefix, None), "it").shape == maps


def test_tokens_stand_in_reading_order_behind_the_class_token():
    tokens = torch.arange(13.0)[None, :, None].expand(1, 13, 2)
    maps = as_maps(tokens, (48, 64), Layout(1, None), "it")

    assert maps[0, 1].tolist() == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
    ]


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 5, 12, 12), (2, 1, 5), (2, 5, 4, 3)])
def test_other_shapes_are_no_maps(shape):
    with pytest.raises(ValueError, match=r"layer 'it' puts out .* no maps of images of 48x64; name one before pooling"):
        as_maps(torch.zeros(shape), (48, 64), Layout(None, None), "it")


def test_windows_with_channels_last_are_read_so_where_both_readings_have_the_images_proportions():
    settings = {"img_size": (96, 192), "window_size": 6, "depths": (1, 1, 1, 1), "num_classes": 4}
    model = seeded(lambda: timm.create_model("swin_tiny_patch4_window7_224", **settings)).eval()
    kept = []
    model.layers[0].register_forward_hook(lambda _part, _inputs, output: kept.append(output.detach()))
    found, _ = read_maps(model, pictures(96, 192), "layers.0")
    by_hand = kept[0].permute(0, 3, 1, 2)

    assert kept[0].shape == (2, 24, 48, 96)
    assert found.shape == by_hand.shape
    assert torch.corrcoef(torch.stack([found.flatten(), by_hand.flatten()]))[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_tiny_patch4_window7_224", {"patch_embed": True, "patch_embed.proj": False, "layers.0.blocks.1": True}),
        ("convnext_tiny", {"stages.0": False, "stages.0.blocks.0": False, "stages.0.blocks.0.norm": True}),
        ("resnet18", {"layer1": False, "layer1.0.act2": False, "act1": False}),
        ("maxvit_tiny_tf_224", {"stages.0": False, "stages.3": False}),
        # Their parts permute at their ends, which nothing tells.
        ("volo_d1_224", {"patch_embed.conv": False, "network.0": None}),
        ("nest_tiny", {"levels.0": None}),
    ],
)
def test_where_channels_are_is_told_by_the_network_or_by_what_is_around(name, expected):
    with torch.device("meta"):
        model = timm.create_model(name)

    assert {path: layout_of(model, find_layer(model, path)).channels_last for path in expected} == expected


def test_of_two_readings_none_is_guessed():
    with pytest.raises(ValueError) as refused:
        as_maps(torch.zeros(1, 24, 48, 96), (96, 192), Layout(None, None), "it")

    assert str(refused.value) == (
        "layer 'it' puts out (1, 24, 48, 96), which may be maps (B, C, h, w) or (B, h, w, C), and nothing in the "
        "network tells which; name a convolution or a normalisation beside it, or give images of another size."
    )


def test_maps_are_read_whatever_the_network_answers():
    net = seeded(Net)
    net.head = nn.Identity()
    net.forward = lambda images: {"features": net.conv(images)}
    maps, answer = read_maps(net, pictures(8, 8), "conv")

    assert torch.equal(maps, answer["features"]) and not maps.requires_grad


class Caching(Net):
    """Makes a mask in its first forward, and has a buffer of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = None
        self.register_buffer("rows", None)

    def forward(self, images):
        maps = self.conv(images)
        if self.mask is None:
            self.mask = torch.linspace(0, 1, maps.shape[-1])
            self.rows = torch.linspace(1, 2, maps.shape[-2])[:, None]
        return self.head((maps * self.mask * self.rows).mean((2, 3)))


def test_what_a_network_kept_from_inference_mode_is_copied_for_the_look():
    net, other = seeded(Caching), seeded(Caching)
    with torch.inference_mode():
        net(pictures(8, 8))
        kept = net.mask, net.rows
        reading = read_layer(net, pictures(8, 8), "conv", 1)

    assert (net.mask is kept[0], net.rows is kept[1]) == (True, True)
    assert torch.equal(reading.gradient, read_layer(other, pictures(8, 8), "conv", 1).gradient)


def test_what_is_kept_elsewhere_is_told_in_a_sentence():
    def forward(net, images):
        return net.head((net.conv(images) * net.kept[0]).mean((2, 3)))

    net = seeded(Changed, forward)
    with torch.inference_mode():
        net.kept = [torch.ones(4)]
    with pytest.raises(ValueError, match=r"^Changed keeps a tensor that it made in inference mode, which no gradient"):
        read_layer(net, pictures(8, 8), "conv", 1)


def test_a_network_that_was_made_in_inference_mode_is_read_and_left_as_it_was():
    with torch.inference_mode():
        net = seeded(Net)
    net.tied = net.head.weight
    before = [net.conv.weight, net.head.weight, net.tied]
    reading = read_layer(net, pictures(8, 8), "conv", 1)
    other = read_layer(seeded(Net), pictures(8, 8), "conv", 1)

    assert torch.equal(reading.gradient, other.gradient)
    assert all(it is now for it, now in zip(before, [net.conv.weight, net.head.weight, net.tied], strict=True))
    assert [part.training for part in net.modules()] == [True] * 4


def test_a_checkpoint_that_gives_no_single_gradient_is_told_in_a_sentence():
    def forward(net, images):
        maps = checkpoint(torch.sin, net.conv(images), use_reentrant=True)
        return net.head(maps.mean((2, 3)))

    with pytest.raises(ValueError) as refused:
        read_layer(seeded(Changed, forward), pictures(8, 8), "conv", 1)

    assert str(refused.value) == (
        "Changed has checkpoints through which no single gradient is asked; give them use_reentrant=False."
    )


@pytest.mark.parametrize("name", LAYERS)
def test_the_last_layer_with_maps_is_found(name):
    expected, settings = LAYERS[name]
    model = seeded(lambda: timm.create_model(name, num_classes=5, **settings))
    images = pictures(96, 64)
    reading = read_layer(model, images, expected)
    height, width = reading.activation.shape[2:]

    assert spatial_layer(model, images) == expected
    assert (height / width == 1.5 or (height, width) == (2, 1)) and reading.gradient.shape == reading.activation.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_last_layer_with_maps_is_found_in_many_networks(name):
    """At 64x64 where the network takes that size, else at its own; the layer found has maps that can be read."""
    model = seeded(lambda: timm.create_model(name, num_classes=5)).eval()
    sizes = [(64, 64), tuple(model.pretrained_cfg["input_size"][1:])]
    for images in (pictures(*size) for size in sizes):
        try:
            model(images)
        except (AssertionError, RuntimeError):
            continue
        break
    reading = read_layer(model, images, spatial_layer(model, images))

    assert reading.activation.ndim == 4 and len(reading.activation) == 2 and reading.gradient is not None


def test_a_transformer_of_torchvision_is_read_at_its_last_attention():
    model = seeded(lambda: VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3))
    name = spatial_layer(model, pictures(32, 32))

    assert name == "encoder.layers.encoder_layer_1.ln_1"
    assert read_layer(model, pictures(32, 32), name).activation.shape == (2, 16, 4, 4)


def test_a_classifier_of_zeros_hides_no_layer():
    net = seeded(Net)
    nn.init.zeros_(net.head.weight)
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten())
    nn.init.zeros_(convolution[2].weight)

    assert (spatial_layer(net, pictures(8, 8)), spatial_layer(convolution, pictures(8, 8))) == ("act", "0")


def test_a_backbone_that_forward_keeps_from_gradients_is_read_where_it_ends():
    def forward(self, images):
        with torch.no_grad():
            maps = self.conv(images)
        return self.head(maps.mean((2, 3)))

    net = seeded(Changed, forward)

    assert spatial_layer(net, pictures(8, 8)) == "conv"
    assert read_layer(net, pictures(8, 8), "conv").gradient.abs().min() > 0


def test_without_maps_there_is_no_layer():
    with pytest.raises(ValueError, match="Sequential has no layer whose maps reach its answer, so there is no place"):
        spatial_layer(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)), pictures(8, 8))


@pytest.mark.parametrize("layer", ["conv", "act"])
def test_a_layer_before_and_one_that_writes_in_place_is_read_as_autograd_has_it(layer):
    net = seeded(Net)
    chosen = torch.tensor([2, 0])
    maps, gradient, logits = by_hand(net, pictures(8, 8), chosen)
    reading = read_layer(net, pictures(8, 8), layer, chosen)
    if layer == "conv":
        assert torch.equal(reading.gradient, gradient)

    assert torch.equal(reading.activation, maps if layer == "conv" else maps.relu())
    assert torch.equal(reading.logits, logits) and torch.equal(reading.class_index, chosen)


def test_of_a_layer_that_runs_twice_the_last_run_counts():
    net = seeded(Net)
    net.conv = nn.Conv2d(3, 3, 3, padding=1)
    net.head = nn.Linear(3, 3)
    net.forward = lambda images: net.head(net.conv(net.conv(images)).mean((2, 3)))
    images = pictures(8, 8)
    reading = read_layer(net, images, "conv", 1)

    assert torch.equal(reading.activation, net.conv(net.conv(images)).detach())
    assert reading.gradient.allclose((net.head.weight[1] / 64)[None, :, None, None].expand(2, 3, 8, 8))


@pytest.mark.parametrize(("name", "layer"), [("test_vit", "blocks.3.norm1"), ("resnet10t", "layer3.0")])
def test_a_network_that_computes_its_blocks_anew_in_backward_is_read_alike(name, layer):
    model = seeded(lambda: timm.create_model(name, num_classes=5)).eval()
    images = pictures(160, 160) if name == "test_vit" else pictures(64, 64)
    plain = read_layer(model, images, layer)
    model.set_grad_checkpointing(True)
    again = read_layer(model, images, layer)

    assert torch.equal(plain.gradient, again.gradient) and plain.gradient.any()
    assert spatial_layer(model, images) == {"test_vit": "blocks.5.norm1", "resnet10t": "layer4.0"}[name]


@pytest.mark.parametrize(
    ("change", "layer", "message"),
    [
        (lambda net, images: net.head(images.mean((2, 3)).repeat(1, 2)[:, :4]), "conv", "layer 'conv' did not run"),
        (lambda net, images: (net.conv(images), net.head(images[:, :1].flatten(1)[:, :4]))[1], "conv", "not depend on"),
        (lambda net, images: net.conv(images), "conv", "the model answered .2, 4, 4, 4. and no logits"),
        (lambda net, images: net.conv(images).mean((1, 2, 3)), "conv", "the model answered .2,. and no logits"),
        (lambda net, images: {"logits": net.head(net.conv(images).mean((2, 3)))}, "conv", "answered a dict and no log"),
        (lambda net, images: net.head(net.conv(images).mean((2, 3))), "head", "'head' puts out .2, 3., which are no"),
        (
            lambda net, images: net.head(net.conv(images.repeat(3, 1, 1, 1)).mean((2, 3)))[:2],
            "conv",
            "layer 'conv' puts out 6 maps for 2 images, as inside windows; name one around it.",
        ),
    ],
    ids=["unused", "independent", "maps", "one_number", "mapping", "pooled", "more"],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(change, layer, message):
    with pytest.raises(ValueError, match=message):
        read_layer(Changed(change), pictures(8, 8), layer)


def test_a_layer_that_puts_out_no_tensor_is_refused():
    net = nn.Sequential(nn.Flatten(2), nn.LSTM(64, 4))
    with pytest.raises(ValueError, match="layer '1' puts out a tuple and no maps; name one inside it"):
        read_layer(net, pictures(8, 8), "1")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (3, "class_index is [3] and the model has classes 0 to 2."),
        (torch.tensor([0, -1]), "class_index is [-1, 0] and the model has classes 0 to 2."),
        (torch.zeros(3).long(), "class_index is torch.int64 (3,); give one class, or one for each of the 2 images."),
        (0.5, "class_index is torch.float32 (); give one class, or one for each of the 2 images."),
    ],
)
def test_a_class_that_does_not_exist_is_refused(index, message):
    with pytest.raises(ValueError) as refused:
        class_scores(torch.zeros(2, 3), index)

    assert str(refused.value) == message


def test_scores_are_those_of_the_classes_asked_for():
    logits = torch.tensor([[1.0, 5.0, 2.0], [9.0, 3.0, 4.0]])
    asked = [class_scores(logits, index) for index in (None, 2, torch.tensor([2, 1]))]

    assert [it[0].tolist() for it in asked] == [[5, 9], [2, 4], [2, 3]]
    assert [it[1].tolist() for it in asked] == [[1, 0], [2, 2], [2, 1]]


class Merging(Net):
    """Does more than set flags when it is asked to be in eval mode, as adapters that merge their weights do."""

    def train(self, mode=True):
        nn.init.zeros_(self.head.weight)
        return super().train(mode)


@pytest.mark.parametrize("fails", [False, True])
def test_at_rest_leaves_a_network_as_it_was(fails):
    net = seeded(Merging)
    net.act.training, net.conv.bias.requires_grad = False, False
    net.tied = nn.Linear(4, 3)
    net.tied.weight = net.head.weight
    net(pictures(8, 8)).sum().backward()
    before = state_of(net)
    try:
        with torch.inference_mode(), at_rest(net):
            inside = state_of(net)
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            torch.rand(3)
            if fails:
                raise KeyError
    except KeyError:
        assert fails

    assert not any(inside["modes"]) and not any(inside["needs"])
    assert state_of(net) == before and net.head.weight.any()


def test_a_network_that_fails_is_left_as_it_was():
    def fail(net, images):
        net.conv(images)
        raise KeyError("in forward")

    net = seeded(Changed, fail)
    before = state_of(net)
    for look in (lambda: read_layer(net, pictures(8, 8), "conv"), lambda: spatial_layer(net, pictures(8, 8))):
        with pytest.raises(KeyError, match="in forward"):
            look()

    assert state_of(net) == before


def test_images_that_need_a_gradient_get_none():
    images = pictures(8, 8).requires_grad_()
    net = seeded(Net)
    reading = read_layer(net, images, spatial_layer(net, images))

    assert images.grad is None and not any(it.requires_grad for it in (reading.activation, reading.logits))


def state_of(net):
    """All that a look at a network may not change, in a form that can be compared."""
    parts, parameters = list(net.modules()), list(net.named_parameters(remove_duplicate=False))
    return {
        "modes": [part.training for part in parts],
        "hooks": [
            len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks) for part in parts
        ],
        "needs": [it.requires_grad for _, it in parameters],
        "grads": [None if it.grad is None else it.grad.tolist() for _, it in parameters],
        "weights": [it.tolist() for it in net.state_dict().values()],
        "streams": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    }

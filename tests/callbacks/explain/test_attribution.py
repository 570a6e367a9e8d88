"""Attributions of captum: each class as called by hand, exact sums, nothing left behind, refusals.

That a run with the logger is left as it was, resumes and runs on two processes is proved in `conformance/`.
"""

import random
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lightning_vision.callbacks import AttributionLogger, attribute, signed_picture
from lightning_vision.callbacks.hooks._unnoticed import hooks_of
from support.data import plain_loader
from support.modules import Plain, small_network
from support.trainers import quiet_trainer

SHAPES = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}
SQUARES = {"feature_mask": 4}
NEURON = {"neuron_selector": (1, 2, 2)}
ON_IMAGES = {
    "IntegratedGradients": {"n_steps": 5},
    "Saliency": {"abs": False},
    "InputXGradient": {},
    "DeepLift": {},
    "DeepLiftShap": {},
    "GradientShap": {"stdevs": 0.1},
    "GuidedBackprop": {},
    "GuidedGradCam": {},
    "Deconvolution": {},
    "LRP": {},
    "Occlusion": SHAPES,
    "FeatureAblation": SQUARES,
    "FeaturePermutation": SQUARES,
    "ShapleyValueSampling": {**SQUARES, "n_samples": 2},
    "ShapleyValues": {"feature_mask": 8},
    "KernelShap": {**SQUARES, "n_samples": 12},
    "Lime": {**SQUARES, "n_samples": 12},
    "NeuronConductance": {**NEURON, "n_steps": 5},
    "NeuronDeconvolution": NEURON,
    "NeuronDeepLift": NEURON,
    "NeuronDeepLiftShap": NEURON,
    "NeuronFeatureAblation": {**NEURON, **SQUARES},
    "NeuronGradient": NEURON,
    "NeuronGradientShap": NEURON,
    "NeuronGuidedBackprop": NEURON,
    "NeuronIntegratedGradients": {**NEURON, "n_steps": 5},
    "NoiseTunnel": {"stdevs": 0.1},
}
OF_A_LAYER = {
    "InternalInfluence": {"n_steps": 5},
    "LayerActivation": {},
    "LayerConductance": {"n_steps": 5},
    "LayerDeepLift": {},
    "LayerDeepLiftShap": {},
    "LayerFeatureAblation": {},
    "LayerGradCam": {},
    "LayerGradientShap": {},
    "LayerGradientXActivation": {},
    "LayerIntegratedGradients": {"n_steps": 5},
    "LayerLRP": {},
}
REFUSED = {"LimeBase": "needs callables", "LayerFeaturePermutation": "captum 0.9 cannot run it by hand either"}
DRAWING = ("GradientShap", "KernelShap", "Lime", "FeaturePermutation", "ShapleyValueSampling", "NoiseTunnel")


class Net(nn.Module):
    """As captum's pickier attributions want it: each ReLU is a module of its own, all leaves are known to LRP."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace)
        self.second, self.relu2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(inplace)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu2(self.second(self.relu(self.first(images))))
        return self.head(self.pool(maps).flatten(1)) * 10


class Squared(nn.Module):
    """A polynomial of degree 2, whose gradient along a line is of degree 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(192, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.first(images.flatten(1)) ** 2)


def noise(count: int = 2, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def squares(side: int) -> Tensor:
    """Numbers of squares, row by row, of an image of 8x8."""
    return torch.arange((8 // side) ** 2).view(8 // side, -1).repeat_interleave(side, 0).repeat_interleave(side, 1)


def by_hand(name: str, network: nn.Module, images: Tensor, target: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What captum answers, asked as its documentation does."""
    kind = getattr(captum.attr, name)
    subject: Any = captum.attr.Saliency(network) if name == "NoiseTunnel" else network
    layered = name in OF_A_LAYER or name.startswith("Neuron") or name == "GuidedGradCam"
    method = kind(subject, network.second) if layered else kind(subject)
    given = dict(arguments)
    if "feature_mask" in given:
        given["feature_mask"] = squares(given["feature_mask"]).repeat(1, 3, 1, 1)
    if name.endswith("Shap") and name != "KernelShap":
        given["baselines"] = torch.zeros(2, 3, 8, 8)
    if name != "LayerActivation" and not (name.startswith("Neuron") and name != "NeuronConductance"):
        given["target"] = target
    torch.manual_seed(0)
    np.random.seed(0)
    with warnings.catch_warnings(action="ignore"):
        values = method.attribute(images.clone().requires_grad_(), **given).detach()
    if name in OF_A_LAYER:
        values = F.interpolate(values.sum(1, keepdim=True), (8, 8), mode="bilinear")
    return values


def test_no_attribution_of_captum_is_forgotten() -> None:
    kinds = {name: getattr(captum.attr, name) for name in captum.attr.__all__}
    attributions = {name for name, it in kinds.items() if isinstance(it, type) and hasattr(it, "attribute")}
    texts = {name for name in attributions if "LLM" in name or "DataLoader" in name}

    assert attributions - texts == ON_IMAGES.keys() | OF_A_LAYER.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", [*ON_IMAGES, *OF_A_LAYER])
def test_it_is_what_captum_answers_by_hand(name: str) -> None:
    arguments = (ON_IMAGES | OF_A_LAYER)[name]
    network, images, target = Net().eval(), noise(), torch.tensor([1, 4])
    init_args = {"attribution_method": "Saliency"} if name == "NoiseTunnel" else None
    at_layer = name in OF_A_LAYER or name.startswith("Neuron") or name == "GuidedGradCam"
    ours = attribute(network, images, name, target, init_args, arguments, "second" if at_layer else None)
    expected = by_hand(name, network, images, target, arguments)

    assert ours.shape == ((2, 1, 8, 8) if name in OF_A_LAYER else (2, 3, 8, 8))
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["IntegratedGradients", "Occlusion", "LayerGradCam"])
def test_another_class_is_noticed(name: str) -> None:
    arguments = (ON_IMAGES | OF_A_LAYER)[name]
    ours = attribute(Net(), noise(), name, torch.tensor([1, 4]), arguments=arguments)
    swapped = by_hand(name, Net().eval(), noise(), torch.tensor([4, 1]), arguments)

    assert (ours - swapped).abs().max() > 0.1 * ours.abs().max()


def test_the_class_is_the_predicted_one_unless_given() -> None:
    network, images = Net().eval(), noise(4)
    said = network(images).argmax(1)

    assert attribute(network, images, "Saliency").equal(attribute(network, images, "Saliency", said))
    assert attribute(network, images, "Saliency", 2).equal(attribute(network, images, "Saliency", torch.full((4,), 2)))


def test_integrated_gradients_sum_to_the_difference_of_scores() -> None:
    """Two Gauss-Legendre points integrate a gradient of degree 1 without error, so only rounding is left."""
    network, images = Squared().double(), noise(4).double()
    values = attribute(network, images, class_index=2, arguments={"n_steps": 2, "baselines": -1.0})
    scores = (network(images) - network(-torch.ones_like(images)))[:, 2].detach()

    # The values come as float32.
    torch.testing.assert_close(values.sum((1, 2, 3)), scores.float(), rtol=1e-6, atol=1e-6 * float(scores.abs().max()))
    once = attribute(network, images, class_index=2, arguments={"n_steps": 2, "baselines": 0.0}).sum((1, 2, 3))
    assert (once - scores).abs().max() > 1e-2


def test_the_last_layer_with_maps_is_taken_where_none_is_named() -> None:
    network, images = Net(), noise()

    assert attribute(network, images, "LayerGradCam").equal(attribute(network, images, "LayerGradCam", layer="relu2"))


def test_lists_and_numbers_are_what_captum_wants_of_them() -> None:
    network, images = Net(), noise()

    def of(name: str, **arguments: Any) -> Tensor:
        return attribute(network, images, name, 1, arguments=arguments)

    assert of("Occlusion", sliding_window_shapes=[3, 4, 4], strides=[3, 4, 4]).equal(of("Occlusion", **SHAPES))
    assert of("FeatureAblation", feature_mask=4).equal(
        of("FeatureAblation", feature_mask=squares(4).expand(1, 3, 8, 8))
    )
    ones = torch.ones(2, 3, 8, 8)
    assert of("GradientShap", baselines=1).equal(of("GradientShap", baselines=ones))
    assert not of("GradientShap", baselines=1).equal(of("GradientShap"))


def test_noise_tunnel_wraps_what_is_named() -> None:
    network, images = Net().eval(), noise()
    wrapped = {"class_path": "captum.attr.IntegratedGradients", "init_args": {"multiply_by_inputs": False}}
    arguments = {"n_steps": 3, "nt_samples": 4, "stdevs": 0.2}
    ours = attribute(network, images, "NoiseTunnel", 3, {"attribution_method": wrapped}, arguments)
    inner = captum.attr.IntegratedGradients(network, multiply_by_inputs=False)
    torch.manual_seed(0)
    expected = captum.attr.NoiseTunnel(inner).attribute(images, target=3, **arguments)

    torch.testing.assert_close(ours, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DRAWING)
def test_draws_follow_the_seed_and_leave_the_global_streams_alone(name: str) -> None:
    arguments = ON_IMAGES[name]
    init_args = {"attribution_method": "Saliency"} if name == "NoiseTunnel" else None

    network, images = Net(), noise(5)

    def drawn(seed: int) -> Tensor:
        return attribute(network, images, name, 1, init_args, arguments, seed=seed)

    streams = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    first, again, other = drawn(3), drawn(3), drawn(4)

    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(streams[0])
    assert (str(np.random.get_state()), random.getstate()) == streams[1:]


@pytest.mark.parametrize(
    "name", ["IntegratedGradients", "DeepLift", "GuidedBackprop", "LayerGradCam", "LRP", "Occlusion"]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(name: str, mode: type) -> None:
    network = Net(inplace=name != "LRP")
    expected = attribute(network, noise(), name, 1, arguments=(ON_IMAGES | OF_A_LAYER)[name])
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    network.head.weight.grad = torch.ones(5, 4)
    network.second.eval()
    attributes = [set(vars(part)) for part in network.modules()]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    with mode():
        images, target = noise(), torch.tensor([1, 1])
        found = attribute(network, images, name, target, arguments=(ON_IMAGES | OF_A_LAYER)[name])

    assert found.equal(expected)
    assert not found.requires_grad
    assert not images.requires_grad
    assert [part.training for part in network.children()] == [True, True, False, True, True, True]
    assert [parameter.requires_grad for parameter in network.parameters()] == [False] * 4 + [True] * 2
    assert network.head.weight.grad.equal(torch.ones(5, 4))
    assert [key for key, parameter in network.named_parameters() if parameter.grad is not None] == ["head.weight"]
    assert [kind for part in network.modules() for kind in hooks_of(part) if kind] == []
    assert [set(vars(part)) for part in network.modules()] == attributes
    assert all(value.equal(weights[key]) for key, value in network.state_dict().items())


def test_a_refusal_leaves_nothing_behind_either() -> None:
    network = small_network()
    attributes = [set(vars(part)) for part in network.modules()]
    with pytest.raises(ValueError, match=r"^LRP of captum refuses Sequential: Module of type .*Flatten"):
        attribute(network, torch.zeros(1, 1, 8, 8), "LRP")

    assert [set(vars(part)) for part in network.modules()] == attributes
    assert network.training


def test_warnings_of_captum_do_not_reach_the_log() -> None:
    def told(name: str, ours: bool) -> int:
        network = Net()
        with warnings.catch_warnings(record=True, action="always") as caught:
            if ours:
                attribute(network, noise(), name, 1)
            else:
                getattr(captum.attr, name)(network).attribute(noise(), target=1)
        return len(caught)

    for name in ("DeepLift", "GuidedBackprop", "Saliency"):
        assert told(name, ours=False) > 0
        assert told(name, ours=True) == 0


def test_an_image_may_be_the_first_thing_written_in_place() -> None:
    images = noise()
    before = images.clone()
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 2))

    assert attribute(network, images)[images < 0].abs().sum() == 0
    assert images.equal(before)


REFUSALS = {
    "a name": ({"attribution": "Salency"}, "captum.attr has no attribution of images called 'Salency'; did you mean "),
    "no attribution": (
        {"attribution": "torch.nn.Linear"},
        "torch.nn has no attribution of images called 'Linear'; those of captum stand at https://captum.ai/api.",
    ),
    "no module": ({"attribution": "no.such"}, "no of attribution='no.such' cannot be imported: No module named 'no'."),
    "text": ({"attribution": "LLMAttribution"}, "captum.attr has no attribution of images called 'LLMAttribution'"),
    "callables": ({"attribution": "LimeBase"}, "LimeBase needs interpretable_model and similarity_func and "),
    "an argument": (
        {"arguments": {"steps": 3}},
        "arguments of IntegratedGradients.attribute cannot hold 'steps'; did you mean n_steps?",
    ),
    "the class": (
        {"attribution": "Saliency", "arguments": {"target": 3}},
        "arguments of Saliency.attribute cannot hold 'target'; it takes abs.",
    ),
    "an init arg": ({"init_args": {"layer": "x"}}, "init_args of IntegratedGradients cannot hold 'layer'; it takes "),
    "a window": (
        {"attribution": "Occlusion"},
        "Occlusion.attribute needs sliding_window_shapes; give it in arguments.",
    ),
    "nothing wrapped": (
        {"attribution": "NoiseTunnel"},
        "NoiseTunnel wraps another attribution; name it in init_args, as attribution_method: Saliency.",
    ),
    "squares": (
        {"attribution": "Lime", "arguments": {"feature_mask": 0}},
        "feature_mask is 0; give the side of its squares, at least 1 pixel.",
    ),
    "a layer": (
        {"attribution": "Saliency", "layer": "network.0"},
        "Saliency explains by the image and takes no layer; leave layer out, or take one of a layer, as LayerGradCam.",
    ),
    "a seed": ({"seed": -1}, "seed is -1; give a whole number of at least 0."),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_settings_that_captum_cannot_use_are_refused_at_once(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(ValueError, match=f"^AttributionLogger: {re.escape(message)}"):
        AttributionLogger(**settings)


def test_without_captum_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    message = re.escape('AttributionLogger needs captum; pip install "lightning_vision[explain]"')
    with pytest.raises(ModuleNotFoundError, match=f"^{message}$"):
        AttributionLogger()


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (noise(), {"class_index": 9}, "class_index is [9] and the model has classes 0 to 4."),
        (noise(), {"attribution": "LayerGradCam", "layer": "scond"}, "Net has no layer 'scond'; did you mean second?"),
        (
            noise().byte(),
            {},
            "images are torch.uint8, which has no gradient; give floating ones, as the model takes them.",
        ),
        (
            noise(),
            {"attribution": "Lime", "arguments": {"return_input_shape": False, "feature_mask": 4}},
            "Lime gave (2, 4) and no value for each of the images' (2, 3, 8, 8); leave out the argument that changes "
            "that.",
        ),
        (
            noise(),
            {"arguments": {"return_convergence_delta": True}},
            "IntegratedGradients gave a tuple and no value for each of the images' (2, 3, 8, 8); leave out the "
            "argument that changes that.",
        ),
    ],
)
def test_what_cannot_be_attributed_is_refused(images: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attribute(Net(), images, **settings)


def test_a_layer_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    callback = AttributionLogger(attribution="LayerGradCam", layer="network.9")
    trainer = quiet_trainer(callbacks=[callback], default_root_dir=tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"^AttributionLogger: Plain has no layer 'network\.9'"):
        trainer.fit(Plain(), plain_loader(2, 2), plain_loader(2, 2))

    assert trainer.global_step == 0


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_the_sheet_shows_what_speaks_for_and_against(verb: str, tmp_path: Path) -> None:
    """Images of 8 pixels are enlarged 12 times; 6 pixels of margin, the image, 2 pixels, its attribution."""
    torch.manual_seed(0)
    module = Plain()
    settings = {"attribution": "Occlusion", "arguments": {"sliding_window_shapes": [1, 2, 2]}}
    trainer = quiet_trainer(callbacks=[AttributionLogger(samples=2, **settings)], default_root_dir=tmp_path)
    loader = plain_loader(2, 2)
    getattr(trainer, verb)(module, loader, verbose=False)
    folder = tmp_path / "media" / verb.removesuffix("idate") / "attribution"
    shown = np.asarray(Image.open(folder / "step_00000000.png"))[6 : 6 + 96 : 12, 6 + 96 + 2 : 6 + 2 * 96 + 2 : 12]
    images, target = next(iter(loader))
    expected = attribute(module, images[target.argmin()][None], **settings)[0]

    assert expected.max() > 0 > expected.min()
    assert shown.tolist() == signed_picture(expected.sum(0).numpy()).tolist()
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 8

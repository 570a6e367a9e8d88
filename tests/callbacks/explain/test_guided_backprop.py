"""Guided backpropagation: captum's on modules, and what captum misses; a value by hand; wrong rules; Guided Grad-CAM.

That a run is left as it was, resumes and runs on two processes is proved in `conformance/`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import captum.attr
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import (
    GradCAMLogger,
    GuidedBackpropLogger,
    gradient_picture,
    guided_backprop,
    guided_grad_cam,
)
from lightning_vision.callbacks.hooks._unnoticed import hooks_of
from support.data import plain_loader
from support.modules import Plain, small_network
from support.trainers import quiet_trainer


class Ways(nn.Module):
    """Two convolutions with a ReLU behind each, called in a given way."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.relu = relu

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.second(self.relu(self.first(images))))
        return self.head(maps.mean((2, 3)))


def on_a_view(x: Tensor) -> Tensor:
    flat = x.view(-1)
    flat.relu_()
    return x


def unassigned(x: Tensor) -> Tensor:
    nn.ReLU(inplace=True)(x)
    return x


WAYS = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu(x, True)": lambda x: F.relu(x, True),
    "F.relu(inplace=True)": lambda x: F.relu(input=x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "a view": on_a_view,
    "unassigned": unassigned,
}


def photo_like(count: int = 2, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def plain_gradient(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)[0]


@pytest.mark.parametrize(("name", "side"), [("resnet18", 64), ("allcnn_c", 16)])
def test_row_195_it_equals_captums_and_no_other_rule_does(name: str, side: int) -> None:
    network = create(name, num_classes=5, in_channels=3).eval()
    images, target = photo_like(side=side), torch.tensor([1, 4])
    ours = guided_backprop(network, images, target)
    guided = captum.attr.GuidedBackprop(network).attribute(images.clone(), target=target)
    deconvnet = captum.attr.Deconvolution(network).attribute(images.clone(), target=target)
    plain = plain_gradient(network, images, target)

    assert ours.equal(guided)
    assert ours.abs().max() > 1e-4
    for mutant in (deconvnet, plain):
        assert (mutant - ours).abs().max() > 0.1 * ours.abs().max()


def test_row_195_where_all_is_positive_it_is_the_gradient() -> None:
    network = create("allcnn_c", num_classes=10, in_channels=3).eval()
    images, target = photo_like(1).abs(), torch.tensor([3])
    either_sign = guided_backprop(network, images, target)

    assert not either_sign.equal(plain_gradient(network, images, target))
    for parameter in network.parameters():
        parameter.data.abs_()
    gradient = plain_gradient(network, images, target)
    assert gradient.abs().sum() > 0
    assert guided_backprop(network, images, target).equal(gradient)


@pytest.mark.parametrize(("class_index", "expected"), [(0, [0.0, 0.0]), (1, [4.0, 2.0]), (None, [4.0, 2.0])])
def test_two_units_by_hand(class_index: int | None, expected: list[float]) -> None:
    """The pixels 1 and 2 give -1 and 4 before the ReLU, so only the second unit, with weights 2 and 1, is awake.

    Class 0 reads it with -1, which is not passed back; class 1 with 2. The logits are -4 and 8. A deconvnet would pass
    the first unit's 1, too: 1 (1, -1) + 2 (2, 1) = (5, 1).
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    network[1].weight.data = torch.tensor([[1.0, -1.0], [2.0, 1.0]])
    network[3].weight.data = torch.tensor([[3.0, -1.0], [1.0, 2.0]])

    assert guided_backprop(network, torch.tensor([[[[1.0, 2.0]]]]), class_index).flatten().tolist() == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_relu_is_caught_however_it_is_called(way: str) -> None:
    images, target = photo_like(), torch.tensor([1, 4])
    module = Ways(nn.ReLU()).eval()
    expected = captum.attr.GuidedBackprop(module).attribute(images.clone(), target=target)

    assert guided_backprop(Ways(WAYS[way]), images, target).equal(expected)
    assert not expected.equal(plain_gradient(module, images, target))


def test_captum_passes_functions_by_in_silence() -> None:
    images, target = photo_like(), torch.tensor([1, 4])
    network = Ways(F.relu).eval()
    theirs = captum.attr.GuidedBackprop(network).attribute(images.clone(), target=target)

    assert theirs.equal(plain_gradient(network, images, target))


def test_an_image_may_be_the_first_thing_written_in_place() -> None:
    images = photo_like()
    before = images.clone()
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(768, 2))

    assert guided_backprop(network, images)[images < 0].abs().sum() == 0
    assert images.equal(before)


@pytest.mark.usefixtures("compiler")
def test_a_compiled_network_is_guided_like_any_other() -> None:
    network, images = Ways(F.relu).eval(), photo_like()
    compiled = torch.compile(network, backend="eager")
    compiled(images)

    assert guided_backprop(compiled, images, 2).equal(guided_backprop(network, images, 2))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(mode: type) -> None:
    network = small_network()
    network[0].requires_grad_(False)
    network[5].weight.grad = torch.ones(10, 36)
    network[3].eval()
    expected = guided_backprop(network, torch.ones(2, 1, 8, 8), 3)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with mode():
        images, target = torch.ones(2, 1, 8, 8), torch.tensor([3, 3])
        found = guided_backprop(network, images, target)

    assert found.equal(expected)
    assert not found.requires_grad
    assert [part.training for part in network] == [True, True, True, False, True, True]
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True, True, True]
    assert network[5].weight.grad.equal(torch.ones(10, 36))
    assert [name for name, parameter in network.named_parameters() if parameter.grad is not None] == ["5.weight"]
    assert [kind for part in network.modules() for kind in hooks_of(part) if kind] == []
    assert all(buffer.equal(buffers[name]) for name, buffer in network.named_buffers())


@pytest.mark.parametrize(
    ("network", "images", "class_index", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.GELU(), nn.Linear(4, 2)),
            photo_like(),
            None,
            "Sequential calls no ReLU that gradients pass on their way to the images, so there is nothing to guide; "
            "take Grad-CAM or an attribution such as IntegratedGradients.",
        ),
        (
            small_network(),
            torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
            None,
            "images are torch.uint8, which has no gradient; give floating ones, as the model takes them.",
        ),
        (small_network(), torch.zeros(1, 1, 8, 8), 10, "class_index is [10] and the model has classes 0 to 9."),
    ],
)
def test_what_cannot_be_guided_is_refused(
    network: nn.Module, images: Tensor, class_index: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        guided_backprop(network, images, class_index)


@pytest.mark.parametrize("layer", ["layer3", None])
def test_row_93_guided_grad_cam_equals_captums(layer: str | None) -> None:
    network = timm.create_model("resnet18", num_classes=5).eval()
    images, target = photo_like(side=64), torch.tensor([1, 4])
    theirs = captum.attr.GuidedGradCam(network, network.get_submodule(layer or "layer4"))
    expected = theirs.attribute(images.clone(), target=target, interpolate_mode="bilinear")
    ours = guided_grad_cam(network, images, layer, target)

    assert ours.shape == (2, 3, 64, 64)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6 * float(ours.abs().max()))


def test_a_gradient_is_painted_around_grey() -> None:
    values = np.zeros((3, 1, 4), dtype=np.float32)
    values[0, 0, 1], values[2, 0, 2] = 2.0, -2.0

    assert gradient_picture(values)[0].tolist() == [[128, 128, 128], [255, 128, 128], [128, 128, 0], [128, 128, 128]]
    assert gradient_picture(values[2:])[0].tolist() == [[128] * 3, [128] * 3, [0] * 3, [128] * 3]
    assert gradient_picture(values * 0).tolist() == [[[128] * 3] * 4]


@pytest.mark.parametrize("callback", [GuidedBackpropLogger(samples=2), GradCAMLogger(samples=2, guided=True)])
def test_the_sheet_shows_the_gradient_beside_each_image(
    callback: GuidedBackpropLogger | GradCAMLogger, tmp_path: Path
) -> None:
    """Images of 8 pixels are enlarged 12 times; 6 pixels of margin, the image, 2 pixels, its gradient."""
    torch.manual_seed(0)
    module = Plain()
    trainer = quiet_trainer(callbacks=[callback], default_root_dir=tmp_path)
    loader = plain_loader(2, 2)
    trainer.validate(module, loader, verbose=False)
    picture = np.asarray(Image.open(tmp_path / "media" / "val" / callback.title / "step_00000000.png"))
    shown = picture[6 : 6 + 96 : 12, 6 + 96 + 2 : 6 + 2 * 96 + 2 : 12]
    images, target = next(iter(loader))
    first = images[target.argmin()][None]
    expected = guided_backprop(module, first) if callback.title == "guided_backprop" else guided_grad_cam(module, first)

    assert np.ptp(shown) > 60
    assert shown.tolist() == gradient_picture(expected[0].numpy()).tolist()


def test_guided_is_yes_or_no() -> None:
    with pytest.raises(ValueError, match=r"^GradCAMLogger: guided is 1; give True or False\.$"):
        GradCAMLogger(guided=1)

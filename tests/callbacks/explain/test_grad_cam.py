"""Grad-CAM equals captum's and CAM's closed form, points at digits and leaves no trace."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from torch import nn

from lightning_vision.callbacks import GradCAMLogger, grad_cam
from lightning_vision.callbacks.explain.grad_cam import grad_cam_maps
from lightning_vision.datamodules import PlacedDigits
from lightning_vision.inspection.layers import find_layer, read_layer
from support.compare import distance, seeded
from support.data import plain_loader
from support.modules import Plain, small_network
from support.trainers import quiet_trainer


def network(name="test_efficientnet", **settings):
    return seeded(lambda: timm.create_model(name, num_classes=5, **settings)).eval()


def pictures(count=3, side=64):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def with_captum(model, images, layer, class_index):
    maps = LayerGradCam(model, find_layer(model, layer)).attribute(images, class_index, relu_attributions=True)
    return LayerAttribution.interpolate(maps, images.shape[2:], "bilinear")[:, 0].detach()


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def without_relu(activation, gradient):
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


def by_largest_gradient(activation, gradient):
    return (gradient.amax((2, 3), keepdim=True) * activation).sum(1).relu()


def position_by_position(activation, gradient):
    return (gradient * activation).sum(1).relu()


@pytest.mark.parametrize(
    ("name", "layer", "index"),
    [
        ("test_efficientnet", "bn2", 3),
        ("test_efficientnet", "blocks.2", torch.tensor([0, 4, 2])),
        ("resnet10t", "layer3.0", 4),
        ("test_convnext", "stages.2", 0),
        ("test_nfnet", "final_act", 2),
    ],
)
def test_row_93_maps_are_those_of_captum(name, layer, index):
    model = network(name)
    theirs = with_captum(model, pictures(), layer, index)

    assert theirs.max() > 0
    assert relative(grad_cam(model, pictures(), layer, index), theirs) < 1e-6


@pytest.mark.parametrize("wrong", [without_relu, by_largest_gradient, position_by_position])
def test_wrong_maps_would_not_be_those_of_captum(wrong):
    model = network()
    reading = read_layer(model, pictures(), "blocks.2", 3)
    maps = wrong(reading.activation, reading.gradient)[:, None]
    theirs = with_captum(model, pictures(), "blocks.2", 3)

    assert relative(F.interpolate(maps, (64, 64), mode="bilinear")[:, 0], theirs) > 1e-2


def test_maps_are_rectified_before_they_are_stretched():
    """Between -1 and 1 a stretched map is positive beyond the middle, a map rectified before already before it."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))
    nn.init.ones_(model[3].weight)
    model[0] = nn.AvgPool2d(4)
    images = torch.tensor([[-1.0, 1.0]]).repeat_interleave(4, 1).expand(1, 1, 4, 8)
    stretched = F.interpolate(torch.tensor([[[[-1.0, 1.0]]]]), (4, 8), mode="bilinear").relu()

    assert grad_cam(model, images, "0", 0)[0, 0].tolist() == [0, 0, 0.0625, 0.1875, 0.3125, 0.4375, 0.5, 0.5]
    assert (stretched[0, 0, 0] / 2).tolist() == [0, 0, 0, 0, 0.125, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("label", range(5))
def test_row_93_for_a_pooled_linear_head_they_are_class_activation_maps(label):
    """y = sum_k w_k mean(A^k) has dy/dA^k = w_k / (HW) everywhere, so alpha_k = w_k / (HW): CAM over HW."""
    model = network("resnet10t")
    maps = model.forward_features(pictures()).detach()
    cam = torch.einsum("bkhw,k->bhw", maps, model.fc.weight[label].detach()).relu() / 4

    assert maps.shape[2:] == (2, 2)
    reading = read_layer(model, pictures(), "layer4", label)
    torch.testing.assert_close(grad_cam_maps(reading.activation, reading.gradient), cam, rtol=1e-5, atol=1e-7)


class Learner(nn.Sequential):
    """Five convolutions; the last maps are 8x8 of a 32x32 image."""

    def __init__(self, width: int) -> None:
        shapes = [(3, 1, 1), (1, 2, 2), (2, 4, 2), (4, 4, 1), (4, 4, 1)]
        stages = [
            nn.Sequential(
                nn.Conv2d(before if before == 3 else before * width, after * width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after * width),
                nn.ReLU(inplace=True),
            )
            for before, after, stride in shapes
        ]
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def digits_and_maps(width, epochs):
    """A network trained on placed digits: share of test images it tells, and which of these its maps point into.

    Also those that they would point into if the digits lay elsewhere, where those of the images before lie.
    """
    data = PlacedDigits(canvas="photo", batch_size=64)
    data.setup()
    mean, std = (torch.tensor(it)[:, None, None] for it in data.statistics)
    model = seeded(Learner, width)
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(data.train_set) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for epoch in range(epochs):
        for index in torch.randperm(len(data.train_set), generator=generator).split(64)[:-1]:
            batch = data.train_set.fetch(index, epoch)
            loss = F.cross_entropy(model((batch.image / 255 - mean) / std), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    index = torch.arange(len(data.test_set))
    batch = data.test_set.fetch(index)
    images = (batch.image / 255 - mean) / std
    with torch.no_grad():
        right = model.eval()(images).argmax(1) == batch.target
    peak, boxes = grad_cam(model, images).flatten(1).argmax(1), data.boxes("test", index)
    on_digit, elsewhere = (inside(peak, it)[right].float().mean().item() for it in (boxes, boxes.roll(1, 0)))
    return right.float().mean().item(), on_digit, elsewhere


def inside(peak, boxes):
    row, column = peak // 32, peak % 32
    top, left, bottom, end = boxes.T
    return (row >= top) & (row < bottom) & (column >= left) & (column < end)


def test_row_93_the_peak_lies_on_the_digit():
    told, on_digit, elsewhere = digits_and_maps(width=12, epochs=12)

    assert told > 0.6
    assert on_digit >= 0.9
    assert elsewhere < 0.7


@pytest.mark.slow
def test_row_93_the_peak_lies_on_the_digit_of_a_network_that_is_nearly_always_right():
    told, on_digit, elsewhere = digits_and_maps(width=24, epochs=40)

    assert told > 0.9
    assert on_digit >= 0.9
    assert elsewhere < 0.7


def test_a_frozen_backbone_has_the_same_maps():
    model = network()
    frozen = copy.deepcopy(model).requires_grad_(False)

    assert torch.equal(grad_cam(frozen, pictures()), grad_cam(model, pictures()))
    assert grad_cam(model, pictures()).max() > 0


def test_row_93_what_waits_to_be_accumulated_modes_and_streams_are_left_alone():
    model = network().train()
    model.bn2.eval()
    model.conv_stem.weight.requires_grad_(False)
    model(pictures()).sum().backward()
    before = {name: None if it.grad is None else it.grad.clone() for name, it in model.named_parameters()}
    state, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    stream = torch.get_rng_state()
    grad_cam(model, pictures())

    assert all(
        before[name] is None if it.grad is None else torch.equal(it.grad, before[name])
        for name, it in model.named_parameters()
    )
    assert (distance(state, model.state_dict()), [part.training for part in model.modules()]) == (0, modes)
    assert torch.equal(torch.get_rng_state(), stream) and not model.conv_stem.weight.requires_grad
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_in_inference_mode_maps_are_the_same():
    model = network()
    with torch.inference_mode():
        inside = grad_cam(model, pictures())

    assert torch.equal(inside, grad_cam(model, pictures()))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in_place"])
def test_a_compiled_network_has_the_same_maps_and_is_not_compiled_anew(in_place):
    compilations = []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph.forward

    model = network()
    compiled = copy.deepcopy(model)
    if in_place:
        compiled.compile(backend=backend)
    else:
        compiled = torch.compile(compiled, backend=backend)
    with torch.no_grad():
        compiled(pictures())
        once = len(compilations)
        maps = grad_cam(compiled, pictures(), "bn2")
        compiled(pictures())

    assert torch.equal(maps, grad_cam(model, pictures(), "bn2"))
    assert torch.equal(maps, grad_cam(compiled, pictures()))
    assert len(compilations) == once >= 1


def test_in_bfloat16_maps_are_nearly_the_same():
    """Eight bits of mantissa: each of some twenty layers rounds by up to 2^-9."""
    model = network("test_vit", img_size=64)
    exact = grad_cam(model, pictures(), class_index=0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(pictures())
        mixed = grad_cam(model, pictures(), class_index=0)
    low = grad_cam(model.bfloat16(), pictures().bfloat16(), class_index=0)

    assert (mixed.dtype, low.dtype) == (torch.float32, torch.float32)
    assert 0 < relative(mixed, exact) < 0.1 and 0 < relative(low, exact) < 0.1


def test_autocast_does_not_round_the_sum_over_channels():
    activation, gradient = pictures(2, 8), pictures(2, 8) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        maps = grad_cam_maps(activation, gradient)

    assert torch.equal(maps, grad_cam_maps(activation, gradient))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (small_network(), {"layer": "01"}, "Sequential has no layer '01'; did you mean"),
        (small_network(), {"layer": "5"}, "layer '5' puts out .* name one before pooling and flattening"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {}, "has no layer whose maps reach its answer"),
        (small_network(), {"class_index": 10}, "class_index is .10. and the model has classes 0 to 9"),
        (nn.Sequential(nn.Conv2d(1, 3, 3)), {}, "the model answered .1, 3, 6, 6. and no logits"),
    ],
    ids=["layer", "pooled", "no_maps", "class", "answer"],
)
def test_what_has_no_map_is_refused_in_a_sentence(model, settings, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(model, torch.rand(2, 1, 8, 8), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "best"}, "GradCAMLogger: target is 'best'; give 'predicted', 'label' or a class >= 0."),
        ({"target": -1}, "GradCAMLogger: target is -1; give 'predicted', 'label' or a class >= 0."),
        ({"samples": 0}, "samples"),
        ({"every_n_epochs": -1}, "every_n_epochs"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GradCAMLogger(**settings)


def test_the_logger_refuses_an_unknown_layer_before_the_first_step(tmp_path):
    trainer = quiet_trainer(callbacks=[GradCAMLogger(layer="network.9")], default_root_dir=tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=r"Plain has no layer 'network.9'; did you mean network\.\d"):
        trainer.fit(Plain(), plain_loader(), plain_loader())

    assert trainer.global_step == 0


def test_the_logger_draws_the_function_s_maps_after_every_validation(tmp_path):
    logger = GradCAMLogger(samples=4, target="label", layer="network.2")
    module = seeded(Plain)
    trainer = quiet_trainer(callbacks=[logger], default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(module, plain_loader(), plain_loader())
    drawn = sorted((tmp_path / "media" / "val" / "grad_cam").iterdir())
    images = pictures(4, 8)[:, :1]
    maps, logits = logger.explain(module, images, 3)

    assert [it.name for it in drawn] == ["step_00000010.png", "step_00000020.png"]
    assert drawn[0].read_bytes() != drawn[1].read_bytes() and Image.open(drawn[0]).mode == "RGB"
    assert torch.equal(maps, grad_cam(module, images, "network.2", 3))
    with torch.no_grad():
        torch.testing.assert_close(logits, module.eval()(images))


def test_in_the_middle_of_an_accumulation_the_run_is_one_without_the_logger(tmp_path):
    options = {"max_epochs": 2, "accumulate_grad_batches": 4, "val_check_interval": 3, "default_root_dir": tmp_path}
    weights = []
    for callbacks in ([], [GradCAMLogger(samples=2)]):
        module = seeded(Plain)
        quiet_trainer(callbacks=callbacks, **options).fit(module, plain_loader(), plain_loader())
        weights.append(module.state_dict())

    assert distance(*weights) == 0
    assert len(list((tmp_path / "media" / "val" / "grad_cam").iterdir())) > 2

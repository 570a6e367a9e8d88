"""Dynamic masks: targets by brute force, a training that is a loop by hand, filters left out that were masked.

Conformance (resume, processes, precision, files) is proved in `conformance/`.
"""

from itertools import combinations

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_vision.callbacks import DynamicMasks, FilterPredictor, mass_target, with_predictors
from support.compare import distance
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


def deep(norm=True, width=8):
    """Three convolutions; the last is depthwise and without a norm."""
    norms = [nn.BatchNorm2d(width) if norm else nn.Identity() for _ in range(2)]
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), norms[0], nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, width, 3, stride=2, bias=False), norms[1], nn.SiLU()),
        *(nn.Conv2d(width, width, 2, groups=width), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(width * 4, 10)),
    )


class Deep(Plain):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = deep()


def test_row_219_the_oracle_mask_of_ratio_1_reproduces_the_dense_output_exactly():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()).train()
    # Shifted so far that some filters are silent for some images.
    nn.init.normal_(layer[1].bias, -3.0, 1.5)
    heat = layer(torch.randn(16, 3, 8, 8))
    mask = mass_target(heat, 1.0)

    assert torch.equal(heat, heat * mask[:, :, None, None])
    assert torch.equal(mask, heat.amax((2, 3)) > 0)
    assert 0 < int(mask.sum()) < mask.numel()
    # Active by as little as a float can be.
    assert mass_target(torch.tensor([[1e20, 1e-30, 0.0]]), 1.0).tolist() == [[True, True, False]]


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.8, 0.97, 1.0])
def test_row_219_the_target_is_the_smallest_set_that_reaches_the_ratio(ratio):
    generator = torch.Generator().manual_seed(0)
    heat = torch.randn(12, 7, 3, 3, generator=generator).relu() * torch.rand(12, 7, 1, 1, generator=generator) ** 3
    heat[0, 2:] = 0
    for image, mask in zip(heat.double().sum((2, 3)), mass_target(heat, ratio), strict=True):
        reach = ratio * float(image.sum()) * (1 - 1e-12)
        sets = [it for size in range(8) for it in combinations(range(7), size) if float(image[list(it)].sum()) >= reach]
        smallest = min(len(it) for it in sets)

        assert float(image[mask].sum()) >= reach
        assert smallest == int(mask.sum())


def test_a_target_of_nothing_keeps_nothing():
    assert not mass_target(torch.zeros(2, 5, 3, 3), 0.5).any()


class Watches(Callback):
    """What gradients predictors have after the task's backward, and all weights of theirs after each batch."""

    def __init__(self, masks):
        self.masks, self.gradients, self.moved = masks, [], []

    def on_after_backward(self, trainer, pl_module):
        self.gradients += [it.grad for predictor in self.masks.predictors.values() for it in predictor.parameters()]

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.moved.append(sum(float(it.weight.detach().abs().sum()) for it in self.masks.predictors.values()))


def test_row_219_no_gradient_of_the_mask_loss_reaches_the_backbone_and_none_of_the_task_the_predictors():
    plain, masked = Deep(), Deep()
    # At threshold 0 every filter goes on, so all that could change the network is a gradient.
    watches = Watches(masks := DynamicMasks(ratio=0.5, threshold=0.0, lr=0.1))
    for module, callbacks in ((plain, []), (masked, [masks, watches])):
        quiet_trainer(max_epochs=1, callbacks=callbacks, gradient_clip_val=0.5).fit(module, plain_loader(30))

    assert distance(plain.state_dict(), masked.state_dict()) == 0.0
    assert all(it is None or not it.any() for it in watches.gradients)
    assert watches.moved[0] > 0


def by_hand(ratio, lr, mutant=""):
    """`Plain` with one masked convolution, and its predictor, trained on the Trainer's batches."""
    torch.manual_seed(3)
    module = Plain(dropout=0.0)
    weight, bias = torch.zeros(4, 1, requires_grad=True), torch.ones(4, requires_grad=True)
    learner = torch.optim.Adam([weight, bias], lr=lr)
    stepper = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(stepper, 5, gamma=0.8)
    conv, norm, act, _, flatten, linear = module.network
    for image, target in plain_loader(60):
        pooled = image.mean((2, 3)) if mutant == "mean" else image.amax((2, 3))
        logits = pooled @ weight.T + bias
        maps = act(norm(conv(image)))
        mass = maps.detach().double().sum((2, 3))
        wanted = torch.zeros_like(mass)
        for number, row in enumerate(mass.tolist()):
            order, reached = sorted(range(4), key=lambda it: -row[it]), 0.0
            for filter in order:
                if reached < ratio * sum(row):
                    wanted[number, filter] = 1
                reached += row[filter]
        masked = maps if mutant == "dense" else maps * (logits.detach() > 0)[:, :, None, None]
        stepper.zero_grad()
        F.cross_entropy(linear(flatten(masked)), target).backward()
        stepper.step()
        schedule.step()
        learner.zero_grad()
        F.binary_cross_entropy(logits.sigmoid(), wanted.float()).backward()
        learner.step()
    return module.state_dict(), weight.detach()


def test_a_training_equals_a_loop_by_hand_and_a_wrong_one_is_noticed():
    torch.manual_seed(3)
    module, masks = Plain(dropout=0.0), DynamicMasks(ratio=0.6, lr=0.2)
    quiet_trainer(max_epochs=1, callbacks=[masks]).fit(module, plain_loader(60))
    predictor = masks.predictors["network.0"]

    weights, weight = by_hand(0.6, 0.2)
    assert distance(module.state_dict(), weights) < 1e-5
    torch.testing.assert_close(predictor.weight.detach(), weight, rtol=1e-4, atol=1e-5)
    for ratio, mutant in ((0.6, "mean"), (0.6, "dense"), (0.9, "")):
        assert distance(module.state_dict(), by_hand(ratio, 0.2, mutant)[0]) > 1e-3


def trained(folder=None, epochs=2, **settings):
    """A module and the callback after a short fit."""
    callbacks = [masks := DynamicMasks(**{"ratio": 0.6, "lr": 0.1} | settings)]
    options = {"max_epochs": epochs, "callbacks": callbacks}
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder))
        options["enable_checkpointing"] = True
    trainer = quiet_trainer(**options)
    fitted = Deep()
    trainer.fit(fitted, plain_loader(60))
    return fitted, masks, trainer


def test_row_219_gathered_filters_put_out_what_masked_ones_do_and_save_what_is_told():
    module, masks, trainer = trained()
    loader = plain_loader(24, batch_size=24)
    (images, _), *_ = loader
    (masked,) = trainer.predict(module, loader)
    (logged,) = trainer.validate(module, loader, verbose=False)
    fast = with_predictors(module, masks.state_dict())
    fitting = with_predictors(module.network, masks.state_dict())
    dense = module.eval()(images)
    with torch.no_grad():
        torch.testing.assert_close(masked, fast(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(masked, fitting(images), rtol=1e-5, atol=1e-5)
        # Without its last, which is no part of what is told.
        with FlopCounterMode(display=False) as all_of_it:
            module.network[:-1](images)
        with FlopCounterMode(display=False) as some_of_it:
            fitting[:-1](images)

    assert (masked - dense).abs().max() > 1e-3
    assert 0.1 < logged["val/filters_kept"] < 0.9
    told = 1 - some_of_it.get_total_flops() / all_of_it.get_total_flops()
    assert told == pytest.approx(logged["val/flops_saved"], abs=1e-6)


def test_filters_before_timms_norms_with_activations_are_left_out_too():
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b0", num_classes=5).eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    dense = model(images).detach()
    wide = {"blocks.1.0.conv_pw": (16, 96), "blocks.1.0.conv_dw": (96, 96)}
    predictors = {name: FilterPredictor(*sizes) for name, sizes in wide.items()}
    for it in predictors.values():
        nn.init.normal_(it.weight)
        nn.init.zeros_(it.bias)
    fast = with_predictors(model, {"predictors": {name: it.state_dict() for name, it in predictors.items()}})
    for name, it in predictors.items():
        seen = []
        conv, norm = (
            model.get_submodule(name),
            model.get_submodule(name.replace("conv_pw", "bn1").replace("conv_dw", "bn2")),
        )
        conv.register_forward_pre_hook(lambda layer, args, it=it, seen=seen: seen.append(it(args[0].float()) > 0))
        norm.register_forward_hook(lambda layer, args, out, seen=seen: out * seen[-1][:, :, None, None])
    with torch.no_grad():
        masked = model(images)

        torch.testing.assert_close(masked, fast(images), rtol=1e-9, atol=1e-12)
        assert (masked - dense).abs().max() > 1e-6


def test_a_whole_checkpoint_masks_as_the_fit_did_and_a_weights_only_file_warns(tmp_path):
    module, _, trainer = trained(tmp_path)
    loader, path = plain_loader(24), trainer.checkpoint_callback.best_model_path
    scored = trainer.test(module, loader, verbose=False)
    again = quiet_trainer(callbacks=[DynamicMasks(ratio=0.6)]).test(Deep(), loader, ckpt_path=path, verbose=False)
    state = torch.load(path, weights_only=True)

    assert scored == again
    assert list(state["state_dict"]) == list(Deep().state_dict())
    assert list(state["callbacks"]["DynamicMasks"]["predictors"]) == ["network.0", "network.3", "network.6"]
    with pytest.warns(UserWarning, match="its predictors were never trained and keep every filter"):
        quiet_trainer(callbacks=[DynamicMasks()]).validate(module, loader, verbose=False)


def test_predictors_learn_which_filters_fire():
    """Against the best constant mask, which keeps a filter if most images want it."""
    module, masks, _ = trained(ratio=0.5, epochs=12)
    images = torch.cat([image for image, _ in plain_loader(60)])
    wanted = mass_target(module.eval().network[:3](images), 0.5)
    asked = masks.predictors["network.0"](images) > 0
    share = wanted.float().mean(0)

    assert float((asked == wanted).float().mean()) > float(torch.maximum(share, 1 - share).mean()) + 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.5}, "DynamicMasks: ratio is 1.5; give a number from 0 to 1."),
        (
            {"ratio": 0.0},
            "DynamicMasks: ratio is 0.0, lr 0.01 and threshold 0.5; give a ratio and an lr above 0, and a threshold "
            "below 1.",
        ),
        ({"threshold": -0.1}, "DynamicMasks: threshold is -0.1; give a number from 0 to 1."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        DynamicMasks(**settings)

    assert message == str(error.value)


def test_layers_that_are_not_there_or_have_other_predictors_are_refused(tmp_path):
    _, masks, trainer = trained(tmp_path)
    path = trainer.checkpoint_callback.best_model_path

    def refusal(module, path=None, **settings):
        with pytest.raises(ValueError) as error:
            callbacks = [DynamicMasks(**settings)]
            quiet_trainer(callbacks=callbacks).validate(module, plain_loader(6), ckpt_path=path, verbose=False)
        return str(error.value)

    assert refusal(Deep(), layers="netwrk.0") == (
        "DynamicMasks: layers 'netwrk.0' matches none of the convolutions before activations; there are network.0, "
        "network.6, network.3."
    )
    assert refusal(Deep(), path, layers="network.3") == (
        "DynamicMasks: its predictors are of network.0, network.3, network.6, and the layers that it would mask are "
        "network.3; give the module and `layers` with which they were trained."
    )
    linear = Plain()
    linear.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert refusal(linear).startswith("DynamicMasks: Plain has no convolution that is followed")
    with pytest.raises(ValueError, match="the state has no predictors"):
        with_predictors(Deep(), {})
    with pytest.raises(ValueError) as error:
        with_predictors(Plain(), masks.state_dict())
    assert str(error.value) == (
        "with_predictors: the state has a predictor of 'network.0', and Plain has no such convolution before an "
        "activation, of its size, only network.0; give the network that was trained."
    )

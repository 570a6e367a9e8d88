"""StyleAugment: styles by hand, the turned gradient, where it stands, and training equal to a loop.

Resume, processes, precisions, undo and the neutral run are proved in `tests/conformance`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vision.backbones.create import create
from lightning_vision.callbacks import EMA, SAM, GeodesicMix, StyleAugment
from lightning_vision.callbacks.mixing.feature_style import (
    StyleIntensity,
    beside,
    feature_style,
    gradient_reversal,
    restyle,
    style_spread,
)
from support.compare import distance, seeded
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

ALWAYS: dict[str, Any] = {"p": 1.0, "layers": "network.2"}


def features(count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(count, 3, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    return (torch.randn(count, 3, 5, 4, generator=generator, dtype=torch.float64) * scale + scale).to(dtype)


def noise(count: int = 4, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(2, count, channels, 1, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_row_164_without_strength_the_features_are_those_given_bit_for_bit(dtype: torch.dtype) -> None:
    given = features(dtype=dtype)

    assert torch.equal(StyleIntensity(3, 0.0)(given, noise(), 1.0, 1e-6), given)
    assert torch.equal(restyle(given, torch.zeros(4, 3, 1, 1), torch.zeros(4, 3, 1, 1)), given)


def test_row_164_the_style_of_the_output_is_the_one_that_was_asked_for() -> None:
    given = features(dtype=torch.float64)
    shift, scale = noise().double()[0], noise().double()[1]
    mean, std = feature_style(given, 1e-12)
    found = restyle(given, shift, scale, 1e-12)

    torch.testing.assert_close(found.mean((2, 3), keepdim=True), mean + shift)
    torch.testing.assert_close(found.std((2, 3), keepdim=True), (std + scale).abs())
    torch.testing.assert_close(found, (given - mean) / std * (std + scale) + mean + shift)


@pytest.mark.parametrize("weight", [1.0, 2.5, 0.0])
def test_row_164_the_gradient_of_the_strength_is_that_without_reversal_turned_round(weight: float) -> None:
    given, moved, target = features(), noise(), torch.tensor([0, 1, 2, 0])

    def gradients(reverse: bool) -> list[Tensor]:
        strength = [torch.full((3,), 0.3, requires_grad=True), torch.full((3,), 0.2, requires_grad=True)]
        mean, std = (gradient_reversal(it, weight) if reverse else it for it in strength)
        changed = restyle(given, moved[0] * mean[:, None, None], moved[1] * std[:, None, None])
        F.cross_entropy(changed.square().mean((2, 3)), target).backward()
        return [it.grad for it in strength if it.grad is not None]

    for turned, plain in zip(gradients(True), gradients(False), strict=True):
        assert float(plain.abs().max()) > 1e-3
        assert torch.equal(turned, -weight * plain)


def test_row_164_after_a_step_of_the_strength_the_loss_is_not_lower() -> None:
    given, moved, target = features(), noise(), torch.tensor([0, 1, 2, 0])
    intensity = StyleIntensity(3, 0.3)

    def loss() -> Tensor:
        return F.cross_entropy(intensity(given, moved, 1.0, 1e-6).square().mean((2, 3)), target)

    before = loss()
    optimizer = torch.optim.SGD(intensity.parameters(), lr=1e-2)
    before.backward()
    optimizer.step()

    assert loss().item() > before.item() + 1e-4


def test_row_164_the_strength_begins_with_the_spread_of_the_batchs_styles() -> None:
    given = features(count=6, dtype=torch.float64)
    mean, std = given.mean((2, 3)), given.std((2, 3))
    spread = style_spread(given, eps=1e-12)

    torch.testing.assert_close(spread[0], mean.std(0))
    torch.testing.assert_close(spread[1], std.std(0))
    assert [it.tolist() for it in style_spread(given[:1], eps=0.25)] == [[0.5] * 3] * 2


def test_what_stands_beside_gets_gradients_of_zeros_and_changes_nothing() -> None:
    given, parameter = features().requires_grad_(), nn.Parameter(torch.ones(3))
    result = beside(given, parameter)
    assert torch.equal(result, given)
    # As a ReLU in place that comes next.
    result.mul_(2)
    result.square().sum().backward()

    assert parameter.grad is not None and parameter.grad.tolist() == [0.0] * 3
    assert torch.equal(given.grad if given.grad is not None else given, 8 * given)


def fit(module: LightningModule, *callbacks: Any, **options: Any) -> Trainer:
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 1} | options)
    trainer.fit(module, plain_loader(24), plain_loader(6))
    return trainer


class Looking(Plain):
    """Keeps what its first layers put out, in training and in validation."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.seen: list[tuple[bool, Tensor, Tensor]] = []

    def forward(self, image: Tensor) -> Any:
        relu: Tensor = self.network[1](self.network[0](image)).clamp(min=0)
        after = self.network[2](self.network[1](self.network[0](image)))
        self.seen.append((self.training, relu.detach(), after.detach()))
        return self.network[3:](after)


def test_row_164_in_evaluation_it_is_the_network_as_it_is() -> None:
    module = Looking()
    fit(module, StyleAugment(**ALWAYS))
    changed = {True: [], False: []}  # type: dict[bool, list[float]]
    for training, plain, after in module.seen:
        changed[training].append(float((plain - after).abs().max()))

    assert min(changed[True]) > 0.01
    assert max(changed[False]) == 0.0


def loop(module: Plain, changed: Callable[[StyleIntensity, Tensor, Tensor], Tensor]) -> Tensor:
    """Four steps of `Plain` with noise behind its third layer, written out; the strength when they are done."""
    intensity = StyleIntensity(4, None)
    optimizer = torch.optim.SGD(
        [*module.parameters(), *intensity.parameters()], lr=0.05, momentum=0.9, weight_decay=1e-3
    )
    for number, (image, target) in enumerate(plain_loader(24)):
        random = np.random.default_rng((0, 0, 0, number, 0, 0))
        given = module.network[:3](image)
        if number == 0:
            intensity.begin(given, 1e-6)
        random.random()  # whether the layer is changed, at p=1 it always is
        drawn = torch.from_numpy(random.standard_normal((2, *given.shape[:2], 1, 1), dtype=np.float32))
        loss = F.cross_entropy(module.network[3:](changed(intensity, given, drawn)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack([intensity.mean, intensity.std]).detach()


def by_the_paper(intensity: StyleIntensity, given: Tensor, drawn: Tensor) -> Tensor:
    var, mean = torch.var_mean(given, (2, 3), keepdim=True)
    shift, scale = (
        drawn[it] * gradient_reversal(own)[:, None, None] for it, own in enumerate((intensity.mean, intensity.std))
    )
    return given + scale * ((given - mean) / (var + 1e-6).sqrt()) + shift


def of_the_callback(**changed: Any) -> tuple[dict[str, Tensor], Tensor]:
    module, callback = seeded(Plain, 0.0), StyleAugment(**ALWAYS | changed)
    trainer = quiet_trainer(callbacks=[callback], max_steps=4, max_epochs=-1)
    trainer.fit(module, plain_loader(24))
    parts = callback.state_dict()["parts"]["network.2"]
    return module.state_dict(), torch.stack([parts["mean"], parts["std"]])


def test_training_equals_a_loop_with_the_noise_written_out() -> None:
    by_hand = seeded(Plain, 0.0)
    strength = loop(by_hand, by_the_paper)
    weights, ours = of_the_callback()

    assert torch.equal(ours, strength)
    assert distance(weights, by_hand.state_dict()) == 0.0


def not_turned(intensity: StyleIntensity, given: Tensor, drawn: Tensor) -> Tensor:
    mean, std = (it[:, None, None] for it in (intensity.mean, intensity.std))
    return restyle(given, drawn[0] * mean, drawn[1] * std)


def one_noise_for_both(intensity: StyleIntensity, given: Tensor, drawn: Tensor) -> Tensor:
    return by_the_paper(intensity, given, drawn[:1].expand(2, -1, -1, -1, -1))


def statistics_of_the_batch(intensity: StyleIntensity, given: Tensor, drawn: Tensor) -> Tensor:
    mean, std = (gradient_reversal(it)[:, None, None] for it in (intensity.mean, intensity.std))
    normalised = (given - given.mean((0, 2, 3), keepdim=True)) / given.std((0, 2, 3), keepdim=True)
    return given + drawn[1] * std * normalised + drawn[0] * mean


@pytest.mark.parametrize("mutant", [not_turned, one_noise_for_both, statistics_of_the_batch])
def test_a_wrong_one_is_noticed(mutant: Callable[..., Tensor]) -> None:
    by_hand = seeded(Plain, 0.0)
    strength = loop(by_hand, mutant)
    _, ours = of_the_callback()

    assert float((ours - strength).abs().max()) > 1e-4


class Checkpointed(Plain):
    """Computes its first layers again in backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(dropout=0.0)
        self.reentrant = reentrant

    def forward(self, image: Tensor) -> Any:
        first = self.network[0](image)
        if not self.training:
            return self.network[1:](first)
        return self.network[3:](checkpoint(self.network[1:3], first, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("init", ["batch", 0.3])
def test_a_layer_that_is_computed_again_in_backward_is_refused(reentrant: bool, init: Any) -> None:
    with pytest.raises(ValueError) as refusal:
        fit(Checkpointed(reentrant), StyleAugment(**ALWAYS, init=init))

    assert str(refusal.value) == (
        "StyleAugment: layer 'network.2' is computed again in backward, as activation checkpointing does "
        "(torch.utils.checkpoint), where it would not be changed alike; leave the layer out of the checkpointing, or "
        "name others with layers=."
    )


def test_beside_a_checkpointed_part_other_layers_are_changed() -> None:
    checkpointed, plain = seeded(Checkpointed, True), seeded(Plain, 0.0)
    for module in (checkpointed, plain):
        fit(module, StyleAugment(p=1.0, layers="network.0"))

    # Of buffers batch norm's see the batch twice.
    assert distance(*(dict(module.named_parameters()) for module in (checkpointed, plain))) < 1e-6


def test_a_layer_that_runs_without_gradients_is_refused() -> None:
    class Frozen(Plain):
        def forward(self, image: Tensor) -> Any:
            with torch.no_grad():
                first = self.network[:3](image)
            return self.network[3:](first)

    with pytest.raises(ValueError) as refusal:
        fit(Frozen(), StyleAugment(**ALWAYS))

    assert str(refusal.value) == (
        "StyleAugment: layer 'network.2' ran without gradients in training_step, as under torch.no_grad, so its noise "
        "never begins; name others with layers=, or give a number for init=."
    )


def test_with_p_some_batches_are_left_as_they_are() -> None:
    module = Looking()
    fit(module, StyleAugment(layers="network.2", p=0.5, init=0.3), max_epochs=5)
    left = [torch.equal(plain, after) for training, plain, after in module.seen if training]

    assert 3 <= sum(left) <= len(left) - 3


def test_a_step_that_is_computed_twice_has_the_same_noise() -> None:
    module = Looking()
    fit(module, StyleAugment(**ALWAYS, init=0.3), SAM(rho=1e-12))
    trained = [it for it in module.seen if it[0]]

    for (_, _, first), (_, _, second) in zip(trained[::2], trained[1::2], strict=True):
        torch.testing.assert_close(first, second)
    assert not torch.allclose(trained[0][2], trained[2][2])


class Asked(Plain):
    """Keeps the losses of each step, those of a search ahead of it included."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.asked: dict[int, list[float]] = {}

    def loss(self, image: Tensor, target: Any) -> Tensor:
        value = super().loss(image, target)
        if self.training:
            mixed = getattr(value, "mixed_value", lambda: value)()
            self.asked.setdefault(self.trainer.global_step, []).append(float(mixed.detach()))
        return value


def test_a_search_has_the_noise_and_the_beginning_of_the_step() -> None:
    module = seeded(Asked)
    fit(module, StyleAugment(**ALWAYS), GeodesicMix(n_geodesic=3, reg_weight=0.1), max_epochs=2)

    assert len(module.asked) == 8
    for step, (*ahead, taken, aside) in module.asked.items():
        assert len(set(ahead)) == len(ahead) == 3
        assert taken == max(ahead)
        # In the first step it has the strength that has begun at the point that was taken.
        assert step == 0 or aside in ahead


def test_beside_a_search_a_resumed_run_goes_on_with_the_strength_that_it_had(tmp_path: Path) -> None:
    def both() -> list[Any]:
        return [StyleAugment(**ALWAYS), GeodesicMix(n_geodesic=3)]

    whole, resumed = seeded(Plain, 0.0), seeded(Plain, 0.0)
    fit(whole, *both(), max_epochs=2)
    fit(seeded(Plain, 0.0), *both()).save_checkpoint(tmp_path / "one.ckpt")
    trainer = quiet_trainer(callbacks=both(), max_epochs=2)
    trainer.fit(resumed, plain_loader(24), plain_loader(6), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]["StyleAugment"]

    assert bool(saved["parts"]["network.2"]["begun"])
    assert distance(whole.state_dict(), resumed.state_dict()) == 0.0


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_a_turned_gradient_the_strength_falls_by_weight_decay_alone(decay: float) -> None:
    class Decaying(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5, weight_decay=decay)

    callback = StyleAugment(**ALWAYS, init=0.3, adv_weight=0.0)
    fit(Decaying(0.0), callback)
    strength = callback.state_dict()["parts"]["network.2"]["mean"]

    torch.testing.assert_close(strength, torch.full((4,), 0.3 * (1 - 0.5 * decay) ** 4))


def test_averages_and_files_know_nothing_of_it(tmp_path: Path) -> None:
    module = Plain(0.0)
    trainer = fit(module, StyleAugment(**ALWAYS), EMA(decay=0.5))
    trainer.save_checkpoint(tmp_path / "file.ckpt")
    saved = torch.load(tmp_path / "file.ckpt", weights_only=True)

    assert list(saved["state_dict"]) == list(Plain(0.0).state_dict())
    assert len(saved["optimizer_states"][0]["param_groups"][0]["params"]) == len(list(Plain(0.0).parameters()))
    assert set(saved["callbacks"]["StyleAugment"]["parts"]) == {"network.2"}


class Timms(Plain):
    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__()
        self.network = create(name, num_classes=10, in_channels=1, **settings)
        self.example_input_array = torch.zeros(1, 1, 32, 32)


def stood_behind(module: LightningModule, callback: StyleAugment) -> list[str]:
    trainer = quiet_trainer(callbacks=[callback], max_steps=1, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, plain_loader(6))
    return list(callback.state_dict()["parts"])


@pytest.mark.parametrize(
    ("module", "layers", "expected"),
    [
        (lambda: Timms("resnet8_cifar"), None, [f"network.stages.{stage}" for stage in range(3)]),
        (lambda: Timms("resnet8_cifar"), ["network.stages.[01]"], ["network.stages.0", "network.stages.1"]),
        (lambda: Timms("resnet18"), None, ["network.act1", *(f"network.layer{stage}" for stage in (1, 2, 3))]),
        (Plain, None, ["network.3"]),
    ],
    ids=["timm's stages", "a pattern", "but those of one pixel", "the last at each size"],
)
def test_it_stands_behind_stages(module: Callable[[], Plain], layers: Any, expected: list[str]) -> None:
    assert stood_behind(module(), StyleAugment(layers)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "network.9"}, "StyleAugment: layers 'network.9' matches none of the layers; there are network.5, "),
        ({"layers": "network.5"}, r"StyleAugment: layer 'network.5' puts out \(2, 10\) for two images and no maps"),
        ({"network": "trunk"}, "StyleAugment: Plain has no part 'trunk'; name one with network=."),
    ],
)
def test_what_does_not_fit_the_module_is_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Plain(), StyleAugment(**settings))


def test_a_network_of_tokens_is_refused() -> None:
    module = Timms("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    with pytest.raises(
        ValueError, match=r"layer 'network.blocks.0' puts out \(2, 17, 192\) for two images and no maps"
    ):
        fit(module, StyleAugment())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.5}, "StyleAugment: p is 1.5; give a number from 0 to 1."),
        ({"adv_weight": -1.0}, "StyleAugment: adv_weight is -1.0; give a finite number of at least 0."),
        ({"eps": 0.0}, "StyleAugment: eps is 0.0; give a number above 0."),
        ({"init": "std"}, "StyleAugment: init is 'std'; give a finite number of at least 0."),
        ({"seed": -1}, "StyleAugment: seed is -1; give a whole number of at least 0."),
        (
            {"layers": [""]},
            "StyleAugment: layers is ['']; give a pattern such as 'blocks.*.act', or a list of them.",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        StyleAugment(**settings)

    assert str(refusal.value) == message

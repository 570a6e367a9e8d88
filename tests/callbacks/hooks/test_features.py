"""The features seam reads what the classifier is given, in few batches, and leaves training and compiled code alone."""

import csv
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import TestTimeAugmentation
from lightning_vision.callbacks.hooks.features import Features
from support.compare import seeded
from support.data import labelled_images, plain_loader
from support.modules import DictBatches, Plain
from support.trainers import quiet_trainer


class Seen(Features):
    """Keeps what it is given to draw."""

    title = "seen"

    def __init__(self, samples=12, layer=None, every_n_epochs=1):
        super().__init__(
            samples=samples, layer=layer, every_n_epochs=every_n_epochs, image_key="image", target_key="target"
        )
        self.drawn = []

    def draw(self, pl_module, features, labels, names):
        self.drawn.append((features, labels))
        return None, {"count": len(features)}


class Wrapped(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def validated(seen, module, images, target=None, batch=8, **options):
    data = TensorDataset(images) if target is None else TensorDataset(images, target)
    quiet_trainer(callbacks=[seen, *options.pop("others", [])], **options).validate(
        module, DataLoader(data, batch), verbose=False
    )
    return seen.drawn[-1]


IMAGES = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_features_are_what_timms_classifier_is_given(name):
    options = {"img_size": 64} if "vit" in name else {}
    network = timm.create_model(name, num_classes=5, **options)
    features, labels = validated(Seen(samples=24), Wrapped(network), IMAGES, torch.arange(24))
    with torch.no_grad():
        network.eval()
        expected = network.forward_head(network.forward_features(IMAGES), pre_logits=True)

    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features, network(IMAGES)[:, :1].detach(), atol=1e-3)
    assert labels.tolist() == list(range(24))


def test_a_named_layer_is_averaged_over_the_images_positions():
    network = timm.create_model("test_vit", num_classes=5, img_size=64).eval()
    tokens, _ = validated(Seen(samples=24, layer="network.norm"), Wrapped(network), IMAGES)
    convolutions = timm.create_model("test_resnet", num_classes=5).eval()
    maps, _ = validated(Seen(samples=24, layer="network.layer4"), Wrapped(convolutions), IMAGES)
    pooled, _ = validated(Seen(samples=24, layer="network.global_pool"), Wrapped(convolutions), IMAGES)
    with torch.no_grad():
        expected = network.forward_features(IMAGES)[:, network.num_prefix_tokens :].mean(1)
        features = convolutions.forward_features(IMAGES).mean((2, 3))

    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps, features, atol=1e-5, rtol=1e-5)


class InPlace(Plain):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.ReLU(inplace=True), nn.Linear(64, 10))


def test_what_the_next_layer_writes_in_place_is_not_read():
    features, _ = validated(Seen(layer="network.1"), seeded(InPlace), *labelled_images(24).tensors)

    assert float(features.min()) < 0


@pytest.mark.parametrize(
    ("samples", "batch", "found"), [(12, 6, 12), (10, 7, 10), (500, 7, 60), (6, 60, 6), (60, 1, 60)]
)
def test_samples_are_spread_over_a_sorted_loader_and_never_more_than_asked_for(samples, batch, found):
    images, target = labelled_images(60).tensors
    order = target.argsort(stable=True)
    features, labels = validated(Seen(samples=samples), seeded(Plain), images[order], target[order], batch)

    assert len(features) == len(labels) == found
    if samples == 12:
        # Of ten batches the first and the sixth: the first half is not all.
        assert labels.max() > target.float().median()


def test_each_validation_is_read_and_its_number_logged_and_the_sanity_check_is_not(tmp_path):
    seen = Seen(every_n_epochs=2)
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(callbacks=[seen], max_epochs=4, logger=logger)
    trainer.fit(seeded(Plain), plain_loader(), plain_loader(24))
    table = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())

    assert [(row["step"], row["val/seen_count"]) for row in table if row["val/seen_count"]] == [
        ("10", "12"),
        ("30", "12"),
    ]
    assert len(seen.drawn) == 1 + 2
    assert not torch.equal(seen.drawn[1][0], seen.drawn[2][0])


def test_a_compiled_module_is_read_too_and_training_is_not_compiled_anew(compiler):
    def fitted(*callbacks):
        torch.compiler.reset()
        compiled = []

        def backend(graph, _inputs):
            compiled.append(graph)
            return graph.forward

        module = seeded(Plain)
        trainer = quiet_trainer(callbacks=list(callbacks), max_epochs=2, limit_train_batches=3, num_sanity_val_steps=0)
        trainer.fit(torch.compile(module, backend=backend), plain_loader(), plain_loader(24))
        return len(compiled), module.network[0].weight

    seen, eager = Seen(), Seen()
    (plain, weight), (read, same) = fitted(), fitted(seen)
    quiet_trainer(callbacks=[eager], max_epochs=2, limit_train_batches=3, num_sanity_val_steps=0).fit(
        seeded(Plain), plain_loader(), plain_loader(24)
    )

    assert read <= plain
    assert torch.equal(weight, same)
    assert torch.equal(seen.drawn[-1][0], eager.drawn[-1][0])


def test_frozen_in_bfloat16_and_in_mappings():
    images, target = labelled_images(24).tensors
    module = seeded(Plain).requires_grad_(False)
    plain, _ = validated(Seen(), module, images, target)
    half, _ = validated(Seen(), module, images, target, precision="bf16-mixed")
    seen = Seen()
    batches = [{"image": images[:12], "target": target[:12]}, {"image": images[12:]}]
    quiet_trainer(callbacks=[seen]).validate(Mapped(), DataLoader(batches, batch_size=None), verbose=False)

    assert half.dtype == torch.float32
    assert 0 < (half - plain).abs().max() < 0.05
    assert seen.drawn[0][1].tolist() == target[:12].tolist()


class Mapped(DictBatches):
    def validation_step(self, batch, batch_idx):
        self(batch["image"])


def test_of_several_views_the_first_is_read():
    images, target = labelled_images(24).tensors
    plain, _ = validated(Seen(), seeded(Plain), images, target)
    views, _ = validated(Seen(), seeded(Plain), images, target, others=[TestTimeAugmentation("flip", validate=True)])

    assert torch.equal(views, plain)


class Convolutional(Plain):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())


class Attends(Plain):
    """Its one linear layer weighs channels and does not answer."""

    def __init__(self):
        super().__init__()
        self.gate, self.last = nn.Linear(4, 4), nn.Conv2d(4, 10, 3)
        self.network = nn.Conv2d(1, 4, 3, stride=2)

    def forward(self, image):
        maps = self.network(image)
        return self.last(maps * self.gate(maps.mean((2, 3)))[:, :, None, None].sigmoid()).flatten(1)


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        (
            Convolutional,
            None,
            "^Seen: no linear layer of Convolutional puts out its answer, .*; name a layer with layer=.",
        ),
        (Attends, None, "^Seen: no linear layer of Attends puts out its answer"),
        (Plain, "network.7", "^Plain has no layer 'network.7'; did you mean"),
        (Attends, "unused", "^Seen: layer 'unused' of Attends gave no features \\(B, D\\) in a step; name another one"),
    ],
)
def test_what_has_no_features_is_refused_before_training(kind, layer, message):
    module = seeded(kind)
    if layer == "unused":
        module.unused = nn.Linear(2, 2)
    trainer = quiet_trainer(callbacks=[Seen(layer=layer)], max_epochs=1)

    with pytest.raises(ValueError, match=message):
        trainer.fit(module, plain_loader(), plain_loader(12))

    assert trainer.global_step == 0
    assert "forward" not in vars(module)
    assert [len(part._forward_hooks) for part in module.modules() if part._forward_hooks] == []


class Fails(Plain):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        raise RuntimeError("of the user")


def test_a_step_that_fails_leaves_no_hook():
    module = seeded(Fails)

    with pytest.raises(RuntimeError, match="of the user"):
        quiet_trainer(callbacks=[Seen()]).validate(module, plain_loader(), verbose=False)

    assert [part for part in module.modules() if part._forward_hooks] == []
    assert "forward" not in vars(module)


@pytest.mark.parametrize("samples", [1, 2.5, True])
def test_too_few_samples_are_refused(samples):
    with pytest.raises(ValueError, match=f"^Seen: samples is {samples}; give a whole number of at least 2.$"):
        Seen(samples=samples)


def test_a_module_that_has_features_is_asked_for_them_and_a_part_of_that_name_is_not():
    class Says(Wrapped):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)))

        def features(self, image):
            return image.mean((2, 3))

    class Holds(Wrapped):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)))
            self.features = nn.Conv2d(3, 2, 1)

    asked, _ = validated(Seen(), Says(), IMAGES)
    named, _ = validated(Seen(layer="network.1"), Says(), IMAGES)
    heard, _ = validated(Seen(), Holds(), IMAGES)

    # Two batches of eight hold the twelve samples, six of each, the second from the loader's middle.
    chosen = torch.cat([IMAGES[:6], IMAGES[8:14]])
    torch.testing.assert_close(asked, chosen.mean((2, 3)))
    assert (named.shape, heard.shape) == ((12, 4), (12, 3 * 64 * 64))

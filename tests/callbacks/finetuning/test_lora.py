"""LoRA equals a loop by hand, bit for bit; merged and unmerged networks agree; what does not train stands still.

The seam (files, resumes, several processes, undo) is proved in `hooks/test_folded.py`, the rest in `conformance/`.
"""

import logging
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_vision import main
from lightning_vision.callbacks import EMA, SAM, ExactResume, LoRA
from lightning_vision.callbacks.finetuning.lora import low_rank_output, low_rank_weight
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.datamodules import Digits
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.resuming import differences, record
from support.trainers import quiet_trainer

SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 16, "depth": 2, "num_heads": 2}


class ViT(Plain):
    """timm's tiny vision transformer, at the smallest size; AdamW over all parameters."""

    def __init__(self):
        super().__init__()
        self.network = timm.create_model("vit_tiny_patch16_224", **SMALL)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def loaders():
    return ResumableLoader(labelled_images(60), 6), ResumableLoader(labelled_images(24, seed=1), 6)


def fitted(*callbacks, kind=ViT, **options):
    module = seeded(kind)
    torch.manual_seed(5)
    quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options).fit(module, *loaders())
    return module


class ByHand(nn.Module):
    """A linear layer with an update of rank 4 and alpha 8, as the paper's Eq. 3 has it."""

    def __init__(self, layer, random, mutant):
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.layer, self.mutant = layer.requires_grad_(False), mutant
        self.a = nn.Parameter(torch.randn(4, inputs, generator=random) / math.sqrt(3 * inputs))
        self.b = nn.Parameter(torch.zeros(outputs, 4))
        self.scale = 1.0 if mutant == "unscaled" else 2.0

    def forward(self, x):
        a = self.a.detach() if self.mutant == "A stands still" else self.a
        return self.layer(x) + self.scale * F.linear(F.linear(x, a), self.b)


PRECISIONS = {"fp32": (torch.float32, None), "bf16": (torch.bfloat16, None), "fp16": (torch.float16, 2.0**16)}


def by_hand(accumulate=1, precision="fp32", mutant=""):
    """Two epochs of ten batches; the head trains too."""
    module, random = seeded(ViT), torch.Generator().manual_seed(0)
    for name, it in module.network.named_parameters():
        it.requires_grad_(name.startswith("head.") or mutant == "nothing frozen")
    updated = [ByHand(block.attn.qkv, random, mutant) for block in module.network.blocks]
    for block, it in zip(module.network.blocks, updated, strict=True):
        block.attn.qkv = it
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW([it for it in module.parameters() if it.requires_grad], lr=1e-2, weight_decay=0.1)
    dtype, scale = PRECISIONS[precision]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=3, enabled=scale is not None)
    loader = loaders()[0]
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for number, (image, target) in enumerate(loader):
            if number % accumulate == 0:
                optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
                loss = F.cross_entropy(module(image), target)
            scaler.scale(loss / accumulate).backward()
            if (number + 1) % accumulate == 0 or number == 9:
                scaler.step(optimizer)
                scaler.update()
    for block, it in zip(module.network.blocks, updated, strict=True):
        with torch.no_grad():
            it.layer.weight.copy_(it.layer.weight + it.scale * (it.b @ it.a).view_as(it.layer.weight))
        block.attn.qkv = it.layer
    return module


def ours(accumulate=1, precision="fp32", **options):
    options |= {"precision": "bf16-mixed"} if precision == "bf16" else {}
    if precision == "fp16":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    return fitted(LoRA("*.qkv", rank=4, alpha=8), accumulate_grad_batches=accumulate, **options)


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (3, "fp32"), (1, "bf16"), (2, "fp16")])
def test_it_equals_a_loop_by_hand(accumulate, precision):
    hand = by_hand(accumulate, precision)

    assert distance(ours(accumulate, precision).state_dict(), hand.state_dict()) == 0.0


@pytest.mark.parametrize("mutant", ["unscaled", "A stands still", "nothing frozen"])
def test_a_wrong_update_is_noticed(mutant):
    assert distance(ours().state_dict(), by_hand(mutant=mutant).state_dict()) > 1e-3


LAYERS = {
    "linear": (nn.Linear(6, 5), (2, 3, 6)),
    "1x1": (nn.Conv2d(6, 4, 1), (2, 6, 5, 5)),
    "3x3, strided": (nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), (2, 6, 7, 7)),
    "dilated, padded to the same size": (nn.Conv2d(6, 4, 3, padding="same", dilation=2), (2, 6, 7, 7)),
    "grouped": (nn.Conv2d(6, 4, (3, 1), groups=2), (2, 6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding=1), (2, 6, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_with_the_merged_weight_puts_out_both_sums(name):
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=torch.float64)
    layer = layer.double()
    down, up = torch.randn(3, layer.weight[0].numel()).double(), torch.randn(len(layer.weight), 3).double()
    merged = torch.func.functional_call(layer, {"weight": low_rank_weight(layer.weight, down, up, 0.5)}, (images,))

    torch.testing.assert_close(layer(images) + 0.5 * low_rank_output(layer, images, down, up), merged)


class FirstOutputs(Callback):
    """Keeps the logits of each validation, and with them those of the first training batch."""

    def __init__(self):
        self.validations, self.image = [], labelled_images(24, seed=1)

    def on_validation_end(self, trainer, pl_module):
        with torch.no_grad():
            self.validations.append(pl_module(torch.stack([image for image, _ in self.image])))


def test_the_first_outputs_are_the_networks_own_and_the_last_those_of_the_merged_weights():
    seen = FirstOutputs()
    base, module = seeded(ViT).eval(), fitted(LoRA(), seen).eval()
    image = torch.stack([image for image, _ in seen.image])
    first, last = seen.validations[0], seen.validations[-1]
    with torch.no_grad():
        merged = module(image)

    assert torch.equal(first, base(image))
    assert (last - first).abs().max() > 0.1
    assert (merged - last).abs().max() < 2e-6 * last.abs().max()


def test_frozen_parameters_stand_still_and_updates_have_their_rank():
    base, module = seeded(ViT).state_dict(), fitted(LoRA("*.qkv", rank=2)).state_dict()
    changed = {name for name in base if not torch.equal(base[name], module[name])}

    assert changed == {"network.head.weight", "network.head.bias"} | {
        f"network.blocks.{block}.attn.qkv.weight" for block in range(2)
    }
    for block in range(2):
        name = f"network.blocks.{block}.attn.qkv.weight"
        values = torch.linalg.svdvals((module[name] - base[name]).double())
        assert values[1] > 1e-3 > 1e-5 > values[2]


class Look(Callback):
    """Keeps which parameters have a gradient, and what the optimizer keeps of how many."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.graded = sorted(name for name, it in pl_module.named_parameters() if it.grad is not None)

    def on_train_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        self.kept = sum(bool(state) for state in optimizer.state.values())


def test_only_the_factors_and_what_train_names_have_gradients_and_states(caplog):
    look = Look()
    with caplog.at_level(logging.INFO):
        fitted(LoRA("*.mlp.fc1", rank=2, train=["*.norm.*", "*.head.bias"]), look, max_epochs=1)

    factors = [
        f"network.blocks.{block}.mlp.fc1.added_LoRA.network-blocks-{block}-mlp-fc1.{factor}"
        for block in range(2)
        for factor in ("down", "up")
    ]
    assert look.graded == sorted([*factors, "network.head.bias", "network.norm.bias", "network.norm.weight"])
    assert look.kept == 7
    # Two layers of 16 to 64, with factors (2, 16) and (64, 2); a bias of 10 and a norm of 16.
    total = sum(it.numel() for it in ViT().parameters())
    told = f"LoRA: 362 parameters train beside {total - 42:,} that are frozen: 320 added to 2 layers and 42 of the"
    assert [it for it in caplog.messages if it.startswith("LoRA")] == [f"{told} module's {total:,}."]


def test_the_default_updates_every_layer_but_the_classifier():
    names = set(LoRA().additions(ViT()))

    assert names == {"network.patch_embed.proj"} | {
        f"network.blocks.{block}.{layer}"
        for block in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_rates_and_gradients_of_a_part_reach_the_updates_of_its_layers():
    class Parted(ViT):
        def configure_optimizers(self):
            head = self.network.head.parameters()
            return torch.optim.SGD(
                [{"params": self.network.blocks[0].parameters(), "lr": 0.1}, {"params": head}], lr=0.01
            )

    base, module = seeded(Parted).state_dict(), fitted(LoRA("*.blocks.0.*.qkv"), kind=Parted).state_dict()

    assert not torch.equal(base["network.blocks.0.attn.qkv.weight"], module["network.blocks.0.attn.qkv.weight"])
    with pytest.raises(ValueError, match=r"^LoRA: no optimizer has what was added to the layer 'network.blocks.1"):
        fitted(LoRA("*.qkv"), kind=Parted)


def test_dropout_draws_from_a_stream_of_its_own_that_a_resumed_run_goes_on_with(tmp_path):
    def run(dropout=0.3, seed=0, **options):
        saves = ModelCheckpoint(tmp_path / f"{dropout}{len(options)}", "{step}", every_n_train_steps=2, save_top_k=-1)
        callbacks = [LoRA("*.qkv", dropout=dropout, seed=seed), ExactResume(), saves]
        module = seeded(ViT)
        torch.manual_seed(5)
        return record(module, loaders, callbacks, max_epochs=2, **options), module.state_dict(), torch.get_rng_state()

    straight, weights, stream = run()
    killed, _, _ = run(kill_at=14, in_the_act=True)
    resumed, again, _ = run(ckpt_path=tmp_path / "0.32" / "step=14.ckpt")
    _, without, own = run(dropout=0.0)

    assert differences(straight, killed, resumed, lost_rows=1) == []
    assert distance(weights, again) == 0.0 < distance(weights, without)
    assert torch.equal(stream, own)


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    (addition,) = LoRA("*.0.attn.qkv", dropout=0.25).additions(ViT()).values()
    layer, images = nn.Linear(16, 48, bias=False), torch.ones(1000, 16)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        addition.down.copy_(torch.eye(8, 16))
        addition.up.copy_(torch.eye(48, 8))
        addition.begin(0, 0, 0, 0)
        output = addition(layer, images, layer(images))[:, :8] / 2

    assert sorted(set(output.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert output.mean() == pytest.approx(1.0, abs=0.02)


def test_beside_an_ascent_the_factors_are_perturbed_and_the_frozen_network_is_not():
    plain, sharp = (fitted(LoRA("*.qkv"), *more).state_dict() for more in ([], [SAM(rho=0.5)]))
    base = seeded(ViT).state_dict()

    assert distance(plain, sharp) > 1e-3
    assert torch.equal(sharp["network.blocks.0.mlp.fc1.weight"], base["network.blocks.0.mlp.fc1.weight"])
    with pytest.raises(ValueError, match=r"^LoRA: SAM computes a step twice, and dropout=0.1 would differ"):
        fitted(LoRA("*.qkv", dropout=0.1), SAM(rho=0.5))


class LastLogits(Callback):
    """Keeps the training module's logits in the last validation."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logits = pl_module(batch[0])


def test_a_checkpoint_exports_to_the_logits_that_validation_saw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, seen = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1), LastLogits()
    saves = ModelCheckpoint(tmp_path, "tuned", save_weights_only=True)
    short = {"limit_train_batches": 8, "limit_val_batches": 1, "max_epochs": 1, "enable_checkpointing": True}
    trainer = quiet_trainer(callbacks=[LoRA(rank=2), seen, saves], **short)
    trainer.fit(module, datamodule=Digits())
    asked = ["export", "--ckpt_path", "tuned.ckpt", "--trainer.accelerator", "cpu", "--format", "torch_export"]
    main([*asked, "--output", "out"])
    # The program takes images as they lie in files.
    images = next(iter(trainer.datamodule.val_dataloader()))[0]
    logits = torch.export.load("out/model.pt2").module()(images)

    assert (logits - seen.logits).abs().max() < 1e-5 * seen.logits.abs().max()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": -1}, "rank is -1; give a whole number of at least 0"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": 0}, "alpha is 0, so nothing would be learned"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"dropout": 1}, "dropout is 1, so nothing would be learned"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"layers": []}, "layers is empty"),
        ({"layers": 3}, "layers is 3; give a pattern"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(settings, said):
    with pytest.raises(ValueError, match=rf"^LoRA: {said}.*\.$"):
        LoRA(**settings)


class Odd(Plain):
    """Two layers whose weights are read in other ways than by calling them, and no classifier by name."""

    def __init__(self):
        super().__init__()
        self.attention, self.padded = (
            nn.MultiheadAttention(8, 2),
            nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        )


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (ViT, {"layers": "*.qvk"}, r"layers '\*.qvk' matches none of the Linear and Conv2d.*network.blocks"),
        (ViT, {"layers": ["*.qkv", "*.norm1"]}, "fits 'network.blocks.0.norm1', which is a LayerNorm"),
        (ViT, {"layers": "*.head"}, "fits 'network.head', which trains as usual"),
        (ViT, {"train": "*.haed*"}, r"train '\*.haed\*' matches none of the parameters that train"),
        (Odd, {"train": "network.5*", "layers": "attention.*"}, "fits 'attention.out_proj', which is a NonDynamically"),
        (Odd, {"train": "network.5*", "layers": "padded"}, "fits 'padded', which is a Conv2d, whose output"),
        (Odd, {}, "which part of Odd is its classifier is not clear.*name it with train="),
    ],
)
def test_a_module_that_does_not_fit_is_refused_in_a_sentence(kind, settings, said):
    with pytest.raises(ValueError, match=rf"^LoRA: .*{said}.*\.$"):
        fitted(LoRA(**settings), kind=kind)


def test_an_average_of_the_factors_is_merged_and_not_an_average_of_what_was_merged():
    class Factors(Callback):
        def on_train_end(self, trainer, pl_module):
            average, self.merged = ema.average, {}
            for block in range(2):
                path = f"network.blocks.{block}.attn.qkv"
                up, down = (average[f"{path}.added_LoRA.{path.replace('.', '-')}.{it}"] for it in ("up", "down"))
                self.merged[f"{path}.weight"] = average[f"{path}.weight"] + 2.0 * (up @ down)

    ema, look = EMA(decay=0.8), Factors()
    module = fitted(LoRA("*.qkv", rank=8, alpha=16), ema, look).state_dict()

    assert all(torch.equal(module[name], value) for name, value in look.merged.items())

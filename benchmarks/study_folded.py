"""What folding rounds away, and whose gates close: two questions to callbacks that train with additions to layers.

Protocol, fixed before the first run. Merging: `LoRA` with its default layers and alpha 16 updates each network for 60
steps of AdamW (rate 0.01) on batches of 32 digits from random weights; the logits of the 359 test digits before and
after merging are compared, the largest difference over the largest logit. Gates: `FeatureGates` with rate 0.03 and all
scores at one half weighs 64 pixels of 512 digits beside 64 normal numbers that say nothing, in front of a network of 32
hidden units, for 20 epochs of 8 batches. Pixels whose standard deviation is not above half of the data's scale are left
out, for they are nearly constant. Seeds 0 to 4 fix weights, order and noise.
"""

from statistics import mean

import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.backbones import create
from lightning_vision.callbacks import FeatureGates, LoRA

__all__ = ["blocks"]

SEEDS = range(5)
NETWORKS = ("resnet8_cifar", "vit_tiny_patch16_224, 2 blocks of width 32")
RANKS = (4, 16)


class Classifier(LightningModule):
    """Cross entropy of a network's logits."""

    def __init__(self, network: nn.Module, optimizer: type[Optimizer], rate: float) -> None:
        super().__init__()
        self.network, self.kind, self.rate = network, optimizer, rate

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return self.kind([it for it in self.parameters() if it.requires_grad], lr=self.rate)  # type: ignore[call-arg]


class Unmerged(Callback):
    """Keeps the logits of some images as they are when training ends."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logits = _logits(pl_module, self.images)


def blocks(quick: bool) -> dict[str, str]:
    """The largest difference of merging by network and rank, and the scores of pixels and of noise by seed.

    Args:
        quick: One seed, two steps or one epoch.
    """
    seeds = [0] if quick else list(SEEDS)
    head = f"| {' | '.join(f'seed {it}' for it in seeds)} | mean |"
    rule = "--:|" * (len(seeds) + 1)
    merging = [f"| network | rank {head}", f"|---|--:|{rule}"]
    for network in NETWORKS:
        for rank in RANKS:
            found = [_rounded(network, rank, seed, 2 if quick else 60) for seed in seeds]
            cells = [f"{it:.1e}" for it in (*found, mean(found))]
            merging.append(f"| {network} | {rank} | {' | '.join(cells)} |")
    scores = [_scores(seed, 1 if quick else 20) for seed in seeds]
    gates = [f"| gates {head}", f"|---|{rule}"]
    for place, what in enumerate(("pixels, mean score", "noise, mean score", "pixel above noise, percent of pairs")):
        found = [each[place] for each in scores]
        gates.append(f"| {what} | {' | '.join(f'{it:.{1 if place == 2 else 3}f}' for it in (*found, mean(found)))} |")
    return {
        "study_merging": "\n".join(merging)
        + "\n\nLargest difference of a logit before and after merging over the largest logit, 359 digits, float32.",
        "study_gates": "\n".join(gates)
        + "\n\nScores after 160 steps from one half; 512 digits, 64 pixels beside 64 normal numbers.",
    }


def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)


def _fit(
    module: LightningModule, data: TensorDataset, batch_size: int, seed: int, *callbacks: Callback, **of: int
) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    loader = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **of).fit(module, loader)  # type: ignore[arg-type]


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    training = module.training
    with torch.no_grad():
        logits: Tensor = module.eval().network(images)  # type: ignore[operator]  # it is a Classifier
    module.train(training)
    return logits


def _rounded(network: str, rank: int, seed: int, steps: int) -> float:
    torch.manual_seed(seed)
    pixels, labels = _digits()
    images = pixels.view(-1, 1, 8, 8) / 16 - 0.3
    if network == "resnet8_cifar":
        made = create(network, num_classes=10, in_channels=1)
    else:
        small = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}
        made = timm.create_model("vit_tiny_patch16_224", in_chans=1, num_classes=10, **small)
    module, seen = Classifier(made, AdamW, 0.01), Unmerged(images[-359:])
    data = TensorDataset(images[:-359], labels[:-359])
    _fit(module, data, 32, seed, LoRA(rank=rank), seen, max_steps=steps)
    return float((_logits(module, seen.images) - seen.logits).abs().max() / seen.logits.abs().max())


def _scores(seed: int, epochs: int) -> tuple[float, float, float]:
    torch.manual_seed(seed)
    pixels, labels = _digits()
    pixels = (pixels - pixels.mean(0)) / pixels.std(0).clamp(min=0.1)
    data = TensorDataset(torch.cat([pixels, torch.randn(pixels.shape)], dim=1)[:512], labels[:512])
    select = nn.Linear(128, 128, bias=False)
    nn.init.eye_(select.weight)
    select.requires_grad_(False)
    network = nn.Sequential(select, nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))
    gates = FeatureGates("network.0", gate_lr=0.03, init=0.0)
    _fit(Classifier(network, Adam, 1e-3), data, 64, seed, gates, max_epochs=epochs)
    scores = gates.scores["network.0"]
    told, noise = scores[:64][pixels.std(0) > 0.5], scores[64:]
    return told.mean().item(), noise.mean().item(), 100 * (told[:, None] > noise).float().mean().item()

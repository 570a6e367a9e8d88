"""Does an untrained convolutional guide make a deep fully connected network more like itself, and better, on digits?

The constants below were committed before the first run.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import mean

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_vision.backbones.create import create
from lightning_vision.callbacks import Guidance
from lightning_vision.callbacks.distillation.guidance import even_pairs, linear_cka
from lightning_vision.classification import ImageClassifier

from .study import in_processes, table
from .study_freezing import silent_trainer
from .study_lowdata import FewDigits

__all__ = ["SETTING", "WIDTH", "alignment", "blocks", "deep_network", "random_guide", "tables"]

SEEDS = range(5)
SHOTS, BATCH, STEPS, STOP = 20, 50, 600, 300
DEPTH, WIDTH, LR = 12, 128, 0.001  # Adam's rate of the authors' scripts
ARMS: Mapping[str, Callable[[nn.Module], list[Callback]]] = {
    "plain": lambda guide: [],
    "guided": lambda guide: [Guidance(guide, network="network")],
    f"guided for {STOP} steps": lambda guide: [Guidance(guide, network="network", stop_step=STOP)],
}
SETTING = (
    f"{SHOTS} training images a class for {STEPS} steps (Adam, rate {LR}, batches of {BATCH}); the guide is a "
    "`resnet8_cifar` with random weights, another one for each seed. SE is the standard error of the paired difference "
    "over the seeds."
)


def blocks(quick: bool) -> dict[str, str]:
    """Two tables of every arm and seed: accuracy and alignment.

    Args:
        quick: One seed, four steps.
    """
    note = f"Percent, over 359 test digits. {DEPTH} hidden layers of width {WIDTH} without norms learn {SETTING}"
    return {"study_guidance": f"{tables(partial(deep_network, DEPTH, WIDTH), list(ARMS), quick)}\n\n{note}"}


def tables(make: Callable[[], nn.Module], arms: Sequence[str], quick: bool) -> str:
    """Accuracy and alignment of each arm and seed.

    Args:
        make: Makes the network that is guided, after the seed was set.
        arms: Some of `ARMS`, the plain one first.
        quick: One seed, four steps.
    """
    seeds, steps, processes = (SEEDS[:1], 4, 0) if quick else (SEEDS, STEPS, 2)
    tasks = [(make, arm, seed, steps) for arm in arms for seed in seeds]
    outcomes = dict(zip(tasks, in_processes(_run, tasks, processes), strict=True))
    accuracy, cka = (
        {arm: [100 * outcomes[make, arm, seed, steps][which] for seed in seeds] for arm in arms} for which in (0, 1)
    )
    first, second = table(accuracy, {}, {}), table(cka, {}, {})
    return f"Accuracy:\n\n{first}\n\nCKA with the guide, mean over pairs:\n\n{second}"


def deep_network(depth: int, width: int) -> nn.Sequential:
    """Fully connected: images `(B, 1, 8, 8)` to logits `(B, 10)`."""
    hidden = [it for _ in range(depth - 1) for it in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


def random_guide(seed: int) -> nn.Module:
    """A convolutional network of the seed, which has learned nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        return create("resnet8_cifar", num_classes=10, in_channels=1)


@torch.no_grad()
def alignment(network: nn.Module, guide: nn.Module, images: Tensor) -> float:
    """CKA of the two networks' layers for images `(B, 1, 8, 8)`, the mean over the pairs that `Guidance` makes."""
    kept: list[dict[str, Tensor]] = []
    for it in (network.eval(), guide.eval()):
        layers = {path: part for path, part in it.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))}
        put = dict[str, Tensor]()
        with ExitStack() as stack:
            for path, layer in list(layers.items())[:-1]:
                keep = partial(_keep, put, path)
                stack.callback(layer.register_forward_hook(keep).remove)
            it(images)
        kept.append(put)
    ours, theirs = kept
    return mean(float(linear_cka(ours[a], theirs[b])) for a, b in even_pairs(list(ours), list(theirs)))


def _keep(put: dict[str, Tensor], path: str, module: nn.Module, args: object, output: Tensor) -> None:
    put[path] = output


def _run(make: Callable[[], nn.Module], arm: str, seed: int, steps: int) -> tuple[float, float]:
    """Accuracy and alignment on test digits, fractions."""
    torch.manual_seed(seed)
    module: LightningModule = ImageClassifier(
        make(), num_classes=10, in_channels=1, optimizer=partial(torch.optim.Adam, lr=LR)
    )
    digits, guide = FewDigits(batch_size=BATCH, seed=seed, shots=SHOTS), random_guide(seed)
    trainer = silent_trainer(steps, *ARMS[arm](guide))
    trainer.fit(module, datamodule=digits)
    (scores,) = trainer.test(module, datamodule=digits, verbose=False)
    images = torch.cat([_images(digits, batch) for batch in digits.test_dataloader()])
    return scores["test/acc"], alignment(module.get_submodule("network"), guide, images)


def _images(digits: FewDigits, batch: list[Tensor]) -> Tensor:
    """As the module sees them."""
    images: Tensor = digits.on_after_batch_transfer(batch, 0)[0]
    return images

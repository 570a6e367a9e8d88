"""MixUp and CutMix in a Trainer: containers, kinds of targets, compiled modules, SAM, what is left untouched."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.callbacks import GeodesicMix, IntraClusterMixup, RandomMix, RegMixup
from lightning_vision.callbacks.mixing.cutmix import CutMix
from lightning_vision.callbacks.mixing.mixup import MixUp
from lightning_vision.callbacks.sharpness.sam import SAM
from support.compare import distance
from support.data import labelled_images, plain_loader
from support.modules import DictBatches, Plain

METHODS = [MixUp, CutMix]
TWO_EPOCHS = {"max_epochs": 2}


def weights(module: Plain) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): value.clone() for name, value in module.state_dict().items()}


class Reading(Plain):
    """Keeps what its training step was given."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((batch[0].clone(), batch[1].clone()))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_a_batch_is_mixed_where_its_first_draw_is_below_prob(
    method: type[MixUp | CutMix], prob: float, fit: Callable[..., Any]
) -> None:
    module = Reading()
    data = labelled_images(800)
    # Of 16 samples no permutation of these draws leaves all, and among 16 boxes one has pixels.
    fit(module, [method(alpha=1.0, prob=prob, per_sample=True)], DataLoader(data, batch_size=16), max_epochs=1)
    mixed = [not torch.equal(image, data.tensors[0][16 * n : 16 * n + 16]) for n, (image, _) in enumerate(module.seen)]

    assert mixed == [np.random.default_rng((0, 0, n)).random() < prob for n in range(50)]


@pytest.mark.parametrize("method", METHODS)
def test_labels_stay_integers_and_the_loaders_images_untouched(
    method: type[MixUp | CutMix], fit: Callable[..., Any]
) -> None:
    module, data = Reading(), labelled_images(30)
    image, target = (tensor.clone() for tensor in data.tensors)
    batches = [[image[:10], target[:10]], [image[10:], target[10:]]]  # the same tensors in every epoch
    fit(module, [method(alpha=1.0, per_sample=True)], DataLoader(batches, batch_size=None), **TWO_EPOCHS)

    assert [label.tolist() for _, label in module.seen] == 2 * [target[:10].tolist(), target[10:].tolist()]
    assert torch.equal(image, data.tensors[0]) and torch.equal(target, data.tensors[1])
    assert not any(torch.equal(seen, mixed[0]) for (seen, _), mixed in zip(module.seen, 2 * batches, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_dict_batches_train_as_lists_do(method: type[MixUp | CutMix], fit: Callable[..., Any]) -> None:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        image, target = zip(*samples, strict=True)
        return {"image": torch.stack(image), "target": torch.stack(target)}

    plain, dicts = Plain(dropout=0.0), DictBatches(dropout=0.0)
    dicts.load_state_dict(plain.state_dict())
    fit(plain, [method(alpha=1.0)], plain_loader(29), **TWO_EPOCHS)
    fit(dicts, [method(alpha=1.0)], plain_loader(29, collate_fn=collate), **TWO_EPOCHS)

    assert distance(weights(dicts), weights(plain)) == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("whole", [False, True], ids=["network", "module"])
def test_a_compiled_module_trains_as_the_plain_one(
    method: type[MixUp | CutMix], whole: bool, fit: Callable[..., Any], compiler: None
) -> None:
    plain = Plain(dropout=0.0)
    compiled = deepcopy(plain)
    short = {"max_epochs": 1, "limit_train_batches": 4}  # of one shape: each further one is traced anew
    if whole:
        fit(torch.compile(compiled, backend="eager"), [method(alpha=1.0)], plain_loader(29), **short)
    else:
        compiled.network = torch.compile(compiled.network, backend="eager")
        fit(compiled, [method(alpha=1.0)], plain_loader(29), **short)
    fit(plain, [method(alpha=1.0)], plain_loader(29), **short)

    assert distance(weights(compiled), weights(plain)) == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_soft_targets_sum_to_one_and_train_as_the_mixed_loss_does(
    method: type[MixUp | CutMix], per_sample: bool, fit: Callable[..., Any]
) -> None:
    """Cross entropy is linear in the target, so the losses differ by rounding; 1e-5 leaves room for ten steps of it."""
    soft = Reading()
    mixed = deepcopy(soft)
    settings: dict[str, Any] = {"alpha": 1.0, "per_sample": per_sample}
    fit(soft, [method(targets="soft", num_classes=10, **settings)], plain_loader(29), **TWO_EPOCHS)
    fit(mixed, [method(**settings)], plain_loader(29), **TWO_EPOCHS)

    assert all(target.shape == (len(image), 10) and target.dtype == torch.float32 for image, target in soft.seen)
    assert all(torch.allclose(target.sum(1), torch.ones(len(target))) for _, target in soft.seen)
    assert distance(weights(soft), weights(mixed)) < 1e-5


@pytest.mark.parametrize("per_sample", [False, True])
def test_sampled_targets_have_the_mixed_label_as_their_mean(per_sample: bool) -> None:
    """A label is the own one with probability lam, so E L(z, label) = lam L(z, own) + (1 - lam) L(z, partner's) for any
    L. Image i holds the number of its label, so after MixUp it holds lam own + (1 - lam) partner's, the mean of the
    label as a number; what is left has mean 0 and variance lam (1 - lam) (own - partner's)^2. Over 400 batches with a
    fixed seed the sum stays within four standard deviations.
    """
    images, labels = torch.arange(16.0).view(16, 1, 1, 1), torch.arange(16)
    mixup = MixUp(alpha=1.0, per_sample=per_sample, targets="sampled")
    total = variance = 0.0
    for seed in range(400):
        mixed, drawn = mixup.change([images, labels], np.random.default_rng(seed))
        mean = mixed.flatten().double()
        total += float((drawn - mean).sum())
        partner = drawn != labels
        # (own - mean)(mean - partner's) is lam (1 - lam) (own - partner's)^2; it is seen where the partner's was drawn.
        variance += float(((labels - mean) * (mean - drawn))[partner].sum())
        assert drawn.dtype == torch.int64

    assert variance > 1000
    assert abs(total) < 4 * math.sqrt(2 * variance)


@pytest.mark.parametrize("per_sample", [False, True])
def test_sam_sees_the_same_mix_in_both_passes(per_sample: bool, fit: Callable[..., Any]) -> None:
    ours = Plain(dropout=0.0)
    theirs = deepcopy(ours)
    fit(ours, [SAM(rho=0.05), MixUp(alpha=1.0, per_sample=per_sample)], plain_loader(29), max_epochs=1)
    made = theirs.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for n, (image, target) in enumerate(plain_loader(29)):
        random = np.random.default_rng((0, 0, n))
        random.random()  # whether the batch is mixed
        partner = torch.from_numpy(random.permutation(len(image)))
        lam = torch.from_numpy(random.beta(1.0, 1.0, len(image) if per_sample else 1)).float()
        mixed = torch.lerp(image[partner], image, lam.view(-1, 1, 1, 1))

        def backward(mixed: Tensor, target: Tensor, partner: Tensor, lam: Tensor) -> list[Tensor]:
            optimizer.zero_grad()
            logits = theirs(mixed)
            if per_sample:
                own, other = (F.cross_entropy(logits, it, reduction="none") for it in (target, target[partner]))
                (lam * own + (1 - lam) * other).mean().backward()
            else:
                own, other = (F.cross_entropy(logits, it) for it in (target, target[partner]))
                (float(lam) * own + (1 - float(lam)) * other).backward()
            return [parameter.grad.clone() for parameter in theirs.parameters()]

        gradients = backward(mixed, target, partner, lam)
        kept, buffers = weights(theirs), deepcopy(dict(theirs.named_buffers()))
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
                parameter.add_(gradient * (0.05 / norm))
        backward(mixed, target, partner, lam)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                parameter.copy_(kept[name])
            for name, buffer in theirs.named_buffers():
                buffer.copy_(buffers[name])
        optimizer.step()
        scheduler.step()

    # The ascent's norm may be summed in another order; the equality of SAM itself is proved with SAM.
    assert distance(weights(ours), weights(theirs)) < 1e-6
    assert distance(weights(theirs), weights(Plain(dropout=0.0))) > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision_are_mixed_in_it(
    method: type[MixUp | CutMix], dtype: torch.dtype, fit: Callable[..., Any]
) -> None:
    class Half(Reading):
        def forward(self, image: Tensor) -> Tensor:
            assert image.dtype == dtype
            return super().forward(image.float())

    image, target = labelled_images(12).tensors
    image = image.to(dtype)
    module, before = Half(), Half()
    before.load_state_dict(module.state_dict())
    fit(module, [method(alpha=1.0, per_sample=True)], DataLoader([[image, target]], batch_size=None), max_epochs=1)
    random = np.random.default_rng((0, 0, 0))
    random.random()  # whether the batch is mixed
    partner, lam = torch.from_numpy(random.permutation(12)), torch.from_numpy(random.beta(1.0, 1.0, 12))
    if method is MixUp:
        expected = torch.stack([torch.lerp(image[j], image[i], lam[i].to(dtype)) for i, j in enumerate(partner)])
    else:
        half = (4 * (1 - lam).sqrt()).long()[:, None]
        centre = torch.from_numpy(random.integers((8, 8), size=(12, 2)))
        expected = image.clone()
        for i, (start, end) in enumerate(zip((centre - half).clamp(min=0), (centre + half).clamp(max=8), strict=True)):
            box = (slice(None), slice(start[0], end[0]), slice(start[1], end[1]))
            expected[i][box] = image[partner[i]][box]

    assert module.seen[0][0].dtype == dtype
    assert torch.equal(module.seen[0][0], expected)
    assert distance(weights(module), weights(before)) > 1e-3


def test_cutmix_mixes_uint8_and_others_refuse_it_by_their_names(fit: Callable[..., Any]) -> None:
    class Normalising(Reading):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image / 255)

    image, target = (labelled_images(12).tensors[0] * 20).clamp(0, 255).to(torch.uint8), torch.arange(12) % 10
    module, loader = Normalising(), DataLoader([[image, target]], batch_size=None)
    fit(module, [CutMix()], loader, max_epochs=1)

    assert module.seen[0][0].dtype == torch.uint8
    for mixer, named in (
        (MixUp(), "MixUp"),
        (RegMixup(), "RegMixup"),
        (RandomMix([MixUp()]), "RandomMix: one of its mixers refuses: MixUp"),
        (GeodesicMix(), "GeodesicMix"),
        (IntraClusterMixup(n_clusters=2), "IntraClusterMixup"),
    ):
        with pytest.raises(ValueError, match=rf"^{named}: the images are torch\.uint8, which cannot hold a mixture; "):
            fit(Normalising(), [mixer], loader, max_epochs=1)

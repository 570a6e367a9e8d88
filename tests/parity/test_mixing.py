"""MixUp and CutMix equal torchvision, timm and kornia when the random numbers of those are handed to our functions."""

from collections.abc import Callable
from typing import Any

import kornia.augmentation as kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lightning_vision.callbacks.mixing.cutmix import CutMix, CutMixDraw, cutmix_box, cutmix_images, cutmix_lam
from lightning_vision.callbacks.mixing.mixup import MixUp, MixUpDraw, mixup_images
from support.modules import Plain
from support.trainers import quiet_trainer

SIZES = [(8, 8), (32, 32), (7, 10), (5, 12)]


def batch(count: int = 6, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, *size, generator=generator), torch.randint(10, (count,), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_torchvisions(seed: int) -> None:
    image, label = batch()
    theirs = v2.MixUp(alpha=1.0, num_classes=10)
    torch.manual_seed(seed)
    mixed, _ = theirs(image, label)
    torch.manual_seed(seed)
    lam = theirs.make_params([image])["lam"]

    torch.testing.assert_close(mixup_images(image, torch.arange(6).roll(1), lam), mixed, rtol=0, atol=2e-7)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cutmix_is_torchvisions(size: tuple[int, int]) -> None:
    image, label = batch(6, size)
    theirs = v2.CutMix(alpha=1.0, num_classes=10)
    for seed in range(50):
        torch.manual_seed(seed)
        mixed, _ = theirs(image, label)
        torch.manual_seed(seed)
        params = theirs.make_params([image])
        torch.manual_seed(seed)
        lam, column, row = float(theirs._dist.sample(())), torch.randint(size[1], (1,)), torch.randint(size[0], (1,))
        box = cutmix_box(torch.tensor([lam]).double(), torch.stack([row, column], dim=1), size)

        assert box[0, [2, 0, 3, 1]].tolist() == list(params["box"])
        assert float(cutmix_lam(box, size)) == pytest.approx(params["lam_adjusted"], abs=1e-15)
        assert torch.equal(cutmix_images(image, torch.arange(6).roll(1), box), mixed)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_mixup_is_timms(mode: str) -> None:
    image, label = batch()
    theirs = Mixup(mixup_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=10)
    np.random.seed(0)
    mixed, _ = theirs(image.clone(), label)
    np.random.seed(0)
    lam = theirs._params_per_batch()[0] if mode == "batch" else torch.from_numpy(theirs._params_per_elem(6)[0])

    torch.testing.assert_close(mixup_images(image, torch.arange(6).flip(0), lam), mixed, rtol=0, atol=2e-7)


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cutmix_is_timms_but_for_the_rounding_of_sides(mode: str, size: tuple[int, int]) -> None:
    """timm's boxes may have odd sides, so they are handed over whole; areas and pixels must be the same."""
    image, label = batch(6, size)
    theirs = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=10)
    np.random.seed(0)
    mixed, soft = theirs(image.clone(), label)
    np.random.seed(0)
    drawn = [theirs._params_per_batch()[0]] if mode == "batch" else theirs._params_per_elem(6)[0]
    boxes, lams = zip(*(cutmix_bbox_and_lam(image.shape, lam) for lam in drawn), strict=True)
    box = torch.tensor(np.array(boxes)).long()

    assert cutmix_lam(box, size).tolist() == pytest.approx(list(lams), abs=1e-15)
    assert torch.equal(cutmix_images(image, torch.arange(6).flip(0), box), mixed)
    assert soft.shape == (6, 10)


def test_mixup_is_kornias_whose_lambda_is_the_partners_share() -> None:
    image, label = batch()
    theirs = kornia.RandomMixUpV2(p=1.0, data_keys=["input", "class"])
    mixed, _ = theirs(image, label)
    lam = theirs._params["mixup_lambdas"]

    torch.testing.assert_close(mixup_images(image, theirs._params["mixup_pairs"], 1 - lam), mixed, rtol=0, atol=2e-7)


@pytest.mark.parametrize("same_on_batch", [True, False])
def test_cutmix_is_kornias(same_on_batch: bool) -> None:
    image, label = batch(6, (12, 12))
    settings: dict[str, Any] = {"same_on_batch": same_on_batch, "use_correct_lambda": True}
    theirs = kornia.RandomCutMixV2(p=1.0, data_keys=["input", "class"], **settings)
    mixed, _ = theirs(image, label)
    corners = theirs._params["crop_src"][0].long()
    # Corners clockwise from top left, each as column and row, the last of them inside the box.
    box = torch.stack([corners[:, 0, 1], corners[:, 2, 1] + 1, corners[:, 0, 0], corners[:, 2, 0] + 1], dim=1)

    assert torch.equal(cutmix_images(image, theirs._params["mix_pairs"][0], box), mixed)


class Given(MixUp):
    """MixUp with the draw of somebody else."""

    def __init__(self, given: MixUpDraw) -> None:
        super().__init__(alpha=1.0, targets="soft", num_classes=10)
        self.given = given

    def draw(self, shape: torch.Size, random: np.random.Generator) -> MixUpDraw:
        return self.given


class GivenBox(CutMix):
    """CutMix with the draw of somebody else."""

    def __init__(self, given: CutMixDraw) -> None:
        super().__init__(alpha=1.0, targets="soft", num_classes=10)
        self.given = given

    def draw(self, shape: torch.Size, random: np.random.Generator) -> CutMixDraw:
        return self.given


class Reading(Plain):
    """Keeps the labels of its last training step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.label = batch[1]
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.fixture
def soft() -> Callable[[MixUp | CutMix, Tensor, Tensor], Tensor]:
    """`soft(method, image, label)`: the labels `(B, 10)` that a training step is given."""

    def read(method: MixUp | CutMix, image: Tensor, label: Tensor) -> Tensor:
        module = Reading()
        trainer = quiet_trainer(callbacks=[method], max_steps=1)
        trainer.fit(module, DataLoader([[image, label]], batch_size=None))
        return module.label

    return read


def test_soft_targets_are_torchvisions(soft: Callable[..., Tensor]) -> None:
    image, label = batch()
    partner = torch.arange(6).roll(1)
    mixup, cutmix = v2.MixUp(alpha=1.0, num_classes=10), v2.CutMix(alpha=1.0, num_classes=10)
    torch.manual_seed(0)
    _, mixed = mixup(image, label)
    torch.manual_seed(0)
    lam = mixup.make_params([image])["lam"]
    torch.manual_seed(0)
    _, cut = cutmix(image, label)
    torch.manual_seed(0)
    left, top, right, bottom = cutmix.make_params([image])["box"]
    box = torch.tensor([[top, bottom, left, right]])
    blended = soft(Given(MixUpDraw(partner, torch.tensor([lam]).double())), image, label)
    pasted = soft(GivenBox(CutMixDraw(partner, box, cutmix_lam(box, (8, 8)))), image, label)

    torch.testing.assert_close(blended, mixed, rtol=0, atol=1e-7)
    torch.testing.assert_close(pasted, cut, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_soft_targets_are_timms(mode: str, soft: Callable[..., Tensor]) -> None:
    image, label = batch()
    theirs = Mixup(mixup_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=10)
    np.random.seed(0)
    _, mixed = theirs(image.clone(), label)
    np.random.seed(0)
    lam = np.atleast_1d(theirs._params_per_batch()[0] if mode == "batch" else theirs._params_per_elem(6)[0])
    given = MixUpDraw(torch.arange(6).flip(0), torch.from_numpy(lam).double())

    torch.testing.assert_close(soft(Given(given), image, label), mixed, rtol=0, atol=1e-7)

"""What is read of each training sample: the inputs of the last linear layer, by position, without a trace."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_vision.callbacks.hooks._last_inputs import last_inputs
from lightning_vision.callbacks.hooks.judged import Judged
from lightning_vision.callbacks.hooks.targets import Mix
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

SAMPLES = 30


class Remembers(Judged):
    """Keeps features and labels of every sample, and mixes nothing."""

    neutral = "it is a toy"

    def __init__(self, every: int = 1) -> None:
        common = {"seed": 0, "image_key": "image", "target_key": "target", "name": None}
        super().__init__(network="network", prob=1.0, targets="loss", num_classes=None, **common)
        self.every, self.looks = every, 0
        self.met: list[Tensor] = []

    def judges_in(self, epoch: int) -> bool:
        return epoch % self.every == 0

    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        self.looks += 1
        return torch.cat([labels[:, None].float(), features], 1)

    def draw(self, shape: torch.Size, random: np.random.Generator) -> None:
        assert self.here is not None
        self.met.append(self.here)

    def mix(self, images: Tensor, draw: Any) -> Mix:
        return Mix(images, torch.arange(len(images)), 1.0)


class Watched(Plain):
    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.batches: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch[1].clone())
        return super().training_step(batch, batch_idx)


def test_features_are_what_the_last_linear_layer_is_given() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    images = torch.randn(4, 1, 8, 8)

    assert torch.equal(last_inputs("it", network, images), network[:3](images))
    # A convolution classifies.
    flat = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    assert torch.equal(last_inputs("it", flat, images), flat(images))
    with pytest.raises(
        ValueError, match=r"^it: Conv2d answered \(4, 3, 1, 1\) to 4 images; name with network= the part"
    ):
        last_inputs("it", nn.Conv2d(1, 3, 8), images)
    assert not any(part._forward_pre_hooks for part in network.modules())


@pytest.mark.parametrize("loader", [lambda: plain_loader(SAMPLES, shuffle=True), lambda: ResumableLoader(
    labelled_images(SAMPLES), 6)], ids=["torch's", "one's own"])  # fmt: skip
def test_each_batch_meets_what_was_found_of_its_own_samples(loader: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    module, callback = Watched(), Remembers(every=2)
    quiet_trainer(max_epochs=3, callbacks=[callback], limit_val_batches=0).fit(module, loader())
    labels = labelled_images(SAMPLES).tensors[1]

    assert callback.judged is not None
    assert torch.equal(callback.judged[:, 0].long(), labels)
    assert callback.judged.shape == (SAMPLES, 37)
    assert [it[:, 0].tolist() for it in callback.met] == [it.tolist() for it in module.batches]
    assert callback.looks == 2


def test_features_are_those_of_evaluation_now() -> None:
    torch.manual_seed(0)
    module, callback = Plain(), Remembers(every=9)
    network = module.network[:5].eval()
    images = labelled_images(SAMPLES).tensors[0]
    with torch.no_grad():
        expected = network(images)
    quiet_trainer(max_epochs=1, callbacks=[callback], limit_val_batches=0).fit(module, plain_loader(SAMPLES))

    assert callback.judged is not None
    assert torch.allclose(callback.judged[:, 1:], expected, atol=1e-6)


def test_resumed_inside_an_epoch_it_does_not_look_again(tmp_path: Any) -> None:
    writer = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=7)
    options = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": True}
    first, again = Remembers(), Remembers()
    quiet_trainer(callbacks=[first, writer], **options).fit(Watched(), ResumableLoader(labelled_images(SAMPLES), 6))
    quiet_trainer(callbacks=[again, writer], **options).fit(
        Watched(), ResumableLoader(labelled_images(SAMPLES), 6), ckpt_path=tmp_path / "step=7.ckpt", weights_only=True
    )

    assert (first.looks, again.looks) == (2, 0)
    assert torch.equal(torch.cat(first.met[7:]), torch.cat(again.met))


def judged_on(rank: int = 0) -> list[list[float]]:
    torch.manual_seed(0)
    callback = Remembers()
    loader = plain_loader(SAMPLES)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"} if rank else {}
    quiet_trainer(max_epochs=1, callbacks=[callback], limit_val_batches=0, **options).fit(Plain(0.0), loader)
    assert callback.judged is not None
    return callback.judged.tolist()


def test_two_ranks_find_what_one_finds(two_ranks: Callable[..., list[Any]]) -> None:
    mine, theirs = two_ranks(judged_on, 1)

    assert mine == theirs
    assert torch.allclose(torch.tensor(mine), torch.tensor(judged_on()), atol=1e-6)

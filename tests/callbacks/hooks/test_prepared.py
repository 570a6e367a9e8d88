"""What a mixing method makes of the training images: read once, without augmentation and without a trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_vision.callbacks import IntraClusterMixup
from lightning_vision.datamodules import Digits
from support.compare import distance, seeded
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class Seen(Plain):
    """Keeps the sum of what its steps were given, and where the global stream is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch[0].clone())
        return super().training_step(batch, batch_idx)


class Width(nn.Module):
    """Mean and width of each image; counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.asked += len(images)
        flat = images.flatten(1) * self.scale
        return torch.stack([flat.mean(1), flat.std(1)], 1)


def fit(callback: IntraClusterMixup | None, **options: Any) -> tuple[Seen, Trainer]:
    module = seeded(Seen)
    trainer = quiet_trainer(callbacks=[callback] if callback else [], **{"max_epochs": 1} | options)
    trainer.fit(module, plain_loader(30, shuffle=True))
    return module, trainer


def test_reading_moves_no_loader_and_no_random_stream() -> None:
    # As many clusters as images: nothing is mixed.
    torch.manual_seed(3)
    plain, _ = fit(None)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    ours, _ = fit(IntraClusterMixup(n_clusters=30, targets="sampled"))

    assert all(torch.equal(*pair) for pair in zip(plain.seen, ours.seen, strict=True))
    assert distance(plain.state_dict(), ours.state_dict()) == 0.0
    assert torch.equal(torch.get_rng_state(), after)


def test_training_images_are_read_without_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    keep = IntraClusterMixup.prepare
    monkeypatch.setattr(IntraClusterMixup, "prepare", lambda self, rows: found.append(rows) or keep(self, rows))
    data = Digits(shift=2, batch_size=400)
    quiet_trainer(callbacks=[IntraClusterMixup(n_clusters=2)], max_steps=1, max_epochs=-1).fit(Plain(), datamodule=data)
    mean, std = (torch.tensor(it) for it in data.statistics)
    expected = (torch.as_tensor(data.all_train_images.images).float().view(-1, 64) / 255 - mean) / std

    torch.testing.assert_close(found[0].sum(1).sort().values, expected.sum(1).sort().values)
    torch.testing.assert_close(found[0].square().sum(1).sort().values, expected.square().sum(1).sort().values)


def test_a_network_of_ones_own_is_asked_and_given_back() -> None:
    network = Width().train()
    callback = IntraClusterMixup(n_clusters=3, features=network, max_samples=12)
    fit(callback)

    assert network.asked == 12 + 30
    assert network.training and network.scale.requires_grad
    assert callback.prepared is not None and callback.prepared.shape == (3, 2)


def test_a_resumed_run_reads_nothing_and_goes_on_with_what_was_made(tmp_path: Path) -> None:
    first = IntraClusterMixup(n_clusters=3)
    _, trainer = fit(first)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    network = Width()
    second = IntraClusterMixup(n_clusters=3, features=None)
    second.prepare = lambda features: pytest.fail("was read again")  # type: ignore[method-assign]
    trainer = quiet_trainer(callbacks=[second], max_epochs=2)
    trainer.fit(seeded(Seen), plain_loader(30, shuffle=True), ckpt_path=tmp_path / "one.ckpt")

    assert first.prepared is not None and second.prepared is not None
    assert torch.equal(first.prepared, second.prepared)
    assert network.asked == 0


def test_a_network_that_shares_weights_with_the_module_is_refused() -> None:
    module = Plain()
    trainer = quiet_trainer(callbacks=[IntraClusterMixup(features=module.network)], max_epochs=1)
    with pytest.raises(ValueError, match="shares weights with Plain"):
        trainer.fit(module, plain_loader(30))


def test_features_that_are_not_finite_are_refused() -> None:
    data = labelled_images(12)
    data.tensors[0][3] = float("nan")
    trainer = quiet_trainer(callbacks=[IntraClusterMixup(n_clusters=2)], max_epochs=1)
    with pytest.raises(ValueError, match="some features of the training images are not finite"):
        trainer.fit(Plain(), torch.utils.data.DataLoader(data, batch_size=6))

"""Shared by the tests of the networks: a short training on scikit-learn's digits, on one thread."""

from collections.abc import Callable, Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy


@pytest.fixture
def fit_digits() -> Iterator[Callable[..., tuple[float, float]]]:
    """A function that trains a network and returns its accuracy on 397 held-out digits and its last training loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    targets = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, targets = images[order], targets[order]

    def fit(
        build: Callable[[], nn.Module], epochs: int, lr: float, train: slice = slice(397, None)
    ) -> tuple[float, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build()
            optimizer = torch.optim.AdamW(network.parameters(), lr)
            x, y = images[train], targets[train]
            batches = (len(x) + 63) // 64
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * batches)
            for _ in range(epochs):
                for batch in torch.randperm(len(x)).split(64):
                    loss = cross_entropy(network(x[batch]), y[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        network.eval()
        with torch.no_grad():
            accuracy = (network(images[:397]).argmax(1) == targets[:397]).float().mean().item()
        return accuracy, loss.item()

    yield fit
    torch.set_num_threads(threads)

"""A small network that reads digits, trained once."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


@pytest.fixture(scope="session")
def digits():
    """All of scikit-learn's digits, `(1797, 1, 8, 8)` from 0 to 1, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)


@pytest.fixture(scope="session")
def digits_network(digits):
    """Two convolutions and a head, some seconds of Adam, in training mode."""
    images, labels = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        adam = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(120):
            batch = torch.randint(1500, (64,))
            adam.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            adam.step()
    adam.zero_grad()
    with torch.no_grad():
        assert (network(images[1500:]).argmax(1) == labels[1500:]).float().mean() > 0.85
    return network

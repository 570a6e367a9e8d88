"""Each of the global random streams continues where its state was read; reading draws nothing."""

import random

import numpy as np
import pytest
import torch

from lightning_vision.callbacks.resume._random_streams import read_streams, write_streams

CPU = torch.device("cpu")

DRAWS = {
    "python": random.random,
    # the second normal number of a pair is kept until it is asked for
    "python, second of a pair": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.rand()),
    "numpy, second of a pair": lambda: float(np.random.randn()),
    "torch": lambda: torch.rand(()).item(),
    "torch, normal": lambda: torch.randn(()).item(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_stream_continues_where_it_was_read(draw):
    for _ in range(5):
        draw()
    state = read_streams(CPU)
    straight = [draw() for _ in range(3)]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(99)
    write_streams(state, CPU)

    assert [draw() for _ in range(3)] == straight


def test_the_state_is_plain_data(tmp_path):
    state = read_streams(CPU)
    torch.save(state, tmp_path / "state.pt")
    write_streams(torch.load(tmp_path / "state.pt", weights_only=True), CPU)

    assert random.getstate()[1] == tuple(state["python"]["words"].tolist())

"""Neural Clamping on an over-trained network of the digits: what row 245 asks for, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from lightning_vision.classification.calibration import Calibration
from lightning_vision.classification.clamping import clamping_loss, neural_clamping
from lightning_vision.classification.reliability_bins import reliability
from lightning_vision.classification.temperature import fit_temperature
from lightning_vision.datamodules import Digits

Batches = list[tuple[Tensor, Tensor]]


def batches_of(split: str) -> Batches:
    """Normalised digits of a split, in batches of 60."""
    data = Digits(batch_size=60)
    loader = getattr(data, f"{split}_dataloader")()
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.fixture(scope="module")
def over_trained() -> nn.Module:
    """A wide MLP that has learned 200 digits by heart."""
    generator = torch.Generator().manual_seed(0)
    image, target = (torch.cat(part)[:200] for part in zip(*batches_of("train"), strict=True))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(network(image), target).backward()
        optimizer.step()
    return network.eval()


def outputs(network: nn.Module, batches: Batches, calibration: Calibration | None = None) -> tuple[Tensor, Tensor]:
    found = calibration or Calibration()
    with torch.no_grad():
        logits = torch.cat([found(network(found.perturb(image))) for image, _ in batches])
    return logits, torch.cat([target for _, target in batches])


def ece(network: nn.Module, batches: Batches, calibration: Calibration | None = None) -> float:
    logits, target = outputs(network, batches, calibration)
    return reliability(logits.softmax(1), target).ece


def test_row_245_with_the_shift_frozen_at_none_it_is_temperature_scaling(over_trained: nn.Module) -> None:
    """From a temperature of 1, far from the minimum, which scipy finds by itself."""
    batches = batches_of("val")
    logits, target = outputs(over_trained, batches)
    found = neural_clamping(
        over_trained, batches, lr=0.05, epochs=40, focal_gamma=0.0, temperature=1.0, learn_delta=False
    )
    scaled = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits.double() / math.exp(log_t), target)),
        bounds=(-5, 5),
        method="bounded",
    )
    best = Calibration(math.exp(scaled.x))

    assert found.delta is not None
    assert not found.delta.any()
    assert found.temperature == pytest.approx(best.temperature, rel=0.02)
    assert found.temperature > 1.5
    assert clamping_loss(over_trained, batches, found, 0.0) == pytest.approx(scaled.fun, rel=1e-4)


def test_row_245_started_at_temperature_scaling_the_loss_only_falls(over_trained: nn.Module) -> None:
    batches = batches_of("val")
    start = Calibration(fit_temperature(*outputs(over_trained, batches)))
    for gamma, penalty in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.01)):
        found = neural_clamping(over_trained, batches, 0.01, 5, gamma, penalty)
        losses = [clamping_loss(over_trained, batches, it, gamma, penalty) for it in (start, found)]

        assert losses[1] <= losses[0]
        assert found.delta is not None
        assert penalty == 1.0 or float(found.delta.abs().max()) > 1e-3


def test_row_245_a_start_of_shift_and_temperature_is_where_it_starts(over_trained: nn.Module) -> None:
    batches, delta = batches_of("val"), torch.linspace(-0.1, 0.1, 64).view(1, 8, 8)
    start = neural_clamping(over_trained, batches, epochs=0, temperature=1.5, delta=delta)
    found = neural_clamping(over_trained, batches, epochs=1, temperature=1.5, delta=delta)

    assert start.temperature == pytest.approx(1.5)
    assert start.delta is not None
    assert start.delta.equal(delta)
    assert clamping_loss(over_trained, batches, found) < clamping_loss(over_trained, batches, start)


def test_a_rate_that_only_does_damage_returns_the_start(over_trained: nn.Module) -> None:
    batches = batches_of("val")
    found = neural_clamping(over_trained, batches, lr=50.0, epochs=2)

    assert found.delta is not None
    assert not found.delta.any()
    assert found.temperature == fit_temperature(*outputs(over_trained, batches))


def test_row_245_the_calibration_error_of_an_over_trained_network_falls(over_trained: nn.Module) -> None:
    """Learned on the validation digits, measured on the test digits."""
    found = neural_clamping(over_trained, batches_of("val"), lr=0.005, epochs=10, focal_gamma=0.0, penalty=0.1)
    test = batches_of("test")

    assert ece(over_trained, test, found) < 0.7 * ece(over_trained, test)


def test_the_loss_by_hand(over_trained: nn.Module) -> None:
    batches = batches_of("val")[:2]
    delta = torch.full((1, 8, 8), 0.1)
    logits, target = outputs(over_trained, [(image + delta, target) for image, target in batches])
    p = (logits / 2).softmax(1).gather(1, target[:, None])
    expected = float((-((1 - p) ** 3) * p.log()).mean()) + 0.25 * 64 * 0.01

    assert clamping_loss(over_trained, batches, Calibration(2.0, delta), 3.0, 0.25) == pytest.approx(expected, rel=1e-5)


def test_the_network_keeps_its_weights_and_gets_no_gradients(over_trained: nn.Module) -> None:
    before = [parameter.clone() for parameter in over_trained.parameters()]
    for parameter in over_trained.parameters():
        parameter.grad = None
    stream = torch.get_rng_state()
    neural_clamping(over_trained, batches_of("val"), epochs=1)

    assert all(torch.equal(*pair) for pair in zip(over_trained.parameters(), before, strict=True))
    assert [parameter.grad for parameter in over_trained.parameters()] == [None] * 4
    assert torch.equal(torch.get_rng_state(), stream)


def test_what_it_cannot_do_is_refused(over_trained: nn.Module) -> None:
    batches = batches_of("val")

    with pytest.raises(
        ValueError, match=r"^neural_clamping got lr=0.0, epochs=20, .*; lr must be above 0 and the others"
    ):
        neural_clamping(over_trained, batches, lr=0.0)
    with pytest.raises(ValueError, match=r"^neural_clamping got lr=0.001, .*penalty=-1.*; lr must be above 0"):
        neural_clamping(over_trained, batches, penalty=-1)
    with pytest.raises(ValueError, match=r"^neural_clamping got no batches; give a list or a loader"):
        neural_clamping(over_trained, [])
    with pytest.raises(ValueError, match=r"^neural_clamping takes one label an image; with several use temperature"):
        neural_clamping(over_trained, [(image, F.one_hot(target)) for image, target in batches])

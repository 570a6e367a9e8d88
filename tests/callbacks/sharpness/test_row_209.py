"""Sharpness-Aware Minimization does what its paper's equations and figures say, seen through a Trainer in float64."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import SAM
from support.compare import distance, seeded
from support.modules import Plain
from support.sam_by_hand import fit, train

GENERATOR = torch.Generator().manual_seed(0)
ROOT = torch.randn(5, 5, dtype=torch.double, generator=GENERATOR)
HESSIAN = ROOT @ ROOT.T
START = torch.randn(5, dtype=torch.double, generator=GENERATOR)


def quadratic(weight):
    return 0.5 * weight @ HESSIAN @ weight


def two_valleys(weight):
    """A sharp valley at -1, with curvature 400 and the lower floor, and a flat one at 1, with curvature 2."""
    (x,) = weight
    sharp, flat = 200 * (x + 1) ** 2, (x - 1) ** 2 + 0.05
    return torch.where(x < -1, sharp, torch.minimum(sharp, flat))


class Landscape(LightningModule):
    """Gradient descent on a function of one vector; keeps where it was and where it was asked for a gradient."""

    def __init__(self, function, start, lr):
        super().__init__()
        self.function, self.lr, self.asked = function, lr, []
        self.weight = nn.Parameter(torch.as_tensor(start, dtype=torch.double).clone())

    def training_step(self, batch):
        self.asked.append(self.weight.detach().clone())
        return self.function(self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=self.lr)


def descend(function, start, lr, steps, *callbacks):
    module = Landscape(function, start, lr)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, DataLoader(range(50)))
    return module


@pytest.mark.parametrize("accumulate", [1, 3])
def test_row_209_without_radius_it_is_the_base_optimizer(accumulate):
    runs = [fit(seeded(Plain), *it, accumulate_grad_batches=accumulate) for it in ([], [SAM(rho=0.0)])]

    assert distance(runs[0].state["weights"], runs[1].state["weights"]) == 0.0
    assert runs[0].rows == runs[1].rows
    assert distance(runs[0].state["weights"], train(seeded(Plain), None, accumulate)) == 0.0


def test_row_209_on_a_quadratic_the_step_is_the_hessian_at_the_perturbed_weights():
    rho, lr = 0.3, 0.01
    module = descend(quadratic, START, lr, 1, SAM(rho))
    slope = HESSIAN @ START
    step = -lr * HESSIAN @ (START + rho * slope / slope.norm())

    assert torch.allclose(module.weight.detach() - START, step, rtol=1e-13, atol=0)


def test_row_209_the_perturbation_has_norm_rho_and_the_weights_come_back_exactly():
    rho, lr = 0.3, 0.01
    asked = descend(quadratic, START, lr, 20, SAM(rho)).asked
    before, perturbed = asked[0::2], asked[1::2]

    assert len(before) == len(perturbed) == 20
    for here, there, following in zip(before[:-1], perturbed[:-1], before[1:], strict=True):
        assert (there - here).norm() == pytest.approx(rho, rel=1e-13)
        away = there.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(quadratic(away), away)
        # Exactly: a rounding error in what was restored would show here.
        assert torch.equal(following, torch.add(here, gradient, alpha=-lr))


@pytest.mark.parametrize("start", [-1.15, -1.05, -0.9])
def test_row_209_it_leaves_the_sharp_valley_for_the_flat_one_where_gradient_descent_stays(start):
    plain = descend(two_valleys, [start], 0.00425, 600).weight.item()
    flat = descend(two_valleys, [start], 0.00425, 600, SAM(rho=0.4)).weight.item()

    assert plain == pytest.approx(-1, abs=0.01)
    assert flat == pytest.approx(1, abs=0.02)

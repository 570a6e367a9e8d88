"""LARS and LAMB of timm as the optimizer of any module, from a config: steps by hand, and a run that is resumed."""

from typing import Any

import pytest
import torch
from timm.optim import Lamb, Lars
from torch import nn

from lightning_vision import main
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from support.trainers import quiet_trainer

LARS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4, "trust_coeff": 0.001}
CONFIG = """
model:
  optimizer:
    class_path: timm.optim.{name}
    init_args: {settings}
"""


def classifier(optimizer: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("resnet8_cifar", in_channels=1, num_classes=10, optimizer=optimizer)


def described(name: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"timm.optim.{name}", "init_args": settings}


@pytest.mark.parametrize(("name", "settings"), [("Lars", LARS), ("Lamb", {"lr": 0.005, "weight_decay": 1e-6})])
def test_a_config_names_it(name, settings, tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text(CONFIG.format(name=name, settings=settings))
    short = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary"]
    folder = ["false", "--trainer.default_root_dir", str(tmp_path)]
    found = main(["fit", "--config", "classification/digits", "--config", str(file), *short, *folder])
    assert found.metrics["train/loss_epoch"] > 0


def test_norms_and_biases_have_a_group_without_decay_that_lars_leaves_to_sgd():
    optimizer = classifier(described("Lars", **LARS)).configure_optimizers()
    assert isinstance(optimizer, Lars)
    decays = {group["weight_decay"]: {it.ndim for it in group["params"]} for group in optimizer.param_groups}
    assert decays[0.0] == {1} and min(decays[1e-4]) > 1


def stepped(optimizer: Any, steps: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=False)
    held = optimizer([layer.weight])
    for step in range(steps):
        held.zero_grad()
        layer(torch.arange(10.0).view(2, 5) + step).square().mean().backward()
        held.step()
    return layer.weight.detach()


def by_hand(rate: float, momentum: float, decay: float, coefficient: float, steps: int = 3) -> torch.Tensor:
    """You et al. 2017, arXiv:1708.03888, Algorithm 1, with the rate outside of the momentum."""
    torch.manual_seed(0)
    weight = nn.Linear(5, 4, bias=False).weight.detach().requires_grad_()
    velocity = torch.zeros_like(weight)
    for step in range(steps):
        (gradient,) = torch.autograd.grad(((torch.arange(10.0).view(2, 5) + step) @ weight.T).square().mean(), weight)
        with torch.no_grad():
            local = coefficient * weight.norm() / (gradient.norm() + decay * weight.norm())
            velocity = momentum * velocity + local * (gradient + decay * weight)
            weight -= rate * velocity
    return weight.detach()


def test_lars_is_the_papers_and_adapts_nothing_without_decay_unless_it_is_told_to():
    expected = by_hand(0.3, 0.9, 0.01, 0.02)
    torch.testing.assert_close(stepped(lambda it: Lars(it, 0.3, 0.9, 0, 0.01, trust_coeff=0.02)), expected)
    assert not torch.allclose(expected, by_hand(0.3, 0.9, 0.01, 0.01), rtol=1e-3)

    free, sgd = Lars, torch.optim.SGD
    plain = stepped(lambda it: free(it, 1e-3, 0.9, trust_coeff=0.02))
    torch.testing.assert_close(plain, stepped(lambda it: sgd(it, 1e-3, 0.9)))
    adapted = stepped(lambda it: free(it, 0.3, 0.9, trust_coeff=0.02, always_adapt=True))
    torch.testing.assert_close(adapted, by_hand(0.3, 0.9, 0.0, 0.02))


def test_lamb_without_decay_is_adam_unless_it_is_told_to_adapt():
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "max_grad_norm": None, "eps": 1e-6}
    adam = stepped(lambda it: torch.optim.Adam(it, 1e-3, eps=1e-6))
    torch.testing.assert_close(stepped(lambda it: Lamb(it, **settings)), adam, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(stepped(lambda it: Lamb(it, **settings, always_adapt=True)), adam, rtol=1e-3)


@pytest.mark.parametrize("name", ["Lars", "Lamb"])
def test_a_resumed_run_ends_where_the_straight_one_does(name, tmp_path):
    settings = LARS if name == "Lars" else {"lr": 0.005, "weight_decay": 1e-6}

    def trained(epochs: int, ckpt_path: str | None = None) -> Any:
        module = classifier(described(name, **settings))
        trainer = quiet_trainer(max_epochs=epochs, limit_train_batches=3, limit_val_batches=0)
        trainer.fit(module, datamodule=Digits(batch_size=16), ckpt_path=ckpt_path, weights_only=True)
        return trainer, module

    straight = trained(2)[1]
    file = str(tmp_path / "first.ckpt")
    trained(1)[0].save_checkpoint(file)
    resumed = trained(2, file)[1]
    assert all(torch.equal(it, straight.state_dict()[key]) for key, it in resumed.state_dict().items())

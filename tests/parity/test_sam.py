"""SAM and ASAM by pytorch-optimizer, in a loop of its own, step to the same weights."""

import pytest
import pytorch_optimizer
import torch
import torch.nn.functional as F

from lightning_vision.callbacks import SAM
from support.compare import distance, seeded
from support.modules import Plain
from support.sam_by_hand import batches_of, fit


def by_theirs(module, **settings):
    """Batch norm and dropout left out of the comparison: theirs counts statistics twice and draws masks anew."""
    optimizer = pytorch_optimizer.SAM(
        module.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3, use_gc=False, **settings
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base_optimizer, 5, 0.8)
    for image, target in batches_of():

        def closure(image=image, target=target):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(image), target)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)
        scheduler.step()
    return module


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.1), (True, 0.5)])
def test_weights_after_an_epoch_are_those_of_pytorch_optimizer(adaptive, rho):
    run = fit(seeded(Plain, 0.0), SAM(rho, adaptive=adaptive, eta=0.0))
    theirs = by_theirs(seeded(Plain, 0.0).train(), rho=rho, adaptive=adaptive).state_dict()
    ours = run.state["weights"]
    learned = [name for name, _ in Plain().named_parameters()]

    assert distance({it: ours[it] for it in learned}, {it: theirs[it] for it in learned}) < 1e-5
    assert (ours["network.1.num_batches_tracked"], theirs["network.1.num_batches_tracked"]) == (10, 20)

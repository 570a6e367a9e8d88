"""SAM and ASAM in a loop without Lightning, written from the papers' equations; what the callback is held to."""

import copy
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from support.data import labelled_images
from support.resuming import record

BATCH = 6


def sam(weights, gradients, rho=0.1):
    norm = torch.stack([it.norm() for it in gradients]).norm()
    return [it * (rho / norm) for it in gradients]


def asam(weights, gradients, rho=0.5, eta=0.01):
    scales = [weight.abs() + eta for weight in weights]
    scaled = [scale * it for scale, it in zip(scales, gradients, strict=True)]
    norm = torch.stack([it.norm() for it in scaled]).norm()
    return [it * scale * (rho / norm) for it, scale in zip(scaled, scales, strict=True)]


def batches_of(rank=0, world=1, count=10):
    """`count` batches of a rank, in a fixed order."""
    data = labelled_images(count * world * BATCH)
    order = [list(range(start, start + BATCH)) for start in range(0, len(data), BATCH)]
    return DataLoader(data, batch_sampler=order[rank::world])


def reduced(gradients):
    """The mean over ranks, as DDP takes it."""
    for gradient in gradients:
        dist.all_reduce(gradient.div_(dist.get_world_size()))
    return gradients


def train(
    module, perturbation=sam, accumulate=1, clip=None, dtype=None, scaler=None, ranks=None, local=False, batches=None
):
    """One epoch by hand; `perturbation(weights, gradients)` gives e.

    With `ranks` two processes take their own batches, with `local` each perturbs along its own gradient. The random
    stream of dropout begins at 1.
    """
    rank, world = (dist.get_rank(), 2) if ranks else (0, 1)
    batches = list(batches_of(rank, world) if batches is None else batches)
    setup = module.configure_optimizers()
    optimizer, scheduler = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    weights = [it for it in module.network.parameters() if it.requires_grad]
    torch.manual_seed(1)
    module.network.train()

    def gradients(window, synchronise=True):
        optimizer.zero_grad()
        for image, target in window:
            with torch.autocast("cpu", dtype, cache_enabled=False) if dtype else nullcontext():
                loss = F.cross_entropy(module.network(image), target) / accumulate
            (scaler.scale(loss) if scaler else loss).backward()
        found = [it.grad for it in weights]
        return reduced(found) if ranks and synchronise else found

    for start in range(0, len(batches), accumulate):
        window = batches[start : start + accumulate]
        if ranks:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
        before_draws = torch.get_rng_state()
        first = gradients(window, synchronise=not local)
        after_draws, buffers = torch.get_rng_state(), copy.deepcopy(dict(module.network.named_buffers()))
        if perturbation is not None:
            place = [it.detach().clone() for it in weights]
            with torch.no_grad():
                for weight, step in zip(weights, perturbation(weights, first), strict=True):
                    weight += step
            torch.set_rng_state(before_draws)
            gradients(window)
            torch.set_rng_state(after_draws)
            with torch.no_grad():
                for weight, value in zip(weights, place, strict=True):
                    weight.copy_(value)
            module.network.load_state_dict(buffers, strict=False)
        if scaler:
            scaler.unscale_(optimizer)
        if clip:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        scheduler.step()
    return module.state_dict()


class FirstDraw(Callback):
    """Begins dropout's stream at 1 with the first batch, whatever the loaders have drawn before."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0 and batch_idx == 0:
            torch.manual_seed(1)


def fit(module, *callbacks, batches=batches_of, **options):
    """One epoch by Lightning."""
    return record(module, batches, [FirstDraw(), *callbacks], **{"max_epochs": 1} | options)

"""Wrapping the module for DDP again, after `requires_grad` of its parameters has changed.

DDP makes its buckets of the parameters that want a gradient when it is made: one that is thawed later is never
synchronised, one that is frozen later is waited for (Lightning issue 20340). Lightning offers no hook for it; the
strategy's `configure_ddp` is public, but undocumented, and expects the bare module.
`tests/callbacks/hooks/test_freezing.py` fails when Lightning changes it.
"""

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

__all__ = ["wrap_anew"]


@torch.no_grad()
def wrap_anew(strategy: Strategy) -> None:
    """Wrap the module as the strategy did at its set-up; without DDP do nothing."""
    wrapped = strategy.model
    if not isinstance(strategy, DDPStrategy) or not isinstance(wrapped, DistributedDataParallel):
        return
    # DDP begins by giving rank 0's buffers to all ranks, which is not due now: a resumed run would not do it here.
    buffers = [(buffer, buffer.clone()) for buffer in wrapped.module.buffers()]
    strategy.model = wrapped.module
    strategy.configure_ddp()
    for buffer, own in buffers:
        buffer.copy_(own)
    strategy.model.require_forward_param_sync = wrapped.require_forward_param_sync

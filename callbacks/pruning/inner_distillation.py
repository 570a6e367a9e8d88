"""Inner distillation: a pruned network is taught by what the layers of its dense parent put out."""

from collections.abc import Callable, Sequence

from torch import Tensor

__all__ = ["inner_distillation_loss"]


def inner_distillation_loss(
    child: Sequence[Tensor], parent: Sequence[Tensor], adapters: Sequence[Callable[[Tensor], Tensor]] | None = None
) -> Tensor:
    """Mean squared difference between the maps of a child and of its parent, averaged over the layers.

    Without adapters the maps have one shape, and a channel that the child has lost, which is zero in the whole batch,
    is not compared: nothing could bring it nearer.

    Args:
        child: What its layers put out, `(B, C, H, W)` or `(B, ..., C)` each.
        parent: What the same layers of the parent put out, without a gradient.
        adapters: By layer, what brings the child's map to its parent's shape, as a 1x1 convolution does where widths
            differ.

    Raises:
        ValueError: there are no maps, or not as many of one as of the other, or their shapes differ.

    Example:
        >>> import torch
        >>> maps = [torch.randn(8, 4, 5, 5)]
        >>> float(inner_distillation_loss(maps, maps))
        0.0

    Reference: Aflalo et al. 2020, arXiv:2002.08258
    """
    if not child or len(child) != len(parent):
        raise ValueError(f"inner_distillation_loss: {len(child)} maps of the child and {len(parent)} of its parent.")
    total = child[0].new_zeros(())
    for number, (own, theirs) in enumerate(zip(child, parent, strict=True)):
        if adapters is not None:
            own = adapters[number](own)
        if own.shape != theirs.shape:
            raise ValueError(
                f"inner_distillation_loss: the maps number {number} are of shape {tuple(own.shape)} and "
                f"{tuple(theirs.shape)}; give an adapter that brings the child's to the parent's."
            )
        difference = (own - theirs).square()
        if adapters is None:
            channel = 1 if own.ndim == 4 else own.ndim - 1
            alive = (own.detach() != 0).transpose(0, channel).flatten(1).any(dim=1)
            # As a factor, for a choice of channels by their values would wait for the device.
            shape = [-1 if dim == channel else 1 for dim in range(own.ndim)]
            total = total + (difference * alive.view(shape)).mean() * alive.numel() / alive.sum().clamp(min=1)
        else:
            total = total + difference.mean()
    return total / len(child)

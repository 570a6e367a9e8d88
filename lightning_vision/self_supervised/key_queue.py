"""A memory of what a slow branch answered to earlier images."""

import torch
from torch import Tensor, nn

from .gather import gather

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    """The last `size` keys of all processes; new ones take the places of the oldest.

    It starts empty, and places that no key has filled are not shown: random keys in their place, as the authors have
    it, would teach queries to keep away from directions where nothing lies. The first batch then has no negatives.

    The keys of a batch are first put aside, and come in when the optimizer has stepped: micro-batches of one step
    contrast with the same keys, and a batch that is computed again (`SAM`) neither meets its own keys nor comes in
    twice. Checkpoints hold keys and count.

    Args:
        size: How many keys stay.
        dim: Width of a key.

    Raises:
        ValueError: `size` is not positive.

    Example:
        >>> queue = KeyQueue(size=3, dim=1)
        >>> queue.collect(0, torch.tensor([[1.0], [2.0]]))
        >>> queue.collect(1, torch.tensor([[3.0], [4.0]]))
        >>> queue.enqueue()
        >>> queue.stored()[:, 0].tolist()
        [4.0, 2.0, 3.0]

    Reference: He et al. 2020, arXiv:1911.05722, section 3.2
    """

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"the queue's size is {size}; give the number of keys that stay, at least 1")
        self.register_buffer("keys", torch.zeros(size, dim))
        # A number of the host's, for a device would have to be waited for in each step.
        self.count = 0
        self._aside: dict[int, Tensor] = {}

    def stored(self) -> Tensor:
        """The keys that are there, float32 `(min(count, size), D)`, no gradient."""
        # As the queries are compared, whatever precision the module is in.
        return self.keys[: self.count].float()

    def collect(self, batch_idx: int, keys: Tensor) -> None:
        """Keep this process's keys `(B, D)` of a micro-batch until `enqueue`; the same number again replaces them."""
        self._aside[batch_idx] = keys.detach()

    def forget(self) -> None:
        """Leave out what was collected and has not come in."""
        self._aside.clear()

    @torch.no_grad()
    def enqueue(self) -> None:
        """Let in what was put aside, batch by batch, and of each batch process by process."""
        for own in self._aside.values():
            rows = gather(own)
            places = torch.arange(self.count, self.count + len(rows), device=rows.device) % len(self.keys)
            # Of a batch larger than the queue the last rows stay; a place is written once.
            last = slice(-len(self.keys), None)
            self.keys.index_copy_(0, places[last], rows[last].to(self.keys.dtype))
            self.count += len(rows)
        self.forget()

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        self.count = int(state)
        self.forget()

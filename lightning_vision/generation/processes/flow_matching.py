"""Flow matching: a network learns the velocity of straight ways from noise to images.

Letters: B images `(B, C, H, W)`, t in 0..1, 0 is noise and 1 the image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..samplers.ode import euler, heun, midpoint
from .edit import Edit
from .gaussian import along
from .process import Network, Process

__all__ = ["FlowMatching", "coupled"]


def coupled(data: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
    """The rows of `noise` in the order in which their squared distances to the rows of `data` are least in all.

    Ways that cross are then rare, so fewer steps follow them. A batch is coupled by itself: the larger, the better.
    With labels noise is exchanged among images of a label alone: else a class would come to own a part of the noise,
    and sampling, which starts it anywhere, would start it where it was never seen.

    Args:
        data: `(B, ...)`.
        noise: `(B, ...)`.
        label: int64 `(B,)`; None couples the batch as a whole.

    Reference: Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024, arXiv:2302.00482; labels: Cheng and Schwing
        2025, arXiv:2503.10636
    """
    distance = torch.cdist(data.flatten(1).cpu().double(), noise.flatten(1).cpu().double()).square()
    if label is not None:
        label = label.cpu()
        # More than any exchange could gain.
        distance += (label[:, None] != label).to(distance) * (distance.sum() + 1)
    _, order = linear_sum_assignment(distance.numpy())
    return noise[torch.from_numpy(order).to(noise.device)]


@dataclass(frozen=True)
class FlowMatching(Process):
    """Ways x_t = (1 - t) noise + t data, whose velocity data - noise a network is to say (equations 22 and 23).

    Args:
        coupling: `independent`: any noise goes with any image; `optimal`: as `coupled` pairs those of a label.
        time_law: How t is drawn: `uniform`, or `logit_normal`, more often where telling is hard.
        location: Mean of logit(t), of the latter.
        scale: Its standard deviation, above 0.

    Raises:
        ValueError: a setting is unknown or out of its range.

    Example:
        >>> images = torch.rand(4, 1, 8, 8)
        >>> loss = FlowMatching().loss(lambda x, t, y: -x, images, torch.randn_like(images), torch.rand(4))

    Reference: Lipman et al. 2023, arXiv:2210.02747; logit-normal times: Esser et al. 2024, arXiv:2403.03206

    BibTeX:
        @inproceedings{lipman2023flow,
          title = {Flow Matching for Generative Modeling},
          author = {Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matthew},
          booktitle = {International Conference on Learning Representations},
          year = {2023},
          eprint = {2210.02747},
          archivePrefix = {arXiv},
        }
    """

    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"euler": euler, "midpoint": midpoint, "heun": heun}

    coupling: Literal["independent", "optimal"] = "independent"
    time_law: Literal["uniform", "logit_normal"] = "uniform"
    location: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.coupling not in ("independent", "optimal"):
            raise ValueError(f"FlowMatching: coupling is {self.coupling!r}; give 'independent' or 'optimal'")
        if self.time_law not in ("uniform", "logit_normal"):
            raise ValueError(f"FlowMatching: time_law is {self.time_law!r}; give 'uniform' or 'logit_normal'")
        if self.scale <= 0:
            raise ValueError(f"FlowMatching: scale is {self.scale}; give a number above 0")

    def time(self, uniform: Tensor) -> Tensor:
        """t `(B,)` by draws `(B,)` in 0..1."""
        if self.time_law == "uniform":
            return uniform
        # 0 and 1 would be infinite.
        normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
        return torch.sigmoid(self.location + self.scale * normal)

    def loss(self, network: Network, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """The mean squared error of the velocity, which the network says by x and t."""
        if self.coupling == "optimal":
            noise = coupled(data, noise, label)
        # Half precision would round 1 - 1e-6 to 1.
        time = self.time(uniform.to(torch.promote_types(data.dtype, torch.float32))).to(data)
        t = along(time, data)
        velocity = network((1 - t) * noise + t * data, time, label)
        return (velocity - (data - noise)).square().mean()

    def times(self, steps: int, strength: float = 1.0) -> Tensor:
        """The times `(steps + 1,)` between which a solver steps, from 1 - `strength`, of which 0 is noise, to 1."""
        return torch.linspace(1 - strength, 1, steps + 1)

    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Network,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        times = self.times(steps, edit.strength if edit else 1.0).to(noise)
        if edit is None:
            return sampler(lambda x, t: network(x, t, label), noise, times)
        # Of known pixels the whole way is known, and so is its velocity.
        way = edit.image - noise

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            told = network(x, t, label)
            return told if edit.mask is None else torch.where(edit.mask, way, told)

        return sampler(velocity, noise + times[0] * way, times)

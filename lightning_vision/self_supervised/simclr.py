"""SimCLR: two views of an image are to be more alike than views of different images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import gather
from .heads import mlp
from .joint import JointEmbedding

__all__ = ["SimCLR", "nt_xent"]


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy of two views (equation 1), over the rows of all processes.

    For each of the 2N answers: minus the log of exp(s / temperature) of its partner, over the sum of the same of all
    2N - 1 other answers, s the cosine; the mean of these.

    Args:
        first: Answers to one view of each image, `(B, D)`, on each process; not normalised.
        second: Answers to the other view, in the same order.
        temperature: Above 0.

    Raises:
        ValueError: all processes together have one image, which has nothing to differ from.

    Shape:
        A scalar, the same on all processes.
    """
    answers = [gather(F.normalize(rows, dim=1)) for rows in (first, second)]
    count = len(answers[0])
    if count < 2:
        raise ValueError("the batch is one image and SimCLR tells images apart; give batches of at least two")
    both = torch.cat(answers)
    logits = both @ both.T / temperature
    logits.fill_diagonal_(float("-inf"))
    partners = torch.arange(2 * count, device=both.device).roll(count)
    return F.cross_entropy(logits, partners)


class SimCLR(JointEmbedding):
    """Tells the two views of an image from all views of other images in the batch.

    Logs `loss` and nothing else. The whole batch of all processes contrasts, so losses do not depend on how many
    processes share it.

    Args:
        temperature: Divides cosines, above 0.
        hidden_dim: Width of the head's inner layers.
        out_dim: Width of the answers that are compared.
        head_layers: Layers of the head; 2 in the first version, 3 in the second.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; `temperature` or a number is not positive.

    Example:
        >>> learner = SimCLR(backbone="resnet8_cifar", in_channels=1, views="digits")
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Chen et al. 2020, arXiv:2002.05709; Chen et al. 2020, arXiv:2006.10029
    """

    def __init__(
        self,
        temperature: float = 0.1,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        head_layers: int = 3,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        for name, value in (("temperature", temperature), ("head_layers", head_layers)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; give a number above 0")
        self.temperature = temperature
        widths = [self.feature_dim, *[hidden_dim] * (head_layers - 1), out_dim]
        self.network.add_module("projector", mlp(widths, last_norm=True))

    def compare(self, *answers: list[Tensor]) -> dict[str, Tensor]:
        first, second = answers[0]
        return {"loss": nt_xent(first, second, self.temperature)}

"""A last layer in which each group of classes reads features of its own, so that many features cost few weights."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks._checks import whole

__all__ = ["GroupedLinear"]


class GroupedLinear(nn.Module):
    """A linear layer whose outputs, in groups, each read what all share and a slice of the inputs of their own.

    It is a dense layer whose weights are zero outside of blocks, of which only the blocks are kept and multiplied. With
    G groups the inputs are `shared` features that every group reads, then `width` features of each group in turn; each
    output has a bias. Widen the features before it, and capacity grows for every group of classes at 1/G of the price.

    Args:
        groups: Outputs of each group, such as the classes of a vertical; every one from 0 to K - 1 stands in one group.
        width: Features that a group has for itself, at least 0.
        shared: Features that all read, at least 0; not both are 0.
        bias: Whether each output has one.

    Shape:
        `(..., shared + G width)` to `(..., K)`, outputs in their own order, not that of the groups.

    Raises:
        ValueError: An output is missing, stands twice or is no whole number; a group is empty; there are no features;
            when it is called, if features are of another width.

    Example:
        >>> import torch
        >>> layer = GroupedLinear([[0, 1, 2], [3, 4]], width=8)
        >>> layer(torch.rand(6, 16)).shape
        torch.Size([6, 5])

    Reference: Gao et al. 2017, arXiv:1711.07607
    """

    def __init__(self, groups: Sequence[Sequence[int]], width: int, shared: int = 0, bias: bool = True) -> None:
        super().__init__()
        order = [output for group in groups for output in group]
        numbers = [it for it in order if isinstance(it, int) and not isinstance(it, bool)]
        if len(numbers) < len(order) or sorted(numbers) != list(range(len(order))) or not all(map(len, groups)):
            raise ValueError(
                f"GroupedLinear: groups is {[list(it) for it in groups]}; let each output from 0 on stand in exactly "
                "one group, and no group be empty."
            )
        whole("GroupedLinear", "width", width, 0)
        whole("GroupedLinear", "shared", shared, 0)
        if width + shared == 0:
            raise ValueError("GroupedLinear: width and shared are 0; give at least one of them above.")
        self.width, self.shared = width, shared
        self.weights = nn.ParameterList(torch.empty(len(it), shared + width) for it in groups)
        self.bias = nn.Parameter(torch.empty(len(order))) if bias else None
        self.register_buffer("places", torch.tensor(order).argsort(), persistent=False)
        self.places: Tensor
        self.groups = [list(it) for it in groups]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw anew, each block as a layer of its own with as many inputs as it reads."""
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.shared + self.width)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        total = self.shared + len(self.groups) * self.width
        if features.shape[-1] != total:
            # Of too many, the slices would drop the last ones.
            raise ValueError(
                f"GroupedLinear: the features are {tuple(features.shape)}, and {self.shared} shared and {self.width} "
                f"of each of {len(self.groups)} groups are {total}; let the layer before it put out that many."
            )
        common, own = features[..., : self.shared], features[..., self.shared :]
        found = [
            F.linear(torch.cat([common, own[..., number * self.width : (number + 1) * self.width]], dim=-1), weight)
            for number, weight in enumerate(self.weights)
        ]
        outputs = torch.cat(found, dim=-1).index_select(-1, self.places)
        return outputs if self.bias is None else outputs + self.bias

    def dense_weight(self) -> Tensor:
        """The weight `(K, shared + G width)` of the dense layer that computes the same, zero outside of the blocks."""
        total = self.shared + len(self.groups) * self.width
        dense = self.places.new_zeros((len(self.places), total), dtype=self.weights[0].dtype)
        for number, (outputs, weight) in enumerate(zip(self.groups, self.weights, strict=True)):
            begin = self.shared + number * self.width
            dense[outputs, : self.shared] = weight[:, : self.shared]
            dense[outputs, begin : begin + self.width] = weight[:, self.shared :]
        return dense

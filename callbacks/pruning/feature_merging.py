"""Iterative feature merging (IFM): channels whose weights are alike become one, and what is left is counted.

Chen, Zhou and Yan 2024, arXiv:2310.06756. Symbols: the threshold beta `beta`, a fraction of the largest distance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._channels import ChannelGroup, Cut
from ._fusing import channel_rows, fusable_groups, fuse

__all__ = ["FeatureClusters", "feature_complexity", "merge_features"]

# Squared distances, as fractions of the largest: below one, channels are equal but for float64's rounding; below the
# other, they are computed from differences.
EQUAL, NEAR = 1e-24, 1e-9


@dataclass(frozen=True)
class FeatureClusters:
    """Which channels of a group of layers are one feature.

    Args:
        clusters: The channels of each feature, ascending; features are in the order of their first channels, in which
            they also stand in a merged network.
    """

    clusters: tuple[tuple[int, ...], ...]

    @property
    def channels(self) -> int:
        """How many channels there were."""
        return sum(map(len, self.clusters))

    @property
    def complexity(self) -> int:
        """How many features are left: the feature complexity of the layer."""
        return len(self.clusters)


def merge_features(
    model: nn.Module,
    images: Tensor,
    beta: float,
    max_ratio: float = 1.0,
    use_outgoing: bool = True,
    ignore: Sequence[str] = (),
) -> dict[str, FeatureClusters]:
    """Merge channels of a network that are alike, in place and without data, and say how many features are left.

    In each group of channels that go together, the two whose weights are nearest to each other become one, until the
    nearest are further apart than `beta` allows. What makes a channel, and the batch norm that carries it along, is
    averaged over the channels merged; what reads it is summed. So channels that are equal are merged without any
    change of the output, and what comes out is an ordinary network of narrower layers.

    Args:
        model: Called as `model(images)`; a LightningModule is one, too. Its train flags stay.
        images: Of the size that it runs on, `(B, C, H, W)`, on its device; only the network's graph is taken from them.
        beta: Largest squared distance that is merged, as a fraction of the largest one in the group, in [0, 1]; the
            authors' code has 0.1. Neutral: 0, which merges only channels that are equal.
        max_ratio: Fraction of each group's channels that may go at most, in [0, 1]; the authors' code has 1. One
            channel of each group stays in any case.
        use_outgoing: Whether distances also look at the weights that read a channel, as in the paper.
        ignore: Shell patterns on names of layers whose outputs stay.

    Returns:
        By the first layer that makes them, the channels of each group that became one.

    Raises:
        ModuleNotFoundError: torch-pruning is not installed.
        ValueError: an argument out of its range, images that are no `(B, C, H, W)`, a model that cannot be traced, or a
            pattern that matches no layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3)).requires_grad_(False)
        >>> for part in (network[0].weight, network[0].bias): part[1] = part[0]
        >>> merge_features(network, torch.zeros(2, 1, 8, 8), beta=0.0, use_outgoing=False)["0"].complexity
        1

    Reference: Chen et al. 2024, arXiv:2310.06756

    BibTeX:
        @inproceedings{chen2024complexity,
          title = {Going Beyond Neural Network Feature Similarity: The Network Feature Complexity and Its Interpretation
            Using Category Theory},
          author = {Chen, Yiting and Zhou, Zhanpeng and Yan, Junchi},
          booktitle = {International Conference on Learning Representations},
          year = {2024},
          eprint = {2310.06756},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The authors' code leaves biases and norms out of distances, here all learned parameters count, so that beta = 0
        changes no output; outgoing weights are compared as means over the channels merged, so that a third copy of a
        channel is found as the second was; and it sums what lies on a weight's first axis, where here only reading
        weights are summed. Norms' statistics are averaged.

    See also:
        `feature_complexity`, which only counts, and `intra_fusion`, which is given the widths.
    """
    tensors, merged = _merged("merge_features", model, images, beta, max_ratio, use_outgoing, ignore)
    stored = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            stored[name].copy_(tensor)
    Cut(
        model,
        {
            group: sorted(channel for cluster in found.clusters for channel in cluster[1:])
            for group, found in merged.items()
            if found.complexity < found.channels
        },
    )
    return {group.name: found for group, found in merged.items()}


def feature_complexity(
    model: nn.Module,
    images: Tensor,
    beta: float,
    max_ratio: float = 1.0,
    use_outgoing: bool = True,
    ignore: Sequence[str] = (),
) -> dict[str, FeatureClusters]:
    """Count the features of each layer of a network, as `merge_features` would leave them; the network stays as it is.

    Args:
        model: Called as `model(images)`.
        images: Of the size that it runs on, `(B, C, H, W)`, on its device.
        beta: Largest squared distance that is merged, as a fraction of the largest one in the group, in [0, 1].
        max_ratio: Fraction of each group's channels that may be merged at most, in [0, 1].
        use_outgoing: Whether distances also look at the weights that read a channel.
        ignore: Shell patterns on names of layers that are left out.

    Raises:
        ModuleNotFoundError: torch-pruning is not installed.
        ValueError: as `merge_features`.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> found = feature_complexity(network, torch.zeros(2, 1, 8, 8), beta=0.0)
        >>> found["0"].channels, found["0"].complexity
        (4, 4)

    Reference: Chen et al. 2024, arXiv:2310.06756
    """
    _, merged = _merged("feature_complexity", model, images, beta, max_ratio, use_outgoing, ignore)
    return {group.name: found for group, found in merged.items()}


def _merged(
    owner: str,
    model: nn.Module,
    images: Tensor,
    beta: float,
    max_ratio: float,
    use_outgoing: bool,
    ignore: Sequence[str],
) -> tuple[dict[str, Tensor], dict[ChannelGroup, FeatureClusters]]:
    """The tensors of all groups, whole and with merged channels, and what was merged."""
    for name, value in {"beta": beta, "max_ratio": max_ratio}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{owner}: {name} is {value}; give a fraction from 0 to 1.")
    groups = fusable_groups(owner, model, images, ignore)
    stored = dict(model.named_parameters()) | dict(model.named_buffers())
    names = {name for group in groups for member in group.members for name in member.tensors}
    tensors = {name: stored[name].detach().double().cpu().clone() for name in names}
    learned = {name for name, _ in model.named_parameters()}
    clusters = {group: [[channel] for channel in range(group.size)] for group in groups}
    # What one group merges moves the distances of those that share a layer with it.
    changed = True
    while changed:
        changed = False
        for group in groups:
            least = max(1, math.ceil((1 - max_ratio) * group.size - 1e-9))
            changed |= _merge_nearest(group, tensors, learned, clusters[group], beta, least, use_outgoing)
    return tensors, {group: FeatureClusters(tuple(map(tuple, sorted(found)))) for group, found in clusters.items()}


def _merge_nearest(
    group: ChannelGroup,
    tensors: dict[str, Tensor],
    learned: set[str],
    clusters: list[list[int]],
    beta: float,
    least: int,
    use_outgoing: bool,
) -> bool:
    """Merge channels of one group while the nearest are near enough; `clusters` begin with the channels that live."""
    counts = torch.tensor([len(it) for it in clusters], dtype=torch.float64)
    distances = _distances(group, {name: tensors[name] for name in learned & tensors.keys()}, clusters, use_outgoing)
    live, merged = list(range(len(clusters))), {place: [place] for place in range(len(clusters))}
    while len(live) > least:
        among = distances[live][:, live]
        largest = float(among.max())
        smallest, at = among.fill_diagonal_(math.inf).flatten().min(dim=0)
        # Not the other way round: weights that are no numbers are not merged.
        if not float(smallest) <= max(beta, EQUAL) * largest:
            break
        first, second = sorted(live[it] for it in divmod(int(at), len(live)))
        # Both made and read weights are means over the channels merged, so the centroid's distances follow from these.
        share = counts[second] / (counts[first] + counts[second])
        away = (1 - share) * distances[first] + share * distances[second]
        away = (away - share * (1 - share) * distances[first, second]).clamp(min=0)
        distances[first] = distances[:, first] = away
        distances[first, first] = 0
        counts[first] += counts[second]
        merged[first] += merged.pop(second)
        live.remove(second)
    if len(live) == len(clusters):
        return False
    made, read = (torch.zeros(len(clusters), group.size, dtype=torch.float64) for _ in range(2))
    for place, members in merged.items():
        channels = [clusters[it][0] for it in members]
        weights = torch.tensor([len(clusters[it]) for it in members], dtype=torch.float64)
        made[place, channels] = weights / weights.sum()
        read[place, channels] = 1
    # Rows of merged channels are zero, so that no other group's distances see them.
    fuse(tensors, group, [it[0] for it in clusters], made, read)
    clusters[:] = [sorted(channel for it in merged[place] for channel in clusters[it]) for place in live]
    return True


def _distances(
    group: ChannelGroup, learned: dict[str, Tensor], clusters: list[list[int]], use_outgoing: bool
) -> Tensor:
    """Squared distances between clusters, of their weights, the outgoing ones as means over the channels merged."""
    live = [it[0] for it in clusters]
    rows = channel_rows(group, learned, ["makes", "carries"])[live]
    if use_outgoing:
        counts = torch.tensor([[len(it)] for it in clusters], dtype=torch.float64)
        rows = torch.cat([rows, channel_rows(group, learned, ["reads"])[live] / counts], dim=1)
    rows = rows - rows.mean(dim=0)
    product = rows @ rows.T
    found = (product.diag()[:, None] + product.diag() - 2 * product).clamp(min=0)
    # A product says nothing of tiny differences: equal channels would seem a little apart.
    for left, right in (found <= NEAR * found.max()).nonzero().tolist():
        found[left, right] = (rows[left] - rows[right]).square().sum()
    return found

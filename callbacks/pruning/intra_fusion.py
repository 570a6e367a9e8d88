"""Intra-Fusion: channels that pruning would drop are carried by optimal transport into those that stay.

Theus, Geimer, Wicke, Hofmann, Anagnostidis and Singh 2024, arXiv:2402.07839, Algorithm 2. Symbols: n channels of a
group, m that stay; cost C `(n, m)`; plan T `(n, m)` with marginals mu of the channels and nu of those that stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from sklearn.cluster import KMeans
from torch import Tensor, nn

from ._channels import ChannelGroup, Cut
from ._choice import channel_importance
from ._folding import folded_norms
from ._fusing import channel_rows, fusable_groups, fuse

__all__ = ["intra_fusion", "transport_plan"]

Model = TypeVar("Model", bound=nn.Module)
Importance = Literal["l1", "l2", "taylor"]
Target = Literal["most_important", "cluster_centroid"]
SourceMarginal = Literal["uniform", "importance", "radical"]
TargetMarginal = Literal["uniform", "importance"]
Fusing = Literal["sum", "mean"]


def transport_plan(cost: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The plan T of least cost <T, C> that carries all mass from sources to targets, `(n, m)` in float64.

    A linear programme with n + m equalities, solved exactly by HiGHS.

    Args:
        cost: C `(n, m)`, of one unit of mass from each source to each target.
        source: Marginal mu `(n,)`, at least 0: the rows of T sum to it.
        target: Marginal nu `(m,)`, at least 0, of the same sum: the columns of T sum to it.

    Raises:
        ValueError: the marginals do not fit the cost or each other, or are negative or not finite.

    Example:
        >>> half = torch.tensor([0.5, 0.5])
        >>> transport_plan(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), half, half).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    n, m = cost.shape
    mu, nu, costs = (it.detach().double().cpu().numpy() for it in (source, target, cost))
    if mu.shape != (n,) or nu.shape != (m,) or not np.isclose(mu.sum(), nu.sum()) or min(mu.min(), nu.min()) < 0:
        raise ValueError(
            f"transport_plan: marginals of {len(mu)} and {len(nu)} entries with sums {mu.sum():.6g} and {nu.sum():.6g} "
            f"do not fit a cost of shape {(n, m)}; give one of n and one of m entries, 0 or more, of equal sums."
        )
    if not np.isfinite(costs).all():
        raise ValueError("transport_plan: the cost has entries that are not finite; give finite ones.")
    rows = sparse.kron(sparse.eye(n), np.ones((1, m)))
    columns = sparse.kron(np.ones((1, n)), sparse.eye(m))
    # The last equality follows from the others, and rounding could contradict it.
    equalities = sparse.vstack([rows, columns]).tocsr()[:-1]
    found = linprog(costs.ravel(), A_eq=equalities, b_eq=np.concatenate([mu, nu])[:-1], method="highs")
    assert found.success, found.message
    return torch.from_numpy(found.x.reshape(n, m))


def intra_fusion(
    model: Model,
    images: Tensor,
    sparsity: float,
    importance: Importance = "l1",
    p: float = 1.0,
    target: Target = "most_important",
    source_marginal: SourceMarginal = "uniform",
    target_marginal: TargetMarginal = "uniform",
    fusing: Fusing = "sum",
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> Model:
    """Narrow a trained network, in place and without data, by fusing the channels that go into those that stay.

    In each group of channels that go together the most important stay. A plan of optimal transport says how much of
    each channel each of these takes up: nearer weights are cheaper. The weights of all layers of the group are added
    up by it. What comes out is an ordinary network of narrower layers with the shapes of usual structured pruning.

    Args:
        model: Called as `model(images)`; a LightningModule is one, too. Its train flags stay.
        images: Of the size that it runs on, `(B, C, H, W)`, on its device; only the network's graph is taken from them.
        sparsity: Fraction of each group's channels that go, in [0, 1); of n channels int(n (1 - sparsity)) stay, at
            least one. Neutral: 0.
        importance: `l1` and `l2`, mean over the group's layers of the sum of |w| or of w^2 over a channel's weights;
            `taylor`, from the gradients `.grad` that the parameters have.
        p: Of the cost, the p-norm distance between the channels' weights, which are first divided by their 2-norm; 1 or
            more, 1 as the authors'.
        target: Whither mass is carried: the weights of the most important channels, or the centroids of k-means.
        source_marginal: Mass of the channels: equal, as important as they are, or `radical`, n / m for each channel
            that stays and 1 for others.
        target_marginal: Mass of the channels that stay: equal, or as important as they are.
        fusing: `sum`: as in the authors' code, a channel is given away whole, and makers and readers add up what they
            are given. `mean`: what makes channels is the mean of what it is given, so that equal channels are fused
            without a change of the output.
        ignore: Shell patterns on names of layers whose outputs stay.
        seed: Of k-means.

    Returns:
        The model itself.

    Raises:
        ModuleNotFoundError: torch-pruning is not installed.
        ValueError: an argument out of its range, images that are no `(B, C, H, W)`, a model that cannot be traced or,
            for `taylor`, has no gradients, or a pattern that matches no layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> intra_fusion(network, torch.zeros(2, 1, 8, 8), sparsity=0.5)[0].out_channels
        2

    Reference: Theus et al. 2024, arXiv:2402.07839

    BibTeX:
        @inproceedings{theus2024metapruning,
          title = {Towards Meta-Pruning via Optimal Transport},
          author = {Theus, Alexander and Geimer, Olin and Wicke, Friedrich and Hofmann, Thomas and Anagnostidis, Sotiris
            and Singh, Sidak Pal},
          booktitle = {International Conference on Learning Representations},
          year = {2024},
          eprint = {2402.07839},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Batch norm is folded into the layer before it only while channels are fused (Eq. 1) and taken out again, with
        the scale of the channel that stays, so that no layer gets a bias that it had not. Centroids are k-means', as
        in the paper; the authors' code has a Gaussian mixture.

    See also:
        `merge_features`, which finds the widths itself, and `StructuredPruning`.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"intra_fusion: sparsity is {sparsity}; give a fraction from 0 to less than 1.")
    if not p >= 1:
        raise ValueError(f"intra_fusion: p is {p}; give 1 or more.")
    choices: dict[str, tuple[str, Any]] = {
        "importance": (importance, Importance),
        "target": (target, Target),
        "fusing": (fusing, Fusing),
    }
    choices |= {
        "source_marginal": (source_marginal, SourceMarginal),
        "target_marginal": (target_marginal, TargetMarginal),
    }
    for name, (value, known) in choices.items():
        if value not in get_args(known):
            raise ValueError(f"intra_fusion: {name} is {value!r}; give one of {', '.join(get_args(known))}.")
    groups = fusable_groups("intra_fusion", model, images, ignore)
    widths = {group: max(1, int(group.size * (1 - sparsity))) for group in groups}
    groups = [group for group in groups if widths[group] < group.size]
    parameters = dict(model.named_parameters())
    if importance == "taylor":
        gradients = {name: it.grad for name, it in parameters.items() if it.grad is not None}
        if not gradients:
            raise ValueError("intra_fusion: the parameters have no gradients; call backward on a loss before.")
        taylor = {group: channel_importance(group, parameters, gradients) for group in groups}
    gone: dict[ChannelGroup, list[int]] = {}
    with folded_norms(model, images, groups):
        tensors = parameters | dict(model.named_buffers())
        for group in groups:
            values = taylor[group] if importance == "taylor" else _norms(group, parameters, int(importance[1:]))
            kept = sorted(torch.argsort(values, descending=True, stable=True)[: widths[group]].tolist())
            rows = channel_rows(group, parameters, ["makes", "reads"])
            source, mass = torch.ones(2, group.size, dtype=torch.float64)
            if source_marginal == "importance":
                source = values
            elif source_marginal == "radical":
                source[kept] = group.size / len(kept)
            ends, mass = rows[kept], (values if target_marginal == "importance" else mass)[kept]
            if target == "cluster_centroid":
                clusters = KMeans(len(kept), n_init=10, random_state=seed).fit(rows.cpu().numpy())
                ends = torch.from_numpy(clusters.cluster_centers_)
            plan = transport_plan(_cost(rows, ends, p), source / source.sum(), mass / mass.sum())
            # A channel without mass is given to nobody, and one that is given none would be divided by zero.
            given = (plan / plan.sum(dim=1, keepdim=True)).nan_to_num().T
            mean = (plan / plan.sum(dim=0)).nan_to_num().T
            fuse(tensors, group, kept, mean if fusing == "mean" else given, given, carried=mean)
            gone[group] = sorted(set(range(group.size)) - set(kept))
    Cut(model, gone)
    return model


def _norms(group: ChannelGroup, parameters: Mapping[str, Tensor], power: int) -> Tensor:
    """Mean over the layers that make or read a group's channels of the sum of |w|^power over each channel, `(n,)`."""
    weights = [f"{member.layer}.weight" for member in group.members if member.role in ("makes", "reads")]
    rows = [channel_rows(group, {name: parameters[name]}, ["makes", "reads"]) for name in weights]
    return torch.stack([it.abs().pow(power).sum(dim=1) for it in rows]).mean(dim=0).cpu()


def _cost(rows: Tensor, ends: Tensor, p: float) -> Tensor:
    """Distance of each row to each end, both divided by their 2-norm; a row of zeros stays one."""
    rows, ends = (it.cpu() / it.cpu().norm(dim=1, keepdim=True).clamp(min=1e-30) for it in (rows, ends))
    return torch.cdist(rows, ends, p=p)

"""ScheduledDropPath: whole branches of a network are left out, the deeper and the later the more often.

Zoph, Vasudevan, Shlens and Le 2018, arXiv:1707.07012, section 3, and the authors' code (version 3 of its drop connect).
Of n cells the k-th, counted from 1, drops each of its paths with the probability

    p_k(t) = P (k / n) (t / T)

for a sample, with t optimizer steps done of T. Symbols: P `final`, k / n `depth_share`.
"""

from collections.abc import Sequence
from typing import Literal, final, get_args

from lightning.pytorch import LightningModule
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from ..hooks._checks import number
from ..hooks.values import Moment, Values
from ._stretch import Interval, Stretch, checked_shape, moved

__all__ = ["ScheduledDropPath", "depth_shares", "drop_probabilities"]

Depth = Literal["index", "own", "none"]


def drop_probabilities(network: nn.Module) -> dict[str, float]:
    """The drop probability of each drop path in a network, by its dotted name, in the order of registration.

    These are timm's `DropPath`, torchvision's `StochasticDepth`, and others with a `drop_prob` whose class is called
    DropPath, as those of Hugging Face are.

    Example:
        >>> branch = nn.Sequential(nn.Linear(2, 2), StochasticDepth(0.2, "row"))
        >>> drop_probabilities(nn.Sequential(DropPath(0.1), branch))
        {'0.drop_prob': 0.1, '1.1.p': 0.2}
    """
    found: dict[str, float] = {}
    for path, it in network.named_modules():
        key = "p" if isinstance(it, StochasticDepth) else "drop_prob"
        named = isinstance(it, (DropPath, StochasticDepth)) or type(it).__name__.endswith("DropPath")
        if named and isinstance(getattr(it, key, None), (int, float)):
            found[f"{path}.{key}".removeprefix(".")] = getattr(it, key)
    return found


def depth_shares(probabilities: dict[str, float], depth: Depth = "index") -> dict[str, float]:
    """Share of the final probability that each drop path gets, 0..1.

    Args:
        probabilities: What `drop_probabilities` tells.
        depth: `index`: the k-th of n layers that have drop paths gets k / n, each of its paths the same; `own`: in
            proportion to what each was built with, where the highest gets 1; `none`: all get 1.

    Raises:
        ValueError: with `own`, if all were built with 0.

    Example:
        >>> built = {"0.drop1.drop_prob": 0.0, "0.drop2.drop_prob": 0.0, "1.drop1.drop_prob": 0.1}
        >>> list(depth_shares(built).values()), list(depth_shares(built, "own").values())
        ([0.5, 0.5, 1.0], [0.0, 0.0, 1.0])
    """
    if depth == "none":
        return dict.fromkeys(probabilities, 1.0)
    if depth == "own":
        most = max(probabilities.values(), default=0.0)
        if not most:
            raise ValueError(
                "ScheduledDropPath: depth='own' asks for what the drop paths were built with, which is 0 for all; pass "
                "depth='index', or build the network with a drop_path_rate above 0."
            )
        return {name: own / most for name, own in probabilities.items()}
    # A name is that of the layer, of its drop path and of the number.
    layers = {name: name.rsplit(".", 2)[0] if name.count(".") > 1 else name for name in probabilities}
    order = list(dict.fromkeys(layers.values()))
    return {name: (order.index(layer) + 1) / len(order) for name, layer in layers.items()}


@final
class ScheduledDropPath(Values):
    """Drops whole branches more and more often while training goes on, and the deeper layers more than the first ones.

    The drop probability of all drop paths in the module is set before each training batch, as a function of
    `trainer.global_step` alone, from 0 to `final`; what the network was built with is put back after the fit. Their
    masks, and the scaling of what is kept, stay timm's or torchvision's. Validation, test and prediction drop nothing.

    Args:
        final: P, the probability of the deepest drop path at the end, fraction, 0 to below 1. The authors' 0.3 for
            NASNet-A large on ImageNet; 0.4 on CIFAR-10, 0 for the mobile one. 0 drops nothing, whatever the network was
            built with. Neutral: `built`, which leaves all as it was built.
        depth: How probabilities grow with depth: `index` by the number of the layer among those that have drop paths,
            in the order in which the network registers them, where branches side by side (timm's `ParallelThingsBlock`)
            count one by one, so take `own` there; `own` in proportion to those with which it was built, of
            which the highest becomes `final`; `none` not at all.
        shape: How they grow with time: `linear`, or `cosine`, half a wave.
        begin: Until when they are 0, in the unit of `interval`, >= 0.
        length: How long they grow from then on, above 0, likewise; None: to the end of the training.
        interval: Unit of both: `training`, all of it, so that they are shares; `epoch`; or `step`, an optimizer step.
        network: Dotted name of the submodule whose drop paths are meant, for a module that holds several networks, such
            as a student and its teacher; None: the module.
        name: Part of the state key.

    Raises:
        ValueError: a setting outside its range; before the first batch, if the network has no drop paths, another
            callback sets the same numbers, or the training's end is needed and not known; at an optimizer step that
            goes past Lightning.

    Example:
        >>> network = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), DropPath(0.1)) for _ in range(4)])
        >>> shares = depth_shares(drop_probabilities(network))
        >>> [0.4 * share * 0.5 for share in shares.values()]  # of final=0.4 half way through the training
        [0.05, 0.1, 0.15000000000000002, 0.2]

    Reference: Zoph et al. 2018, arXiv:1707.07012

    BibTeX:
        @inproceedings{zoph2018learning,
          title = {Learning Transferable Architectures for Scalable Image Recognition},
          author = {Zoph, Barret and Vasudevan, Vijay and Shlens, Jonathon and Le, Quoc V.},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2018},
          eprint = {1707.07012},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The paper drops each path inside of a cell. Networks of timm and torchvision have drop paths at the end of
        residual branches, and those are what is scheduled, in any network that has them. timm's NASNet has none.

    See also:
        `Ramp` on `network.*.drop_prob`, which gives all of them one number; `timm.layers.DropPath`.
    """

    neutral = ({"final": "built"},)
    needs = "drop paths"

    def __init__(
        self,
        final: float | Literal["built"] = 0.3,
        depth: Depth = "index",
        shape: Literal["linear", "cosine"] = "linear",
        begin: float = 0.0,
        length: float | None = None,
        interval: Interval = "training",
        network: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if final != "built":
            number("ScheduledDropPath", "final", final, 0, 1)
            if final == 1:
                raise ValueError("ScheduledDropPath: final is 1, which never keeps a path; give a number below 1.")
        if depth not in get_args(Depth):
            raise ValueError(f"ScheduledDropPath: depth is {depth!r}; give index, own or none.")
        checked_shape("ScheduledDropPath", shape, ("linear", "cosine"))
        self.final, self.depth, self.shape, self.network = final, depth, shape, network
        self.begin, self.length, self.interval = begin, length, interval
        self.stretch = Stretch("ScheduledDropPath", begin, length, interval)
        self._shares: dict[str, float] = {}

    def names(self, pl_module: LightningModule) -> Sequence[str]:
        root = "" if self.network is None else f"{self.network}."
        try:
            network = pl_module.get_submodule(self.network or "")
        except AttributeError as error:
            message = f"ScheduledDropPath: network is {self.network!r}, and {error}; name a submodule."
            raise ValueError(message) from None
        found = drop_probabilities(network)
        if not found:
            raise ValueError(
                f"ScheduledDropPath: {type(network).__name__} has no drop paths (timm's DropPath or torchvision's "
                "StochasticDepth), so there is nothing to schedule; build the network with a small rate, as with "
                "drop_path_rate=0.1, for at 0 timm leaves them out."
            )
        shares = depth_shares(found, self.depth)
        self._shares = {f"{root}{name}": share for name, share in shares.items()}
        return list(self._shares)

    def value(self, name: str, own: float, moment: Moment) -> float:
        done = moved(self.stretch.share(moment), 0.0, 1.0, self.shape)
        return own if self.final == "built" else self.final * self._shares[name] * done

    def begins(self, moment: Moment) -> str | None:
        return self.stretch.check(moment)

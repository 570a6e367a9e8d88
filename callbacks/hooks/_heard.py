"""What chosen layers of a network put out while it is asked, by the paths that people name them by."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._frozen import part_name

__all__ = ["Answer", "Heard", "logits_in", "only_output", "own_paths"]


@dataclass(frozen=True)
class Answer:
    """What a network makes of a batch.

    Args:
        logits: `(B, K)`; of a network that answers otherwise, whose layers alone are looked at, `(B, 0)`.
        layers: By path below the network, what the chosen layers put out.
    """

    logits: Tensor
    layers: Mapping[str, Tensor]


class Heard:
    """A network whose layers are listened to from now on, until `leave`.

    Args:
        owner: Who speaks in a refusal.
        whose: The network in words, as in "the teacher".
        network: `(B, C, H, W)` to logits `(B, K)`.
        paths: Of its layers, without wrappers of `torch.compile`; "" is the network itself.
        logits: Whether it has to answer with logits; else it may answer with anything, as a detector does.

    Raises:
        ValueError: There is no such layer.
    """

    def __init__(self, owner: str, whose: str, network: nn.Module, paths: Sequence[str], logits: bool = True) -> None:
        self.logits = logits
        self.owner, self.whose, self.network, self.paths = owner, whose, network, tuple(dict.fromkeys(paths))
        self._calls: dict[str, list[Any]] | None = None  # while the network is asked
        parts = own_paths(owner, whose, network, self.paths)
        self._hooks = [
            network.get_submodule(path).register_forward_hook(partial(self._keep, name)) for name, path in parts.items()
        ]

    def leave(self) -> None:
        """Listen no more; twice does nothing."""
        for hook in self._hooks:
            hook.remove()

    def answer(self, images: Tensor) -> Answer:
        """What the network makes of images `(B, C, H, W)`.

        Raises:
            ValueError: It makes no logits, or a layer was not called, or more than once, or put out no tensor.
        """
        calls: dict[str, list[Any]] = {path: [] for path in self.paths}
        self._calls = calls
        try:
            answer = self.network(images)
        finally:
            self._calls = None
        whose = f"{self.whose} ({type(self.network).__name__})"
        logits = logits_in(self.owner, whose, answer, None if self.logits else len(images))
        return Answer(logits, {path: only_output(self.owner, self.whose, path, it) for path, it in calls.items()})

    def _keep(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._calls is not None:
            self._calls[path].append(output)


def own_paths(owner: str, whose: str, network: nn.Module, paths: Sequence[str]) -> dict[str, str]:
    """By each path without wrappers of `torch.compile`, the one with them; one that is not there is refused."""
    known = {part_name(path): path for path, _ in network.named_modules(remove_duplicate=False)}
    for path in paths:
        if path not in known:
            names = [it for it in known if it]
            close = difflib.get_close_matches(path, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"{owner}: {whose} ({type(network).__name__}) has no layer {path!r}; there are {', '.join(close)}."
            )
    return {path: known[path] for path in paths}


def logits_in(owner: str, whose: str, answer: Any, rows: int | None) -> Tensor:
    """The logits `(B, K)` that a network answers; `(rows, 0)` if it answers otherwise, which with None is refused."""
    if not (isinstance(answer, Tensor) and answer.ndim == 2):
        if rows is not None:
            return torch.zeros(rows, 0)
        came = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(
            f"{owner}: {whose} answers with {came} and not with logits (B, K); give one that does, or name with "
            "network= the part of the module that does."
        )
    return answer


def only_output(owner: str, whose: str, path: str, calls: Sequence[Any]) -> Tensor:
    """What a layer put out the one time that it was called.

    Raises:
        ValueError: It was not called, or more than once, which of them is meant not being clear, or put out no tensor.
    """
    if len(calls) != 1:
        times = "not at all" if not calls else f"{len(calls)} times"
        raise ValueError(f"{owner}: {whose} called its layer {path!r} {times}; name a layer that is called once.")
    if not isinstance(calls[0], Tensor):
        raise ValueError(
            f"{owner}: the layer {path!r} of {whose} puts out a {type(calls[0]).__name__} and no tensor; name another."
        )
    return calls[0]

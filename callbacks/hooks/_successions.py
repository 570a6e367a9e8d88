"""Which layer is given what another puts out, read from a network's forward without running it on numbers.

torch.fx follows a forward with stand-ins for tensors, so the answer is that of the forward itself and not of the order
in which layers were written down: a norm whose output is added to something before the activation is not followed by
that activation.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

__all__ = ["successions"]

PATIENCE = 1000  # questions that a forward may ask


def successions(model: nn.Module, whole: tuple[type[nn.Module], ...] = ()) -> dict[str, list[str | None]]:
    """By the path of a layer, for each of its calls, the path of the layer that alone is given its output.

    None stands where the output goes to a function, such as an addition, to several, or out of what could be followed.
    `nn.Identity` is looked through. A forward that branches on what it is given is followed twice, as if each question
    were answered no and then yes, and what the two do not agree on is None. Where a part's forward cannot be followed
    at all, its children are followed each by itself; layers that no followed forward calls are absent.

    Args:
        model: Any module; it is not changed, and nothing is drawn from torch's global stream.
        whole: Kinds of layers that have children and are one layer all the same.
    """
    found: dict[str, list[str | None]] = {}
    with torch.random.fork_rng(devices=[]):
        _follow(model, "", whole, found)
    return found


class _Leaves(fx.Tracer):
    """Every module without children is a layer, and so is each of a `whole` kind."""

    def __init__(self, whole: tuple[type[nn.Module], ...], answer: bool) -> None:
        super().__init__()
        self.whole, self.answer, self.questions = whole, answer, 0

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.whole) or next(m.children(), None) is None

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.questions += 1
        if self.questions > PATIENCE:
            raise fx.proxy.TraceError("a loop asks for ever")
        return self.answer


def _follow(
    model: nn.Module, prefix: str, whole: tuple[type[nn.Module], ...], found: dict[str, list[str | None]]
) -> None:
    if isinstance(model, whole) or next(model.children(), None) is None:
        return
    ways = list(_ways(model, prefix, whole))
    for path in dict.fromkeys(path for way in ways for path in way):
        calls = [way[path] for way in ways if path in way]
        agreed = all(it == calls[0] for it in calls)
        found[path] = calls[0] if agreed else [None] * len(calls[0])
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        called = any(it == path or it.startswith(f"{path}.") for it in found)
        if not called:
            _follow(child, f"{path}.", whole, found)


def _ways(model: nn.Module, prefix: str, whole: tuple[type[nn.Module], ...]) -> Iterator[dict[str, list[str | None]]]:
    """The successions of a forward, of one that asks twice; of one that fails both times none."""
    layers = dict(model.named_modules())
    for answer in (False, True):
        tracer = _Leaves(whole, answer)
        try:
            graph = tracer.trace(model)
        except Exception:  # of any kind: a stranger's forward is given stand-ins instead of tensors
            continue
        way: dict[str, list[str | None]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                way.setdefault(f"{prefix}{node.target}", []).append(_follower(node, prefix, layers))
        yield way
        if not tracer.questions:
            return


def _follower(node: fx.Node, prefix: str, layers: dict[str, nn.Module]) -> str | None:
    users = list(_users(node, layers))
    if len(users) != 1 or users[0].op != "call_module":
        return None
    return f"{prefix}{users[0].target}"


def _users(node: fx.Node, layers: dict[str, Any]) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "call_module" and isinstance(layers[str(user.target)], nn.Identity):
            yield from _users(user, layers)
        else:
            yield user

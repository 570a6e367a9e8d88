"""What a network does after one of its layers, so that it can be done with other features in that layer's place."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Tail"]


class Tail:
    """The parts of a network that are called after a layer, one after the other.

    They are found by watching one forward pass: the outermost ones, each with what the one before it puts out and with
    the same other arguments as there. Where a network says with `forward_features` and `forward_head`, as timm's do,
    what comes of its features, the latter ends it. Whether this is what the network does is not known before `check`.

    Args:
        owner: Who speaks in a refusal.
        network: In evaluation mode.
        layer: Path of the layer after which it begins.
        last: Path of that layer, or of one after it, whose output is of interest.
        images: `(B, C, H, W)`.

    Raises:
        ValueError: The layer was not called.
    """

    def __init__(self, owner: str, network: nn.Module, layer: str, last: str, images: Tensor) -> None:
        self.owner, self.layer, self.network = owner, layer, network
        self.last = network.get_submodule(last)
        parents = [layer.rsplit(".", depth)[0] for depth in range(1, layer.count(".") + 1)]
        # The innermost part around the layer that has both.
        parts = [network.get_submodule(path) for path in [*parents, ""]]
        timms: Any = next((it for it in parts if hasattr(it, "forward_features") and hasattr(it, "forward_head")), None)
        self.head: Callable[[Tensor], Tensor] | None = None
        run: Callable[[Tensor], Any] = network
        if timms is not None:
            self.head, run = timms.forward_head, timms.forward_features
        around = {id(it) for it in parts}
        self.calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
        self._begun = False
        self._inside: nn.Module | None = None
        with ExitStack() as stack, torch.no_grad():
            if "torch._dynamo" in sys.modules:
                # In compiled code hooks do not fire.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for part in network.modules():
                if id(part) not in around:
                    stack.callback(part.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                    stack.callback(part.register_forward_hook(self._leave).remove)
            run(images.to(next(network.parameters(), images).dtype))
        if not self._begun:
            raise ValueError(f"{owner}: the teacher's layer {layer!r} was not called; name one that is.")

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, K)` of features in the layer's place, and what `last` puts out on the way."""
        seen = [features]
        handle = self.last.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            for part, others, named in self.calls:
                features = part(features, *others, **named)
        finally:
            handle.remove()
        return (features if self.head is None else self.head(features)), seen[-1]

    @torch.no_grad()
    def check(self, features: Tensor, logits: Tensor, seen: Tensor) -> None:
        """Refuse if of the layer's own output does not come what came of it in the network.

        Args:
            features: What the layer put out.
            logits: The network's answer.
            seen: What `last` put out.

        Raises:
            ValueError: The network does more after the layer than to call one part after the other.
        """
        try:
            pairs = zip(self(features), (logits, seen), strict=True)
            fits = all(ours.shape == theirs.shape and _close(ours, theirs) for ours, theirs in pairs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            fits = False
        if not fits:
            raise ValueError(
                f"{self.owner}: what the teacher does after its layer {self.layer!r} is more than one part after the "
                "other, so no features can take that layer's place; name a whole block or stage with "
                "teacher_stages=, or set perception_weight=0."
            )

    def _enter(self, module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        if self._begun and self._inside is None:
            self._inside = module
            self.calls.append((module, args[1:], named))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self._inside:
            self._inside = None
        if module is self.network.get_submodule(self.layer):
            self._begun = True


def _close(ours: Tensor, theirs: Tensor) -> bool:
    apart, largest = (it.float().abs().max() for it in (ours - theirs, theirs))
    return bool(apart <= torch.finfo(theirs.dtype).eps ** 0.5 * largest)

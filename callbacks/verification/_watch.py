"""Watching the layers of a module through one run of a step, with some samples exchanged at the entrance."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.loss import _Loss
from torchmetrics import Metric, MetricCollection

from ..hooks._around import Around
from ..hooks._frozen import lies_in, part_name
from ..hooks._heard_losses import HeardLosses, labels_in
from ._rows import Tree, changed, halves, leaves, prints, sizes, with_negatives

__all__ = ["STEP", "Call", "Key", "Watch", "leaking_rows"]

# A layer's path and the number of its call; "" is the module's own forward.
Key = tuple[str, int]
# In the place of a path: what the step itself computes between its layers and the loss.
STEP = "training_step"
# Metrics compare samples, and torch takes no hooks of scripted layers.
_UNHEARD = (Metric, MetricCollection, torch.jit.ScriptModule)


@dataclass(frozen=True)
class Call:
    """A call of a layer, in fingerprints.

    Args:
        given: Its arguments.
        put_out: What it returned.
        entered: Samples that it was given as an outermost call, 0 if nobody knows.
        exchanged: How many of them entered as their negatives.
        inside: Calls that it made.
        kept: What it returned, if that was asked for.
    """

    given: Tree
    put_out: Tree
    entered: int
    inside: Sequence[Key]
    kept: Sequence[Tensor] = ()
    exchanged: int = 0


class Watch:
    """Inside, all calls of a module's layers are kept in `calls`, in the order in which they end.

    With a `reference`, an outermost call that is given what it was given there is given some samples as their
    negatives: the images, wherever they came from, and tables of as many rows as the batch has samples, but nothing
    that is the module's own. Losses are not watched, nor layers that call one, nor metrics and scripted layers. Batch
    norms rest in evaluation mode, and those without running statistics let everything pass; allowed layers put out what
    they did in the reference, for samples that were not exchanged.

    Args:
        module: Whose layers.
        batch: Of the step, None if nobody knows: a loss by its labels is a call of `STEP`.
        allowed: Paths of layers that may mix samples.
        reference: Calls of a run without exchange.
        split: Which of the two ways to halve the samples.
        others: Whether the other half of them is exchanged.
        keep: Calls whose outputs are kept.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any = None,
        allowed: Collection[str] = (),
        reference: Mapping[Key, Call] | None = None,
        split: int = 0,
        others: bool = False,
        keep: Collection[Key] = (),
    ) -> None:
        self.module, self.allowed, self.reference, self.keep = module, allowed, reference, keep
        self.sizes = set[int]()  # numbers of samples that outermost calls were given
        self.calls: dict[Key, Call] = {}
        self.batch_norms: list[str] = []  # those that were called, and would measure a batch
        self._half: Callable[[int], Tensor] = lambda size: halves(size, split) ^ others
        self._counts: dict[str, int] = {}
        self._open: list[tuple[Key, Tree, int, int, list[Key]]] = []
        self._losses, self._stack = HeardLosses(labels_in(batch)), ExitStack()
        self._samples = {len(it) for it in leaves(batch) if it.ndim}
        own = [it for it in (*module.parameters(), *module.buffers()) if not nn.parameter.is_lazy(it)]
        self._own = {it.untyped_storage().data_ptr() for it in own if it.layout == torch.strided}
        self._deaf = 0  # inside how many losses
        self._losing = set[Key]()  # calls that call a loss

    def __enter__(self) -> "Watch":
        parts = dict(self.module.named_modules())
        unheard = [path for path, part in parts.items() if isinstance(part, _UNHEARD)]
        for path, part in parts.items():
            if lies_in(path, unheard):
                continue
            if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
                self._rest(part_name(path), part)
            if path:
                begin, end = partial(self._begin, part_name(path)), partial(self._end, part_name(path))
                self._stack.callback(part.register_forward_pre_hook(begin, with_kwargs=True).remove)
                self._stack.callback(part.register_forward_hook(end, with_kwargs=True).remove)
        # Not by hooks, for a step may call `self.forward` itself.
        self._stack.callback(Around(self.module, "forward", self._forward).undo)
        self._stack.enter_context(self._losses)
        return self

    def __exit__(self, *caught: Any) -> None:
        self._stack.close()
        for number, heard in enumerate(it for it in self._losses.losses if it.of_batch):
            kept = [heard.given] if (STEP, number) in self.keep else []
            self.calls[STEP, number] = Call([], prints(heard.given), 0, [], kept)

    def _rest(self, path: str, part: Any) -> None:
        self._stack.callback(part.register_forward_pre_hook(lambda *_: self._note(path)).remove)
        if part.running_mean is None:
            self._stack.callback(Around(part, "forward", lambda proceed, value: value).undo)
        elif part.training:
            part.training = False
            self._stack.callback(part.train)

    def _note(self, path: str) -> None:
        if path not in self.batch_norms:
            self.batch_norms.append(path)

    def _forward(self, proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._begin("", self.module, args, kwargs)
        output = proceed(*args, **kwargs)
        return self._end("", self.module, args, kwargs, output)

    def _begin(self, path: str, part: nn.Module, args: Any, kwargs: Any) -> Any:
        self._deaf += _is_loss(path, part)
        if self._deaf:
            self._losing.update(key for key, *_ in self._open)
            return args, kwargs
        key = (path, self._counts.get(path, 0))
        self._counts[path] = key[1] + 1
        given, entered, exchanged = _prints_of(args, kwargs), 0, 0
        if not self._open:
            turned, entered = with_negatives([args, kwargs], self._half, self._is_no_sample)
            self.sizes |= {entered} - {0}
            before = None if self.reference is None else self.reference.get(key)
            if before is not None and _alike(before.given, given):
                args, kwargs = turned
                given, exchanged = _prints_of(args, kwargs), int(self._half(entered).sum())
        self._open.append((key, given, entered, exchanged, []))
        return args, kwargs

    def _is_no_sample(self, tensor: Tensor) -> bool:
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() in self._own:
            return True
        return tensor.ndim == 2 and bool(self._samples) and len(tensor) not in self._samples

    def _end(self, path: str, part: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self._deaf:
            self._deaf -= _is_loss(path, part)
            return output
        key, given, entered, exchanged, inside = self._open.pop()
        if self._open:
            self._open[-1][4].append(key)
        if key in self._losing:
            return output
        if path in self.allowed and isinstance(output, Tensor):
            output = self._unmixed(key, given, output)
        kept = [it.detach().clone() for it in leaves(output)] if key in self.keep or path in self.allowed else []
        # What a layer returns as a tuple are several results, never samples.
        results = dict(enumerate(output)) if isinstance(output, tuple) else output
        self.calls[key] = Call(given, prints(results), entered, inside, kept, exchanged)
        return output

    def _unmixed(self, key: Key, given: Tree, output: Tensor) -> Tensor:
        before = None if self.reference is None else self.reference.get(key)
        if before is not None and output.ndim and len(output) in self.sizes and before.kept[0].shape == output.shape:
            rows = changed(before.given, given, len(output), alone=True)
            if rows is not None:
                return torch.where(rows.to(output.device).view(-1, *[1] * (output.ndim - 1)), output, before.kept[0])
        return output


def _prints_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
    return prints({**dict(enumerate(args)), **kwargs})


def leaking_rows(key: Key, before: Mapping[Key, Call], watch: Watch) -> Tensor | None:
    """`(N,)`, the rows of a call's output that change though those of its input do not; None if it cannot be judged.

    It cannot if all rows of what it was given had changed, or none. Rows are as many as samples of an outermost call.
    """
    own, now = before[key], watch.calls.get(key)
    if now is None:
        return None
    if key[0] == STEP:
        return _leaking_step(own, now, watch)
    for count in sorted(watch.sizes & sizes(own.given) & sizes(own.put_out), reverse=True):
        given = changed(own.given, now.given, count, alone=True)
        put_out = changed(own.put_out, now.put_out, count)
        if given is not None and put_out is not None and 0 < int(given.sum()) < count:
            return put_out & ~given
    return None


def _leaking_step(own: Call, now: Call, watch: Watch) -> Tensor | None:
    """A step may put rows in another order, so they are counted: more have changed than were exchanged."""
    if not isinstance(own.put_out, Tensor):
        return None
    count = len(own.put_out)
    put_out = changed(own.put_out, now.put_out, count)
    exchanged = max((it.exchanged for it in watch.calls.values() if it.entered == count), default=0)
    return None if put_out is None or not exchanged else put_out & bool(int(put_out.sum()) > exchanged)


def _alike(left: Tree, right: Tree) -> bool:
    pairs = leaves(left), leaves(right)
    return len(pairs[0]) == len(pairs[1]) and all(map(torch.equal, *pairs))


def _is_loss(path: str, part: nn.Module) -> bool:
    """What compares samples on purpose: torch's losses, and what is named as one."""
    words = (type(part).__name__.lower(), path.rpartition(".")[2].lower())
    return isinstance(part, _Loss) or any(it.endswith(("loss", "losses", "criterion")) for it in words)

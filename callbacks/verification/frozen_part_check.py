"""Frozen-part check: says that a part which must not train moves, gets a gradient or lies on trained memory."""

from collections.abc import Sequence
from typing import Any, final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..hooks._added import is_added
from ..hooks._findings import Action
from ..hooks._frozen import lies_in, part_name
from ..hooks._live_tensors import plain_name
from ..hooks.folded import Folded
from ..hooks.freezing import Freezing
from ..hooks.inspections import Inspections
from ..hooks.method import callbacks_of
from ._tensors import fingerprints, overlapping, some

__all__ = ["FrozenPartCheck", "frozen_parts", "part_at"]


def frozen_parts(module: nn.Module) -> list[str]:
    """The largest parts of a module of whose parameters none requires a gradient, and parameters frozen singly.

    Names are those that they have when no part is compiled.

    >>> body = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    >>> _ = body[1].requires_grad_(False), body[2].bias.requires_grad_(False)
    >>> frozen_parts(body)
    ['1', '2.bias']
    """
    found: list[str] = []
    for name, part in module.named_modules():
        parameters = list(part.parameters())
        name = part_name(name)
        if name and parameters and not any(it.requires_grad for it in parameters) and not lies_in(name, found):
            found.append(name)
    frozen = [plain_name(name) for name, it in module.named_parameters() if not it.requires_grad]
    found += [name for name in frozen if not lies_in(name, found)]
    # What a callback adds it sees to itself.
    return [name for name in found if not is_added(name)]


def part_at(module: nn.Module, path: str) -> nn.Module | nn.Parameter:
    """What a dotted path names: a part, a parameter, or an entry of a plain list in which a teacher is kept.

    Raises:
        AttributeError: there is nothing of that name, or it holds no tensors.
    """
    found: Any = module
    for name in path.split("."):
        numbered = isinstance(found, list | tuple) and name.isdecimal() and int(name) < len(found)
        found = found[int(name)] if numbered else getattr(found, name)
    if not isinstance(found, nn.Module | nn.Parameter):
        raise AttributeError(f"{path} is a {type(found).__name__}")
    return found


@final
class FrozenPartCheck(Inspections):
    """Says that a frozen part moves, gets a gradient, or shares its memory with what trains.

    Of each watched part it keeps one whole number a parameter and buffer and compares them after the first optimizer
    step, after every n-th one and at the end of each epoch, so that a single changed bit is noticed. A batch norm that
    runs in training mode, whose statistics follow the batches though its weights stand still, is named as such.
    Weights, random streams and logs of the run are those without it.

    A part that merely stands in an optimizer is fine: torch's optimizers pass over what has no gradient, with its
    weight decay and momentum. Should one move it all the same, the check says which.

    Args:
        parts: Dotted names of parts or parameters, without the `_orig_mod` of compiled ones, or of a teacher kept in a
            plain list (`teachers.0`). None: whatever is frozen when training starts, each layer until someone thaws it;
            of what a callback freezes and lets run in training mode, as `SlimFit` and `LoRA` do, batch norm's
            statistics may move.
        may_move: Names of parts, or inside of parts, that follow others by design, as a momentum teacher does: they may
            change, but get no gradient and share no memory. They need not be among `parts`.
        every_n_steps: Optimizer steps from one look to the next, >= 1.
        action: `error` ends the fit with what was found, `warn` says it, once each. Neutral: `off`.
        name: Part of the state key.

    Raises:
        ValueError: from the constructor, for a setting out of range; when training starts, for a name that the module
            does not have or that holds no tensors.
        RuntimeError: with `action="error"`: when training starts, if what is named requires a gradient or shares memory
            with a trained parameter; after a step, if it moved or has a gradient.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import FrozenPartCheck
        >>> trainer = Trainer(callbacks=[FrozenPartCheck(["teacher"])], accelerator="cpu", logger=False)

    See also:
        `HeadFirst` and `Unfreeze`, which freeze parts and let them rest in evaluation mode.
    """

    def __init__(
        self,
        parts: list[str] | None = None,
        may_move: list[str] | None = None,
        every_n_steps: int = 100,
        action: Action = "error",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, action=action, name=name)
        for argument, value in (("parts", parts), ("may_move", may_move)):
            if isinstance(value, str) or (value is not None and not all(it and isinstance(it, str) for it in value)):
                raise ValueError(f"FrozenPartCheck: {argument} is {value!r}; give a list of dotted names.")
        self.parts, self.may_move = parts, may_move
        self._movable = [part_name(it) for it in may_move or ()]
        self._watched: dict[str, nn.Module | nn.Parameter] = {}
        self._then: dict[str, int] = {}
        self._norms_may_run = False

    def begin(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> list[str]:
        parts = frozen_parts(pl_module) if self.parts is None else map(part_name, self.parts)
        named = [*parts, *self._movable]
        self._watched = {}
        for path in dict.fromkeys(named):
            if any(path.startswith(f"{other}.") for other in named):
                continue
            try:
                self._watched[path] = part_at(pl_module, path)
            except (AttributeError, IndexError) as error:
                close = [it for it, part in pl_module.named_children() if next(part.parameters(), None) is not None]
                raise ValueError(
                    f"FrozenPartCheck: {type(pl_module).__name__} has no part {path!r}; give a dotted name below "
                    f"{', '.join(close) or 'the module'}."
                ) from error
            if not _tensors(path, self._watched[path]):
                raise ValueError(
                    f"FrozenPartCheck: the part {path!r} ({type(self._watched[path]).__name__}) has neither parameters "
                    "nor buffers that could move; name another."
                )
        # Those that freeze and let norms run, as `SlimFit` and `LoRA`, mean it.
        freezers = [it for it in callbacks_of(pl_module.trainer) if isinstance(it, Freezing | Folded) and not it.off]
        self._norms_may_run = self.parts is None and any(not it.rests for it in freezers)
        if not self._watched:
            rank_zero_info(
                "FrozenPartCheck: nothing of the module is frozen, so nothing is watched; name with parts= what should "
                "be, or leave it out."
            )
        self._then = self._fingerprints()
        return self._gradients() + self._shared(pl_module, optimizers)

    def inspect(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> list[str]:
        if self.parts is None:
            self._watched = self._still_frozen()
        now = self._fingerprints()
        moved = [name for name, number in self._then.items() if now.get(name, number) != number]
        self._then = now
        moved = [name for name in moved if not lies_in(name, self._movable)]
        return self._gradients() + self._moved(moved, optimizers) + self._shared(pl_module, optimizers)

    def _still_frozen(self) -> dict[str, nn.Module | nn.Parameter]:
        """What is watched, and of a part of which something was thawed the rest."""
        found: dict[str, nn.Module | nn.Parameter] = {}
        for path, part in self._watched.items():
            if _is_frozen(part) or lies_in(path, self._movable):
                found[path] = part
            elif isinstance(part, nn.Module):
                inside = [it.removeprefix(f"{path}.") for it in self._movable if it.startswith(f"{path}.")]
                rest = [*inside, *(it for it in frozen_parts(part) if not lies_in(it, inside))]
                found |= {f"{path}.{it}": part_at(part, it) for it in rest}
        return found

    def end(self) -> None:
        self._watched, self._then = {}, {}

    def _fingerprints(self) -> dict[str, int]:
        tensors = {name: it for path, part in self._watched.items() for name, it in _tensors(path, part).items()}
        # The one place that waits for a device.
        return dict(zip(tensors, fingerprints(tensors.values()).tolist(), strict=True))

    def _gradients(self) -> list[str]:
        found = []
        for path, part in self._watched.items():
            parameters = _parameters(path, part)
            wanted = [name for name, it in parameters.items() if it.requires_grad]
            given = [name for name, it in parameters.items() if it.grad is not None]
            if names := wanted or given:
                what = "requires a gradient" if wanted else "has a gradient"
                freeze = f"self.{path}.requires_grad_(False)"
                found.append(
                    f"`{path}` {what} ({some(names)}); call `{freeze}` before optimizers are made"
                    + ("" if wanted else " and leave no `.grad` from earlier steps")
                )
        return found

    def _moved(self, names: list[str], optimizers: Sequence[Optimizer]) -> list[str]:
        found = []
        for path, part in self._watched.items():
            own = [name for name in names if name == path or name.startswith(f"{path}.")]
            norms = _running_norms(path, part)
            by_batches = [
                name for name in own if name.rpartition(".")[0] in norms and name not in _parameters(path, part)
            ]
            weights = [name for name in own if name in _parameters(path, part)]
            buffers = [name for name in own if name not in weights and name not in by_batches]
            if by_batches and not self._norms_may_run:
                layers = list(dict.fromkeys(name.rpartition(".")[0] for name in by_batches))
                found.append(
                    f"batch norm {some(layers)} of the frozen part `{path}` ran in training mode, so its statistics "
                    f"followed the batches; put the part into evaluation mode, `self.{path}.eval()`, where the module "
                    "is made"
                )
            if weights:
                found.append(
                    f"parameters of `{path}` moved ({some(weights)}){_holder(part, optimizers)}; {_ways(path)}"
                )
            if buffers:
                found.append(f"buffers of `{path}` moved ({some(buffers)}); {_ways(path)}")
        return found

    def _shared(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> list[str]:
        found = []
        for path, part in self._watched.items():
            trained: dict[str, Tensor] = {
                plain_name(name): it
                for name, it in pl_module.named_parameters(remove_duplicate=False)
                if it.requires_grad and not lies_in(plain_name(name), (path,))
            }
            for own, other in overlapping(_tensors(path, part), trained)[:1]:
                found.append(
                    f"`{own}` shares its memory with the trained `{other}`, so it moves along; make the part by "
                    "`copy.deepcopy`"
                )
        return found


def _is_frozen(part: nn.Module | nn.Parameter) -> bool:
    return not any(it.requires_grad for it in _parameters("", part).values())


def _parameters(path: str, part: nn.Module | nn.Parameter) -> dict[str, nn.Parameter]:
    if isinstance(part, nn.Parameter):
        return {path: part}
    return {plain_name(f"{path}.{name}"): it for name, it in part.named_parameters()}


def _tensors(path: str, part: nn.Module | nn.Parameter) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the module."""
    buffers = {} if isinstance(part, nn.Parameter) else dict(part.named_buffers())
    return {**_parameters(path, part), **{plain_name(f"{path}.{name}"): it for name, it in buffers.items()}}


def _running_norms(path: str, part: nn.Module | nn.Parameter) -> list[str]:
    """Batch norms that measure now."""
    layers = [] if isinstance(part, nn.Parameter) else part.named_modules()
    return [
        part_name(f"{path}.{name}" if name else path)
        for name, it in layers
        if isinstance(it, _BatchNorm) and it.training and it.track_running_stats
    ]


def _holder(part: nn.Module | nn.Parameter, optimizers: Sequence[Optimizer]) -> str:
    own = {id(it) for it in _parameters("", part).values()}
    for number, optimizer in enumerate(optimizers):
        if any(id(it) in own for group in optimizer.param_groups for it in group["params"]):
            return f", which optimizer {number} ({type(optimizer).__name__}) holds"
    return ""


def _ways(path: str) -> str:
    return f"look for what writes them, or name {path!r} in may_move if it follows another part by design"

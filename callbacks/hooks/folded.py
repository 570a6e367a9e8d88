"""The folded seam: layers train with something added to them, which is folded into their weights when it is written.

While a fit runs, validations too, the layers' own weights and the additions stand apart. Whatever writes a file asks
the strategy for the module's state, and there the folded weights stand in, so a file loads anywhere and predicts what
was scored; the callback's state holds the additions and the weights that they were folded into. After a fit the module
holds the folded weights and nothing is left on it. Folding rounds once, in the weights' own precision.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ._added import is_added
from ._addition import Addition, Hung
from ._around import Around, last_word
from ._frozen import part_name
from ._live_tensors import plain_name
from ._trained_parts import TrainedParts
from .ensemble import Ensemble
from .method import Method, Place

__all__ = ["Addition", "Folded"]


class Folded(TrainedParts):
    """Trains layers with additions; a method says which layers get what, and what else trains.

    Additions are hung on their layers at set-up, so that optimizers and DDP have them, and taken off after the fit,
    after an exception too. A checkpoint's module and optimizers are those of a run without them; what optimizers keep
    of the additions stands in the callback's state. A fit that is not resumed begins with new additions.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, if the method refuses the module, a layer has an addition of another callback or shares
            its weights, or the Trainer keeps members of an ensemble or exchanges layers; when a checkpoint is loaded
            whose additions are others; before the first batch, if no optimizer has the additions.
    """

    place = Place.NETWORK

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._hung: list[Hung] = []  # during a fit
        self._ready: list[tuple[str, nn.Module, Addition]] = []  # before they are hung
        self._frozen: list[nn.Parameter] = []
        self._files: Around | None = None
        self._words: list[Around] = []

    @abstractmethod
    def additions(self, pl_module: LightningModule) -> Mapping[str, Addition]:
        """What is added, by the path of its layer without wrappers of `torch.compile`; all ranks must make the same.

        Raises:
            ValueError: The module does not fit.
        """

    def trained(self, pl_module: LightningModule) -> Collection[str] | None:
        """Plain names of the module's own parameters that train beside the additions; None if all do as they would."""
        return None

    def refuses(self, trainer: Trainer) -> str | None:
        """Half a sentence: why this does not go with the Trainer's other callbacks, and what to do; None if it does."""
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        self._refuse_others(trainer)
        additions, trained = self.additions(pl_module), self.trained(pl_module)
        layers = {part_name(name): part for name, part in pl_module.named_modules()}
        self._ready = [(path, layers[path], it) for path, it in additions.items()]
        self._refuse_shared(trainer, pl_module)
        if any(name != plain_name(f"{name}.")[:-1] for name, _ in pl_module.named_modules()):
            # A part that was called before it was compiled for this fit would not see its layers' hooks.
            torch.compiler.reset()
        self._freeze(pl_module, trained)
        if self.by_optimizers:
            self._hang(pl_module)
        self._at_work = bool(self._hung or self._ready)
        # Innermost: an average, whoever came first, is to be folded and not to cover what was folded.
        files = Around(trainer.strategy, "lightning_module_state_dict", self._with_folded, innermost=True)
        self._files = files

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.by_optimizers and self._ready:
            self._hang(pl_module)
            if self._kept:
                self.take_back(self._kept)
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        for number, hung in enumerate(self._hung):
            hung.addition.begin(trainer.global_rank, trainer.current_epoch, batch_idx, number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        # Callbacks that hear of the exception after this one may still write checkpoints.
        self._leave_after(trainer.strategy)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        # An average is put into the module by a callback that hears of the end after this one.
        self._leave_after(pl_module)

    def values(self) -> dict[str, Any]:
        return {
            "additions": {hung.path: hung.values() for hung in self._hung},
            "unfolded": {hung.path: hung.unfolded() for hung in self._hung},
        }

    def take_back(self, values: Mapping[str, Any]) -> None:
        saved, shapes = values["additions"], _shapes(self._hung)
        theirs = {path: {name: tuple(it.shape) for name, it in tensors.items()} for path, tensors in saved.items()}
        if theirs != shapes:
            path = next(path for path in [*theirs, *shapes] if theirs.get(path) != shapes.get(path))
            raise ValueError(
                f"{type(self).__name__}: the checkpoint holds {_told(theirs.get(path))} for the layer {path!r} and "
                f"this Trainer has {_told(shapes.get(path))}; resume with the settings of the run that wrote it, or "
                "load its weights alone, in which all is folded, and begin anew."
            )
        for hung in self._hung:
            hung.write(saved[hung.path], values["unfolded"][hung.path])

    def untrained(self, name: str, pl_module: LightningModule) -> str:
        path = next(it.path for it in self._hung if name.startswith(f"{it.path}."))
        return (
            f"{type(self).__name__}: no optimizer has what was added to the layer {path!r}; let configure_optimizers "
            f"of {type(pl_module).__name__} take the parameters of a part that holds the layer, or of `self`, instead "
            "of naming some, or name other layers."
        )

    def _hang(self, pl_module: LightningModule) -> None:
        for path, layer, addition in self._ready:
            weight = next(layer.parameters(recurse=False))
            addition.to(weight.device, weight.dtype)
            self._hung.append(Hung(path, layer, addition, self.state_key))
            self._parameters |= {f"{path}.{name}": it for name, it in addition.named_parameters()}
        self._ready = []

    def _freeze(self, pl_module: LightningModule, trained: Collection[str] | None) -> None:
        if trained is None:
            return
        # What another callback has added trains with it.
        plain = {plain_name(name): it for name, it in pl_module.named_parameters() if not is_added(name)}
        for name, parameter in plain.items():
            if parameter.requires_grad and name not in trained:
                parameter.requires_grad_(False)
                # What is left of an earlier fit would be stepped with.
                parameter.grad = None
                self._frozen.append(parameter)
        new = sum(it.numel() for _, _, addition in self._ready for it in addition.parameters())
        own, all_of_it = sum(plain[name].numel() for name in trained), sum(it.numel() for it in plain.values())
        layers = "1 layer" if len(self._ready) == 1 else f"{len(self._ready)} layers"
        rank_zero_info(
            f"{type(self).__name__}: {new + own:,} parameters train beside {all_of_it - own:,} that are frozen: "
            f"{new:,} added to {layers} and {own:,} of the module's {all_of_it:,}."
        )

    def _leave_after(self, owner: Any) -> None:
        if self._files is None:
            return

        # Of the module's end and the strategy's the first that comes does it.
        self._words.append(last_word(owner, "teardown", self._leave))

    def _leave(self) -> None:
        if self._files is None:
            return
        for around in (self._files, *self._words):
            around.undo()
        self._files, self._words = None, []
        self._rest()
        for hung in self._hung:
            hung.fold()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._hung, self._ready, self._frozen = [], [], []

    def _with_folded(self, proceed: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The module's state as it is with folded weights in place of those that train."""
        pairs = [pair for hung in self._hung for pair in hung.folded()]
        own = [parameter.data for parameter, _ in pairs]
        try:
            # Storage is exchanged, not copied: the returned state refers to what was folded and outlives the exchange.
            for parameter, value in pairs:
                parameter.data = value
            return proceed()
        finally:
            for (parameter, _), data in zip(pairs, own, strict=True):
                parameter.data = data

    def _refuse_others(self, trainer: Trainer) -> None:
        kind, reason = type(self).__name__, self.refuses(trainer)
        if reason is not None:
            raise ValueError(f"{kind}: {reason}.")
        for other in self.rivals(trainer, Ensemble):
            if getattr(other, "snapshots", 0):
                raise ValueError(
                    f"{kind}: the Trainer also has {other.state_key}, which keeps members of the network while it "
                    f"trains, and those would lack what {kind} adds; give it snapshots=0, or leave one of them out."
                )
        for other in self.rivals(trainer, Method):
            if isinstance(other, Method) and other.changes_architecture:
                raise ValueError(
                    f"{kind}: the Trainer also has {other.state_key}, which exchanges layers that {kind} would add to; "
                    f"use it in a fit of its own, before {kind}."
                )

    def _refuse_shared(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kind = type(self).__name__
        theirs = {
            id(layer): other.state_key
            for other in self.rivals(trainer, Folded)
            if isinstance(other, Folded)
            for layer in [*(it.layer for it in other._hung), *(layer for _, layer, _ in other._ready)]
        }
        owners: dict[int, list[str]] = {}
        for name, part in pl_module.named_modules():
            for parameter in part.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(part_name(name))
        ready, self._ready = self._ready, []
        for path, layer, _ in ready:
            if id(layer) in theirs:
                raise ValueError(
                    f"{kind}: {theirs[id(layer)]} adds to the layer {path!r} too, and which comes first would matter; "
                    "name other layers for one of them."
                )
            for parameter in layer.parameters(recurse=False):
                others = [name for name in owners[id(parameter)] if name != path]
                if others:
                    raise ValueError(
                        f"{kind}: the layer {path!r} shares a weight with {others[0]!r}, which would change with it "
                        "when files are written; name other layers."
                    )
        self._ready = ready


def _shapes(hung: list[Hung]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {it.path: {name: tuple(value.shape) for name, value in it.values().items()} for it in hung}


def _told(shapes: Mapping[str, tuple[int, ...]] | None) -> str:
    return "none" if shapes is None else " and ".join(f"{name} {shape}" for name, shape in shapes.items())

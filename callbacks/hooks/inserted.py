"""The inserted seam: behind chosen layers stand parts that train beside the network and change what it puts out.

They do so while `training_step` runs; a validation, a prediction and whoever calls the network between two steps see
the network as it is. Public hooks used: those of `_trained_parts.py`, `on_train_batch_start`, `on_train_batch_end`; the
module's `training_step` and the strategy's `batch_to_device` are wrapped; torch's forward hooks.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._added import ASIDE, Added
from ._around import Around, last_word
from ._checks import takes_batches, whole
from ._example_images import image_shape
from ._fields import Fields
from ._frozen import part_name
from ._replay import Replay, read_streams, rewind
from ._trained_parts import TrainedParts
from ._unnoticed import as_if_nobody_looked
from .method import Place

__all__ = ["Inserted"]


class Inserted(TrainedParts):
    """Changes what layers put out in training, by parts with parameters that the module's optimizers step.

    Parts hang on their layers, so that optimizers and DDP have them; files, averages and evaluations know nothing of
    them, and the callback's state holds their values. A fit that is not resumed begins with new ones. Draws are a
    function of (seed, rank, epoch, batch, layer), the same when a batch is computed again.

    Args:
        network: Path of the part of the module that makes something of images alone; empty is the module itself.
        seed: Of the draws, at least 0.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: `seed` is none; at set-up, if `training_step` fetches its batches itself, there is no such network,
            the shape of images cannot be found out, or what `chosen` raises; before the first step, if no optimizer
            has the parts; in the first batch, if a layer puts out something else than at set-up, or is computed again
            in backward; after a batch, what `amiss` tells.
    """

    place = Place.NETWORK

    def __init__(self, *, network: str, seed: int, image_key: str, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "seed", seed, 0)
        self.network, self.seed, self.image_key = network, seed, image_key
        self.trained: dict[str, nn.Module] = {}  # during a fit, by path of the layer
        self._layers: dict[str, nn.Module] = {}
        self._moment: tuple[int, ...] = ()
        self._calls: dict[str, int] | None = None  # of each layer in this step; None outside of `training_step`

    @property
    def passing(self) -> bool:
        """Whether the step that is computed now leaves no trace, as that of a search, so a part must not change."""
        return Replay.running > 0

    @abstractmethod
    def chosen(self, pl_module: LightningModule, maps: Mapping[str, torch.Size]) -> Sequence[str]:
        """Paths of the layers, among those of `maps`; a ValueError if the module does not fit.

        Args:
            pl_module: The module.
            maps: By path, without wrappers of `torch.compile`, the shape of what each part of the module put out for
                two images, of those that put out one tensor; in the order in which they did so.
        """

    @abstractmethod
    def part(self, shape: torch.Size) -> nn.Module:
        """What is inserted behind a layer that puts out this shape, the same on all ranks."""

    @abstractmethod
    def changed(self, part: nn.Module, output: Tensor, random: np.random.Generator) -> Tensor:
        """What stands in the place of a layer's output; all parameters of the part get a gradient through it."""

    def amiss(self) -> str | None:
        """What is wrong with how layers ran in the batch that is over, a sentence to be raised; None if nothing is."""
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        takes_batches(type(self).__name__, pl_module)
        self.undo_later(self._release)
        # When all callbacks are set up: one that exchanges layers has done so.
        self.undo_later(last_word(pl_module, "setup", partial(self._insert, trainer, pl_module)).undo)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        for number, (path, layer) in enumerate(self._layers.items()):
            self.undo_later(layer.register_forward_hook(self._changer(trainer, path, number)).remove)

        def step(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            # A validation_step may call it too.
            if not trainer.training:
                return proceed(*args, **kwargs)
            self._calls = {}
            try:
                return proceed(*args, **kwargs)
            finally:
                self._calls = None

        def fetched(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            # A search computes the step as soon as it has the batch, which only begins then.
            if trainer.training:
                self._draw_at(trainer, trainer.fit_loop.epoch_loop.batch_idx + 1)
            return proceed(*args, **kwargs)

        self.undo_later(Around(trainer.strategy, "batch_to_device", fetched).undo)
        own = pl_module.training_step
        self.undo_later(Around(pl_module, "training_step", step).undo)
        # Lightning reads there which arguments a wrapped `training_step` takes.
        vars(pl_module.training_step)["__wrapped__"] = getattr(own, "__wrapped__", own)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._draw_at(trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if (wrong := self.amiss()) is not None:
            raise ValueError(wrong)

    def _draw_at(self, trainer: Trainer, batch_idx: int) -> None:
        self._moment = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)

    def values(self) -> dict[str, Any]:
        parts = {
            path: {key: it.detach().to("cpu", copy=True) for key, it in part.state_dict().items()}
            for path, part in self.trained.items()
        }
        return {"parts": parts}

    def take_back(self, values: Mapping[str, Any]) -> None:
        saved = values["parts"]
        theirs = {path: {key: it.shape for key, it in part.items()} for path, part in saved.items()}
        own = {path: {key: it.shape for key, it in part.state_dict().items()} for path, part in self.trained.items()}
        if theirs != own:
            raise ValueError(
                f"{type(self).__name__}: the checkpoint holds parts of other layers ({', '.join(theirs) or 'none'}) "
                f"than this Trainer has ({', '.join(own) or 'none'}), or of other shapes; resume with the settings of "
                "the run that wrote it, or load its weights alone and begin anew."
            )
        for path, part in self.trained.items():
            part.load_state_dict(saved[path])

    def untrained(self, name: str, pl_module: LightningModule) -> str:
        return (
            f"{type(self).__name__}: no optimizer has {name!r}, which trains beside its layer; let "
            f"configure_optimizers of {type(pl_module).__name__} take the parameters of a part that holds the layer, "
            "or of `self`, instead of naming some, or name other layers."
        )

    def _insert(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._at_work:
            return
        if any("_orig_mod" in name for name, _ in pl_module.named_modules()):
            # A part that was called before it was compiled for this fit would not see its layers' hooks.
            torch.compiler.reset()
        layers = {part_name(path): part for path, part in pl_module.named_modules()}
        shapes = self._look(trainer, pl_module, layers)
        names = self.chosen(pl_module, shapes)
        self._layers = {path: layers[path] for path in names}
        self.trained = {path: self.part(shapes[path]) for path in names}
        for path, part in self.trained.items():
            host, owner, added = layers[path], self.state_key.replace(".", "-"), Added({path: part})
            # A Sequential would call it.
            while isinstance(host, nn.Sequential):
                host = host[-1]
            for like in list(pl_module.parameters())[:1]:
                added.to(like.device, like.dtype)
            added.hang_on(host, f"{owner}-{path.replace('.', '-')}", ASIDE)
            self.undo_later(partial(added.take_from, host, f"{owner}-{path.replace('.', '-')}", ASIDE))
            self._parameters |= {f"{path}.{key}": it for key, it in part.named_parameters()}
        self._at_work = True

    def _look(
        self, trainer: Trainer, pl_module: LightningModule, layers: Mapping[str, nn.Module]
    ) -> dict[str, torch.Size]:
        """The shape of what parts put out for two images of zeros."""
        kind, found = type(self).__name__, dict[str, torch.Size]()
        if part_name(self.network) not in layers:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} has no part {self.network!r}; name one with network=."
            )

        def keep(path: str, part: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.pop(path, None)
                found[path] = output.shape

        # Asking for a batch draws random numbers.
        streams = read_streams(trainer.strategy.root_device)
        try:
            images = torch.zeros(2, *image_shape(trainer, pl_module, Fields(kind, self.image_key, "target")))
            with as_if_nobody_looked(trainer, pl_module), torch.no_grad():
                for path, layer in layers.items():
                    layer.register_forward_hook(partial(keep, path))
                network = layers[part_name(self.network)].eval()
                like = next(network.parameters(), images)
                network(images.to(like.device, like.dtype))
        finally:
            rewind(streams)
        return found

    def _changer(self, trainer: Trainer, path: str, number: int) -> Callable[[nn.Module, Any, Any], Any]:
        # Its draws are numpy's, which no compiler follows.
        @torch.compiler.disable
        def change(layer: nn.Module, given: Any, output: Any) -> Any:
            # Private, but torch has no public way to ask whether backward runs.
            if trainer.training and torch._C._current_graph_task_id() != -1:
                raise ValueError(
                    f"{type(self).__name__}: layer {path!r} is computed again in backward, as activation checkpointing "
                    "does (torch.utils.checkpoint), where it would not be changed alike; leave the layer out of the "
                    "checkpointing, or name others with layers=."
                )
            if self._calls is None:
                return output
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"{type(self).__name__}: layer {path!r} put out a {type(output).__name__} and no tensor; name "
                    "another one with layers=."
                )
            call = self._calls[path] = self._calls.get(path, -1) + 1
            random = np.random.default_rng((*self._moment, number, call))
            return self.changed(self.trained[path], output, random)

        return change

    def _release(self) -> None:
        self._rest()
        self.trained, self._layers = {}, {}

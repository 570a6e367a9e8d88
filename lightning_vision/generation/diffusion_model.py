"""A network, a process and a sampler: what learns to make images from noise.

Letters: B images `(B, C, H, W)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn

from lightning_vision.base.hyperparameters import describe, is_description, rebuild
from lightning_vision.base.weights import load_weights

from .draws import Draws
from .generator import ImageGenerator
from .guidance import drop_labels, guided
from .latent_space import LatentSpace
from .networks.create import create_network
from .processes.edit import Edit
from .processes.flow_matching import FlowMatching
from .processes.process import Network, Process

__all__ = ["DiffusionModel"]


@final
class DiffusionModel(ImageGenerator):
    """Learns to make images by any process: flow matching, diffusion, EDM, score matching, consistency.

    The network learns with labels, and without for a share of the images, so that one network can be guided by the
    difference (classifier-free guidance). What is sampled are the weights as they stand in the module: those of an
    average, where a callback such as `EMA` keeps one.

    Args:
        network: `unet`, `dit`, or a module that maps x `(B, C, H, W)`, times `(B,)` and labels `(B,)` to an answer of
            x's shape; diffusers' networks are taken as they are.
        process: What the network learns; None is `FlowMatching()`.
        conditional: Whether labels are read; False learns without.
        label_dropout: Share of labels that are hidden in training, 0..1; 0 keeps all, and then nothing guides.
        guidance: w of `guided`: 0 follows the labels as they were learned, more exaggerates them.
        sampler: One of the process's samplers; None is its first.
        sampler_settings: Further arguments of the sampler, for example `eta: 1.0` of `ddim`.
        steps: Of the sampler, at least 1.
        latent_vae: A VAE in whose codes everything happens: its checkpoint, or a module with `encode` and `decode`; it
            is not trained. None, neutral, works on pixels.
        latent_scale: Codes are multiplied by it; None is 1 over their deviation in the first batch of the training.
        weights: Start the network from a file.
        network_settings: Further arguments of `UNet` or `DiT`, for example `channels: 64`.
        num_classes: Labels are 0 .. num_classes - 1; the command takes it from the datamodule, 0 reads none.
        in_channels: C; the command takes it from the datamodule, elsewhere None means 3.
        image_size: H and W, pixels, or one number for both; likewise, elsewhere None means 32.
        seed: Fixes every random draw of training and validation.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms and biases from weight decay.

    Shape:
        Batches are `(image,)`, `(image, label, ...)` or a mapping with `image` and `target`: float32 `(B, C, H, W)`,
        normalised by what the datamodule says, and int64 `(B,)`.

    Raises:
        ValueError: a setting is unknown or out of its range, or sizes do not fit.
        FileNotFoundError: `weights` or `latent_vae` names no file.

    Example:
        >>> settings = {"channels": 16, "multiples": (1, 2), "head_dim": 16}
        >>> model = DiffusionModel(network_settings=settings, num_classes=10, in_channels=1, image_size=8)
        >>> model.sample(2, label=[3, 7], steps=4).shape
        torch.Size([2, 1, 8, 8])

    Reference: guidance: Ho and Salimans 2022, arXiv:2207.12598; a VAE's codes: Rombach et al. 2022, arXiv:2112.10752

    BibTeX:
        @article{ho2022classifier,
          title = {Classifier-Free Diffusion Guidance},
          author = {Ho, Jonathan and Salimans, Tim},
          journal = {arXiv preprint arXiv:2207.12598},
          year = {2022},
        }

    See also:
        `FlowMatching`, `Diffusion`, `EDM`, `NCSN`, `Consistency`, `ConstantAcceleration`: what can be learned.
    """

    superseded = MappingProxyType({"weights": None})

    def __init__(
        self,
        network: str | nn.Module = "unet",
        process: Process | None = None,
        conditional: bool = True,
        label_dropout: float = 0.1,
        guidance: float = 0.0,
        sampler: str | None = None,
        sampler_settings: dict[str, Any] | None = None,
        steps: int = 50,
        latent_vae: str | nn.Module | None = None,
        latent_scale: float | None = None,
        weights: str | None = None,
        network_settings: dict[str, Any] | None = None,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: int | Sequence[int] | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
    ) -> None:
        made = FlowMatching() if process is None else rebuild(process, Process)
        made = made if isinstance(made, Process) else made()
        space = None if latent_vae is None else LatentSpace.of(latent_vae, latent_scale)
        # Rebound, because what is saved are the arguments as they stand when the base class looks at them.
        process = _described(made)
        latent_vae = None if space is None else space.description or latent_vae
        super().__init__(
            num_classes if conditional else 0,
            in_channels,
            image_size,
            seed,
            optimizer,
            lr_scheduler,
            lr_interval,
            no_decay_norm_bias,
        )
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"DiffusionModel: label_dropout is {label_dropout}; give a share of the labels, 0 to 1")
        self.process, self.label_dropout = made, label_dropout
        self.steps, self.guidance = steps, guidance
        self.sampler, self.sampler_settings = sampler, dict(sampler_settings or {})
        self.network_calls: int | None = None
        channels, size = self.in_channels, self.image_size
        if space is not None:
            channels, *sides = space.code_shape(channels, size)
            size = (sides[0], sides[1])
        self.latent = space
        self.code_shape = (channels, *size)
        if is_description(network):
            network = rebuild(network, nn.Module)()
        make = partial(
            create_network,
            network,
            in_channels=channels,
            image_size=size,
            num_classes=self.num_classes,
            **(network_settings or {}),
        )
        self.network = made.build(make, channels)
        if weights is not None:
            load_weights(self.network, weights)
        self.check_sampling()

    def losses(self, image: Tensor, label: Tensor | None, random: Generator) -> dict[str, Tensor]:
        data = image if self.latent is None else self.latent.encode(image)
        noise = torch.randn(data.shape, generator=random, device=data.device, dtype=data.dtype)
        times, dropped = torch.rand(2, len(data), generator=random, device=data.device)
        if label is not None and self.training:
            label = drop_labels(label, dropped, self.label_dropout, self.num_classes)
        return self.process.terms(self.network, data, noise, times, label, self._progress())

    def make(
        self,
        draws: Draws,
        label: Tensor | None,
        edit: Edit | None = None,
        **settings: Any,
    ) -> Tensor:
        """Normalised images `(B, C, H, W)`, one for each stream of `draws`.

        Args:
            draws: All that is random.
            label: int64 `(B,)`, None where the module reads none.
            edit: Images to go on from, or pixels to keep, both normalised.
            **settings: `steps`, `guidance`, `sampler` and settings of the sampler, in place of the module's own.

        Raises:
            ValueError: a setting is out of its range.
        """
        weight = next(self.network.parameters())
        noise = draws.normal(*self.code_shape).to(weight)
        if edit is not None:
            edit = self._fitting(edit, noise)
        made = self._sampled(self.network, noise, label, draws, settings, edit)
        return made if self.latent is None else self.latent.decode(made)

    def check_sampling(self) -> None:
        """Refuse what cannot be sampled with the module's own settings, before anything is learned.

        Raises:
            ValueError: a setting is out of its range.
        """

        def idle(x: Tensor, time: Tensor, label: Any) -> Tensor:
            return x[:, : self.code_shape[0]]

        parts = dict.fromkeys(self.network, idle) if isinstance(self.network, nn.ModuleDict) else idle
        label = torch.zeros(0, dtype=torch.int64) if self.num_classes else None
        self._sampled(parts, torch.zeros(0, *self.code_shape), label, Draws(0, []), {})

    def sampling(self) -> dict[str, Any]:
        names = ("steps", "guidance", "sampler", "sampler_settings")
        return {"process": _described(self.process), **{name: getattr(self, name) for name in names}}

    def setup(self, stage: str) -> None:
        """As `ImageGenerator`.

        Raises:
            ValueError: as there; the VAE was trained on images normalised otherwise; or the process follows the
                training's progress, and nobody knows how long it will be.
        """
        super().setup(stage)
        told = self.preprocessing or {}
        for name, trained in (self.latent.normalised if self.latent else {}).items():
            if name in told and list(told[name]) != trained:
                raise ValueError(
                    f"the VAE was trained on images with {name} {trained} and these have {list(told[name])}; normalise "
                    "them alike"
                )
        endless = self.trainer.max_epochs in (None, -1) and self.trainer.max_steps == -1
        if stage == "fit" and self.process.scheduled and endless:
            raise ValueError(
                f"{type(self.process).__name__} changes with the training's progress, which nobody knows; give "
                "max_epochs or max_steps"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.latent is not None:
            self.latent.measure(self.image_and_label(batch)[0], self.all_gather)

    def _sampled(
        self,
        parts: Any,
        noise: Tensor,
        label: Tensor | None,
        draws: Draws,
        settings: Mapping[str, Any],
        edit: Edit | None = None,
    ) -> Tensor:
        known = {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        sampler = settings.get("sampler") or self.sampler
        # The settings are those of the module's sampler, and may mean nothing to another.
        own = self.sampler_settings if sampler == self.sampler else {}
        further = {**own, **{name: value for name, value in settings.items() if name not in known}}
        steps, guidance = (settings.get(name, known[name]) for name in ("steps", "guidance"))
        if guidance and not self.num_classes:
            raise ValueError(f"guidance is {guidance} and the network was trained without labels; leave guidance at 0")
        if guidance and not self.label_dropout:
            raise ValueError(
                f"guidance is {guidance} and label_dropout=0 never showed the network an image without a label; leave "
                "guidance at 0"
            )
        calls = _Calls(guidance, self.num_classes)
        several = isinstance(parts, (nn.ModuleDict, dict))
        asked: Any = (
            calls.counted(parts)
            if not several
            else {name: calls.counted(it, name not in self.process.unguided) for name, it in parts.items()}
        )
        made = self.process.sample(asked, noise, steps, label, sampler, draws.like, edit, **further)
        self.network_calls = calls.count
        return made

    def _fitting(self, edit: Edit, noise: Tensor) -> Edit:
        """The edit on the network's device, and in codes where it works on codes."""
        if edit.image.shape != (len(noise), self.in_channels, *self.image_size):
            shape = (len(noise), self.in_channels, *self.image_size)
            raise ValueError(f"the images to go on from are {tuple(edit.image.shape)}; give {shape}, normalised")
        if self.latent is None:
            return Edit(edit.image.to(noise), None if edit.mask is None else edit.mask.to(noise.device), edit.strength)
        if edit.mask is not None:
            raise ValueError("a latent space has no pixels to keep; leave the mask out, or sample without latent_vae")
        return Edit(self.latent.encode(edit.image.to(noise)), None, edit.strength)

    def _progress(self) -> float:
        """Share of the fit's optimizer steps that are over; 0 where nobody asks, or knows how many there are."""
        if not self.process.scheduled or self._trainer is None or not self.training:
            return 0.0
        total = self.trainer.estimated_stepping_batches
        return min(1.0, self.trainer.global_step / total) if 0 < total < float("inf") else 0.0


class _Calls:
    """Guides networks and counts how often an image was shown to one."""

    def __init__(self, guidance: float, num_classes: int) -> None:
        self.guidance, self.num_classes, self.count = guidance, num_classes, 0

    def counted(self, network: Network, follows: bool = True) -> Network:
        weight = self.guidance if follows else 0.0
        asked = guided(network, weight, self.num_classes)

        def answer(x: Tensor, time: Tensor, label: Any) -> Tensor:
            self.count += 2 if weight else 1
            return asked(x, time, label)

        return answer


def _described(process: Process) -> Any:
    """A process as its class and fields, or itself where it has no fields."""
    if not is_dataclass(process):
        return process
    return {**describe(type(process)), "init_args": describe(process)}

"""Two networks against each other under Lightning: one makes images, the other tells them from real ones."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_vision.base.module import VisionModule

__all__ = [
    "AdversarialModule",
    "Adversaries",
    "Forgery",
    "gan_adam",
    "gan_discriminator_loss",
    "gan_generator_loss",
    "refuse_sharded",
]


def gan_discriminator_loss(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of telling real images from made ones: mean over the real plus mean over the made.

    Only the target of real images is smoothed, to 1 - s: smoothed targets of made ones would draw the generator to
    where it is already.

    Args:
        real: Logits of real images, `(B,)`.
        fake: Logits of made images, `(B,)`.
        smoothing: s, 0..1; neutral 0.

    Reference: Goodfellow et al. 2014, arXiv:1406.2661; Salimans et al. 2016, arXiv:1606.03498, section 3.4
    """
    told_real = F.binary_cross_entropy_with_logits(real, torch.full_like(real, 1 - smoothing))
    return told_real + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def gan_generator_loss(fake: Tensor) -> Tensor:
    """Minus the mean log of the probability that made images are real: the loss that does not saturate.

    Args:
        fake: The discriminator's logits of made images, `(B,)`.

    Reference: Goodfellow et al. 2014, arXiv:1406.2661, section 3
    """
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def gan_adam(parameters: Any) -> torch.optim.Adam:
    """Adam with learning rate 0.0002 and first momentum 0.5, of parameters or groups of them.

    Reference: Radford et al. 2016, arXiv:1511.06434, section 3
    """
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


def refuse_sharded(name: str, strategy: Strategy) -> None:
    """Refuse strategies under which a process does not hold all gradients of a network.

    Args:
        name: Of the module.
        strategy: The Trainer's.

    Raises:
        ValueError: it is neither of one device nor DDP.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        kind = type(strategy).__name__
        raise ValueError(f"{name} trains on one device or with DDP, not with {kind}; give strategy='ddp'")


@dataclass(frozen=True)
class Forgery:
    """What a generator made of a batch, and the real images beside it, as the discriminator sees both.

    Args:
        real: Real images.
        fake: Made images, through which gradients reach the generator.
        condition: What the discriminator is told besides, None where that is nothing.
    """

    real: Tensor
    fake: Tensor
    condition: Tensor | None = None


class Adversaries(nn.Module):
    """The two networks of an adversarial module."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


class AdversarialModule(VisionModule, ABC):
    """Base of modules that train a generator against a discriminator; a method says what is made of a batch.

    Each batch is one step of the discriminator and then one of the generator, against the discriminator as it stands
    by then, on the same made images. Lightning counts the generator's step alone, so that `trainer.global_step`,
    `max_steps`, `every_n_train_steps` and schedules count batches; the discriminator's goes through the strategy too,
    with its precision and scaler. Each network has an optimizer and a schedule of its own. A schedule goes on once a
    step or an epoch; `ReduceLROnPlateau` looks at each validation of the fit.

    Under DDP gradients are averaged over processes here, of the network that steps alone, so that the plain strategy
    `ddp` serves; so are running statistics after each batch.

    Logs `loss` (what the generator minimises), its further terms, and `discriminator`.

    Raises:
        ValueError: at set-up, for a strategy other than one device or DDP, and for a `ReduceLROnPlateau` without
            validation; after a validation, if what a `ReduceLROnPlateau` watches was not logged.
    """

    network: Adversaries
    # What is taken from the target of real images.
    label_smoothing: float = 0.0
    # Factors on the generator's terms; with 0 for `adversarial` there is no discriminator's step either.
    weights: Mapping[str, float] = MappingProxyType({"adversarial": 1.0})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    @abstractmethod
    def forge(self, batch: Any, batch_idx: int) -> Forgery:
        """Make what is made of a training batch."""

    @abstractmethod
    def judge(self, image: Tensor, condition: Tensor | None) -> Tensor:
        """The discriminator's logits `(B,)` of real or made images, positive for real."""

    def further_terms(self, forgery: Forgery) -> dict[str, Tensor]:
        """What the generator minimises besides the adversarial loss, by the names in `weights`; none by default."""
        return {}

    def discriminator_terms(self, forgery: Forgery) -> dict[str, Tensor]:
        """`discriminator`, its loss; no gradient reaches the generator."""
        real, fake = (self.judge(it, forgery.condition) for it in (forgery.real, forgery.fake.detach()))
        return {"discriminator": gan_discriminator_loss(real, fake, self.label_smoothing)}

    def generator_terms(self, forgery: Forgery) -> dict[str, Tensor]:
        """`loss`, the weighted sum that the generator minimises, and its terms where there are several."""
        terms = self.further_terms(forgery)
        if self.weights["adversarial"]:
            terms = {"adversarial": gan_generator_loss(self.judge(forgery.fake, forgery.condition)), **terms}
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **(terms if len(terms) > 1 else {})}

    def terms(self, forgery: Forgery) -> dict[str, Tensor]:
        """Losses of both sides, as they are logged."""
        told = self.discriminator_terms(forgery) if self.weights["adversarial"] else {}
        return self.generator_terms(forgery) | told

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found: Any = self.optimizers()
        generator, *discriminators = found if isinstance(found, list) else [found]
        forgery = self.forge(batch, batch_idx)
        told: dict[str, Tensor] = {}
        for discriminator in discriminators:
            told = self.discriminator_terms(forgery)
            self._descend(discriminator, told["discriminator"])
            # The wrapper's own `step` would count a global step.
            self.trainer.strategy.optimizer_step(discriminator.optimizer, _nothing)
        with generator.toggle_model():
            made = self.generator_terms(forgery)
            self._descend(generator, made["loss"], self.network.buffers())
        generator.step()
        for config in self.trainer.lr_scheduler_configs:
            due = config.interval == "step" or self.trainer.is_last_batch
            if due and not isinstance(config.scheduler, ReduceLROnPlateau):
                self.lr_scheduler_step(config.scheduler, None)
        terms = {name: term.detach() for name, term in (made | told).items()}
        self.scalars.log("train", terms, len(forgery.real))
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """An optimizer of the generator and one of the discriminator, each with a schedule of its own.

        Raises:
            ValueError: as `VisionModule`.
        """
        parts = ["network.generator.", *(["network.discriminator."] if self.weights["adversarial"] else [])]
        made = [self.optimizer_for(part) for part in parts]
        for it in made:
            if isinstance(it, dict):
                # Lightning's, which it would warn not to use: `on_validation_epoch_end` does.
                del it["lr_scheduler"]["monitor"]
        return made

    def on_fit_start(self) -> None:
        super().on_fit_start()
        refuse_sharded(type(self).__name__, self.trainer.strategy)
        if not self.trainer.enable_validation and (watching := self._watching()):
            raise ValueError(
                f"{type(self).__name__}: ReduceLROnPlateau watches {self._watched(watching[0])} and this fit validates "
                "nothing; give validation data, or another schedule"
            )

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if not self.trainer.validating or self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        for scheduler in self._watching():
            watched, found = self._watched(scheduler), self.trainer.callback_metrics
            if watched not in found:
                logged = ", ".join(sorted(name for name in found if not name.startswith("train/")))
                raise ValueError(
                    f"{type(self).__name__}: ReduceLROnPlateau watches {watched} and the validation logged {logged}; "
                    "set its monitor to one of these"
                )
            self.lr_scheduler_step(scheduler, found[watched])

    def _descend(self, optimizer: LightningOptimizer, loss: Tensor, shared: Iterable[Tensor] = ()) -> None:
        """Gradients of the loss for the optimizer's parameters, averaged over processes as `shared` is."""
        optimizer.zero_grad()
        strategy: Any = self.trainer.strategy
        if self.trainer.world_size == 1:
            self.manual_backward(loss)
            return
        # DDP's own averaging wants gradients of both networks in each backward pass.
        with strategy.block_backward_sync():
            self.manual_backward(loss)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        shared = [it for it in shared if it.is_floating_point()]
        tensors = [*(it.grad for it in parameters if it.grad is not None), *shared]
        mean = strategy.reduce(torch.cat([it.detach().flatten() for it in tensors]), reduce_op="mean")
        with torch.no_grad():
            for it, own in zip(tensors, mean.split([it.numel() for it in tensors]), strict=True):
                it.copy_(own.view_as(it))

    def _watching(self) -> list[ReduceLROnPlateau]:
        schedulers = (config.scheduler for config in self.trainer.lr_scheduler_configs)
        return [it for it in schedulers if isinstance(it, ReduceLROnPlateau)]

    def _watched(self, scheduler: ReduceLROnPlateau) -> str:
        """What a schedule watches, as `VisionModule` reads it."""
        return str(getattr(scheduler, "monitor", self.judged_by))


def _nothing() -> None:
    """The gradients are there."""

"""Variational autoencoders: images as codes of little more than unit variance, and images of fresh codes."""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from .active_units import ActiveUnits
from .draws import Draws
from .generator import ImageGenerator
from .losses.latent import BalancedGamma, Reconstruction
from .losses.ms_ssim import ms_ssim_l1_loss, scales_for
from .networks.autoencoder import AutoEncoder, CodeAutoEncoder

__all__ = ["VAE"]


@final
class VAE(ImageGenerator):
    """Learns to tell an image from a noisy code, and to keep codes near the normal numbers that images are made of.

    Logs, besides what `ImageGenerator` does, `reconstruction`, `kl` (nats of an image's code), `gamma` where it is
    computed, and `val/active_units`, `test/active_units`. With a code that is a map it serves latent diffusion; with a
    flat one it makes images itself.

    Args:
        balance: `gamma`: the error counts over 2 gamma^2, gamma^2 being what it has come to (`BalancedGamma`); `beta`:
            the divergence counts `beta` times.
        beta: Of `balance="beta"`: factor on the divergence over the numbers of an image, at least 0; 0 is a plain
            autoencoder's.
        gamma_init: gamma at the start, in standard deviations of the normalised images, above 0.
        gamma_decay: Share of gamma^2 that stays at an optimizer step, 0..1; 1 keeps gamma as it is.
        reconstruction: What tells image and answer apart: `mse`, of normalised numbers; or `ms_ssim`, 1 - MS-SSIM of
            pixels from 0 to 1, which needs `balance="beta"`.
        l1_share: Of `ms_ssim`: share of the mean absolute difference in the sum, 0..1; neutral 0.
        ssim_sigma: Of `ms_ssim`: deviation of its Gaussian window, pixels; smaller for images below 11 pixels.
        latent_dim: Numbers of a flat code; None makes it a map.
        latent_channels: Channels of a map.
        two_stage: Train a second VAE on the codes of the first, which makes the codes of images (flat codes only).
        second_dim: Width of its layers.
        channels: Of the finest level of encoder and decoder.
        multiples: Channels of each level over those of the finest; each level halves the image's sides once more.
        blocks: Residual blocks of a level.
        in_channels: C; the command takes it from the datamodule, elsewhere None means 3.
        image_size: H and W, pixels, or one number for both; the command takes it from the datamodule, elsewhere None
            means 32.
        seed: Fixes every random draw of training and validation, at least 0.
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the learning rate.
        lr_interval: Whether the schedule counts epochs or optimizer steps.
        no_decay_norm_bias: Spare norms and biases from weight decay.

    Raises:
        ValueError: a setting is out of its range or does not fit another one.

    Example:
        >>> vae = VAE(in_channels=1, image_size=8, latent_dim=6, channels=8, multiples=(1, 2))
        >>> mean, log_variance = vae.encode(torch.zeros(2, 1, 8, 8))
        >>> mean.shape, vae.sample(3).shape
        (torch.Size([2, 6]), torch.Size([3, 1, 8, 8]))

    Reference: Asperti and Trentin 2020, arXiv:2002.07514; two stages: Dai and Wipf 2019, arXiv:1903.05789; MS-SSIM:
        Snell et al. 2017, arXiv:1511.06409

    BibTeX:
        @article{asperti2020balancing,
          title = {Balancing Reconstruction Error and {Kullback-Leibler} Divergence in Variational Autoencoders},
          author = {Asperti, Andrea and Trentin, Matteo},
          journal = {IEEE Access},
          volume = {8},
          pages = {199440--199448},
          year = {2020},
          eprint = {2002.07514},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Both stages train in one fit, the second on the codes of now. A computed gamma adds its logarithm to the loss,
        which changes no gradient and makes losses of different gammas comparable.

    See also:
        `BalancedGamma`, `ms_ssim_l1_loss`.
    """

    network: "_Stages"

    def __init__(
        self,
        balance: Literal["gamma", "beta"] = "gamma",
        beta: float = 1.0,
        gamma_init: float = 1.0,
        gamma_decay: float = 0.99,
        reconstruction: Literal["mse", "ms_ssim"] = "mse",
        l1_share: float = 0.0,
        ssim_sigma: float = 1.5,
        latent_dim: int | None = 64,
        latent_channels: int = 4,
        two_stage: bool = False,
        second_dim: int = 1024,
        channels: int = 64,
        multiples: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        in_channels: int | None = None,
        image_size: int | Sequence[int] | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
    ) -> None:
        super().__init__(0, in_channels, image_size, seed, optimizer, lr_scheduler, lr_interval, no_decay_norm_bias)
        if balance not in ("gamma", "beta"):
            raise ValueError(f"VAE: balance is {balance!r}; give 'gamma' or 'beta'")
        if reconstruction not in ("mse", "ms_ssim"):
            raise ValueError(f"VAE: reconstruction is {reconstruction!r}; give 'mse' or 'ms_ssim'")
        if beta < 0:
            raise ValueError(f"VAE: beta is {beta}; give a number of at least 0")
        if not 0 <= l1_share <= 1:
            raise ValueError(f"VAE: l1_share is {l1_share}; give the share of the absolute difference, 0 to 1")
        if ssim_sigma <= 0:
            raise ValueError(f"VAE: ssim_sigma is {ssim_sigma}; give a number of pixels above 0")
        if reconstruction == "ms_ssim" and balance == "gamma":
            raise ValueError("VAE: a gamma is computed of squared errors; with 'ms_ssim' give balance='beta'")
        if reconstruction == "ms_ssim" and not scales_for(side := min(self.image_size), ssim_sigma):
            raise ValueError(f"VAE: windows of ssim_sigma={ssim_sigma} do not fit into {side} pixels; lower it")
        if two_stage and latent_dim is None:
            raise ValueError("VAE: two_stage needs flat codes; give latent_dim, or diffusion for maps")
        self.beta, self.reconstruction, self.l1_share, self.ssim_sigma = beta, reconstruction, l1_share, ssim_sigma
        first = AutoEncoder(self.image_size, self.in_channels, channels, multiples, blocks, latent_channels, latent_dim)
        second = CodeAutoEncoder(latent_dim, second_dim) if two_stage and latent_dim is not None else None
        self.network = _Stages(first, second)
        self.gamma = BalancedGamma(gamma_init, gamma_decay) if balance == "gamma" else None
        self.second_gamma = BalancedGamma(gamma_init, gamma_decay) if two_stage else None
        self.active_units = ActiveUnits(self.code_shape)
        self._batch_idx = 0
        self._followed: RemovableHandle | None = None

    @property
    def code_shape(self) -> tuple[int, ...]:
        """`(D,)` of flat codes, `(L, H/s, W/s)` of maps."""
        return self.network.first.code_shape

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(B, *code_shape)` of the codes of normalised images `(B, C, H, W)`, of their kind."""
        mean, log_variance = self.network.first.encode(image)
        return mean.to(image.dtype), log_variance.to(image.dtype)

    def decode(self, code: Tensor) -> Tensor:
        """Normalised images `(B, C, H, W)` of codes `(B, *code_shape)`, of their kind."""
        return self.network.first.decode(code.to(next(self.parameters()))).to(code.dtype)

    def reconstruct(self, image: Tensor) -> Tensor:
        """What the mean codes of normalised images `(B, C, H, W)` are decoded to."""
        return self.decode(self.encode(image)[0])

    def make(self, draws: Draws, label: Tensor | None) -> Tensor:  # type: ignore[override]  # there are no settings
        """Images of normal codes or, with two stages, of codes that the second makes of normal ones."""
        code = draws.normal(*self.code_shape).to(next(self.parameters()))
        if self.network.second is not None and self.second_gamma is not None:
            code = self.network.second.decode(code)
            code = code + self.second_gamma.squared.sqrt().to(code) * draws.like(code)
        return self.decode(code).float()

    def losses(self, image: Tensor, label: Tensor | None, random: Generator) -> dict[str, Tensor]:
        first = Reconstruction.of(self.network.first, image, random)
        terms = self._weighed(first, image) if self.gamma is None else self._balanced(first, self.gamma)
        if not self.training:
            self.active_units.update(first.mean)
        if self.network.second is None or self.second_gamma is None:
            return terms
        second = Reconstruction.of(self.network.second, first.code.detach().to(image.dtype), random)
        others = self._balanced(second, self.second_gamma)
        loss = terms["loss"] + others["loss"]
        return terms | {f"second_{name}": it for name, it in others.items()} | {"loss": loss}

    def follow(self, *_: Any) -> None:
        """Update what is computed; called once after each optimizer step."""
        for gamma in filter(None, (self.gamma, self.second_gamma)):
            gamma.follow()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self._batch_idx = batch_idx
        return super().training_step(batch, batch_idx)

    def on_train_start(self) -> None:
        super().on_train_start()
        for gamma in filter(None, (self.gamma, self.second_gamma)):
            gamma.forget()  # what an aborted fit collected
        # torch's hook and not Lightning's: a step that a scaler leaves out moves nothing.
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        self._followed = optimizer.register_step_post_hook(self.follow)

    def on_train_end(self) -> None:
        super().on_train_end()
        if self._followed is not None:
            self._followed.remove()
            self._followed = None

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.active_units.reset()

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.active_units.reset()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_active("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._log_active("test")

    def _balanced(self, passed: Reconstruction, gamma: BalancedGamma) -> dict[str, Tensor]:
        """The terms of a stage whose gamma is computed."""
        error, divergence = passed.error.mean(), passed.divergence
        if self.training and torch.is_grad_enabled():
            gamma.collect(self._batch_idx, passed.error)
        loss = gamma.loss(error, divergence, passed.answer[0].numel()) + gamma.squared.log() / 2
        return {"loss": loss, "reconstruction": error, "kl": divergence.mean(), "gamma": gamma.squared.sqrt()}

    def _weighed(self, passed: Reconstruction, image: Tensor) -> dict[str, Tensor]:
        """The terms of the first stage with a factor on its divergence."""
        reconstruction = passed.error.mean() if self.reconstruction == "mse" else self._unlike(image, passed.answer)
        divergence = passed.divergence.mean()
        loss = reconstruction + self.beta * divergence / image[0].numel()
        return {"loss": loss, "reconstruction": reconstruction, "kl": divergence}

    def _unlike(self, image: Tensor, answer: Tensor) -> Tensor:
        """How far apart the pixels from 0 to 1 are."""
        mean, std = (torch.tensor(it, device=image.device).view(-1, 1, 1) for it in self.statistics())
        return ms_ssim_l1_loss(image.float() * std + mean, answer * std + mean, self.l1_share, sigma=self.ssim_sigma)

    def _log_active(self, stage: str) -> None:
        # Equal on all ranks, of which their maximum is exact; without `sync_dist` Lightning advises to set it.
        self.log(f"{stage}/active_units", self.active_units.compute(), sync_dist=True, reduce_fx="max")


class _Stages(nn.Module):
    """What encodes images and, where there is one, what encodes their codes."""

    def __init__(self, first: AutoEncoder, second: CodeAutoEncoder | None) -> None:
        super().__init__()
        self.first, self.second = first, second

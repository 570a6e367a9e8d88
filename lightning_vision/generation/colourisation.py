"""Colours for photographs without any: a U-Net answers, and a discriminator says whether that could be true."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio

from lightning_vision.images import read_image

from .adversarial import AdversarialModule, Adversaries, Forgery, gan_adam
from .lab import from_lab, require_kornia, to_bytes, to_lab
from .networks.colour_unet import ColourUNet
from .networks.dcgan import DCGANDiscriminator

__all__ = ["ColourisationGAN"]

# Of a and b, which no colour of a screen exceeds.
MOST = 110.0


@final
class ColourisationGAN(AdversarialModule):
    """Learns what colours photographs have, from how light they are: L of L*a*b* is given, a and b are made.

    Any colour photographs teach it, without labels. Lightness is kept exactly (`lab`); in RGB, colours that no screen
    has are cut, which moves it a little. Photographs of any size keep their own (`predict` of the command writes them
    at `image_size`), and colours are made at `image_size` and enlarged. Needs `pip install "lightning_vision[colour]"`.

    Logs, besides `loss` (what the generator minimises) and `discriminator`: `adversarial` and `l1`, its terms without
    their factors; in validation and test also `grey_l1`, l1 of no colour at all, and `psnr` of all pixels, dB.

    Args:
        lambda_l1: Factor on the mean absolute difference of a and b, both over 110; at least 0, neutral 0.
        adversarial_weight: Factor on the adversarial loss, at least 0; with 0, neutral, it is plain regression.
        label_smoothing: What is taken from the discriminator's target of real photographs, 0 to below 1; neutral 0.
        channels: Of the finest level of both networks; each coarser one has twice as many, up to eight times these.
        levels: How often the generator halves the sides; None is as many as leave at least 2 pixels.
        image_size: H and W, pixels, or one number for both, even; the command takes it from the datamodule, elsewhere
            None means 32.
        optimizer: Makes the optimizer of each network from its parameter groups; None is the paper's, `gan_adam`.
        lr_scheduler: Makes the schedule of each from its optimizer; None keeps the learning rates.
        lr_interval: Whether schedules count epochs or optimizer steps.
        no_decay_norm_bias: Spare norms and biases from weight decay.

    Shape:
        Batches are `(image, ...)` or a mapping with `image`: float32 `(B, 3, H, W)`, normalised by what the datamodule
        says; -1..1 where nobody says it.

    Raises:
        ModuleNotFoundError: kornia is not installed.
        ValueError: a setting is out of its range, or the images' sides cannot be halved so often.

    Example:
        >>> model = ColourisationGAN(channels=8, image_size=16)
        >>> model.colourise(torch.zeros(1, 3, 20, 30)).shape
        torch.Size([1, 3, 20, 30])

    Reference: Nazeri et al. 2018, arXiv:1803.05400

    BibTeX:
        @inproceedings{nazeri2018image,
          title = {Image Colorization Using Generative Adversarial Networks},
          author = {Nazeri, Kamyar and Ng, Eric and Ebrahimi, Mehran},
          booktitle = {Articulated Motion and Deformable Objects},
          pages = {85--94},
          year = {2018},
          eprint = {1803.05400},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The generator answers a and b and not L too, so that lightness cannot change; its input is L and not a grey
        value. There is no dropout, and a batch is one step of each network (the authors' code takes two of the
        generator).

    See also:
        `DCGAN`, whose generator is given noise.
    """

    in_channels = 3
    compared: ClassVar[tuple[str, ...]] = ("in_channels",)
    judged_by: ClassVar[str] = "val/l1"

    def __init__(
        self,
        lambda_l1: float = 100.0,
        adversarial_weight: float = 1.0,
        label_smoothing: float = 0.1,
        channels: int = 64,
        levels: int | None = None,
        image_size: int | Sequence[int] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
    ) -> None:
        made_by = gan_adam if optimizer is None else optimizer
        super().__init__(made_by, lr_scheduler, lr_interval, no_decay_norm_bias, 1.0, 1.0)
        self.save_hyperparameters()
        require_kornia("ColourisationGAN")
        if min(lambda_l1, adversarial_weight) < 0 or not lambda_l1 + adversarial_weight:
            raise ValueError(
                f"ColourisationGAN: lambda_l1 is {lambda_l1} and adversarial_weight {adversarial_weight}; give numbers "
                "of at least 0, one of them above"
            )
        if not 0 <= label_smoothing < 1 or channels < 1:
            raise ValueError(
                f"ColourisationGAN: label_smoothing is {label_smoothing} and channels {channels}; give a number from 0 "
                "to below 1, and at least 1"
            )
        size = 32 if image_size is None else image_size
        self.image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.weights = {"adversarial": adversarial_weight, "l1": lambda_l1}
        self.label_smoothing = label_smoothing
        self.network = Adversaries(
            ColourUNet(self.image_size, channels, levels), DCGANDiscriminator(self.image_size, 3, channels)
        )
        self.psnr = nn.ModuleDict({stage: PeakSignalNoiseRatio(data_range=1.0) for stage in ("val", "test")})

    def setup(self, stage: str) -> None:
        """As `VisionModule`.

        Raises:
            ValueError: as there, or the datamodule's images have another size.
        """
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        size = getattr(datamodule, "image_size", None)
        found = (size, size) if isinstance(size, int) else None if size is None else tuple(size)
        if stage == "fit" and found not in (None, self.image_size):
            source = type(datamodule).__name__
            raise ValueError(
                f"ColourisationGAN has image_size={self.image_size} but {source} has {found}; make them agree"
            )

    def forge(self, batch: Any, batch_idx: int) -> Forgery:
        lab = to_lab(self._unit(_image(batch)))
        light = lab[:, :1] / 50 - 1
        return Forgery(lab[:, 1:] / MOST, self.network.generator(light), light)

    def judge(self, image: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        logits: Tensor = self.network.discriminator(torch.cat([condition, image], dim=1))
        return logits

    def further_terms(self, forgery: Forgery) -> dict[str, Tensor]:
        return {"l1": F.l1_loss(forgery.fake, forgery.real)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("test", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        self._finish("test")
        super().on_test_epoch_end()

    def forward(self, image: Tensor) -> Tensor:
        return self.colourise(image)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """`{"index": (B,), "image": uint8 (B, 3, H, W)}`, colourised; the index where the batch has one."""
        kept = {"index": batch["index"]} if isinstance(batch, Mapping) and "index" in batch else {}
        return {**kept, "image": to_bytes(self.lab(_image(batch)))}

    def colourise(self, image: Tensor) -> Tensor:
        """Images with made colours, normalised as they came.

        Args:
            image: Normalised images `(B, 3, H, W)` of any size, whose own colours play no part.
        """
        mean, std = self._statistics(image)
        found: Tensor = (from_lab(self.lab(image)).to(image) - mean) / std
        return found

    @torch.no_grad()
    def lab(self, image: Tensor) -> Tensor:
        """L*a*b* `(B, 3, H, W)` of images with made colours; L is exactly the image's.

        Args:
            image: As of `colourise`.
        """
        light = to_lab(self._unit(image))[:, :1]
        trains = self.training
        self.eval()
        try:
            made = self._colours(light)
        finally:
            self.train(trains)
        return torch.cat([light, made], dim=1)

    def predict(self, paths: Sequence[str | Path] | str | Path) -> list[Tensor]:
        """Colourise image files of any mode, each at its own size: uint8 `(3, H, W)`.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file is no image.
        """
        made = []
        for file in [paths] if isinstance(paths, str | Path) else paths:
            pixels = read_image(file).to(self.device)[None] / 255
            mean, std = self._statistics(pixels)
            made.append(to_bytes(self.lab((pixels - mean) / std))[0].cpu())
        return made

    def _measure(self, stage: str, batch: Any, batch_idx: int) -> None:
        forgery = self.forge(batch, batch_idx)
        image = self._unit(_image(batch)).float()
        assert forgery.condition is not None
        made = from_lab(torch.cat([50 * (forgery.condition + 1), MOST * forgery.fake.float()], dim=1))
        metric: Any = self.psnr[stage]
        metric.update(made, image)
        self.scalars.log(stage, {**self.terms(forgery), "grey_l1": forgery.real.abs().mean()}, len(image))

    def _finish(self, stage: str) -> None:
        metric: Any = self.psnr[stage]
        # Equal on all ranks, of which their maximum is exact; without `sync_dist` Lightning advises to set it.
        self.log(f"{stage}/psnr", metric.compute(), sync_dist=True, reduce_fx="max")
        metric.reset()

    def _colours(self, light: Tensor) -> Tensor:
        """a and b `(B, 2, H, W)` for L `(B, 1, H, W)` of any size."""
        small = F.interpolate(light, self.image_size, mode="bilinear", antialias=True)
        weight = next(self.network.generator.parameters())
        made: Tensor = MOST * self.network.generator((small / 50 - 1).to(weight)).to(light)
        return F.interpolate(made, light.shape[-2:], mode="bilinear")

    def _unit(self, image: Tensor) -> Tensor:
        """Normalised images as pixels 0..1."""
        mean, std = self._statistics(image)
        return (image * std + mean).clamp(0, 1)

    def _statistics(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation `(3, 1, 1)` by which images are normalised; 0.5 where nobody has said."""
        told = self.preprocessing or {}
        mean, std = (torch.tensor(told.get(name, [0.5] * 3)).to(image).view(-1, 1, 1) for name in ("mean", "std"))
        return mean, std


def _image(batch: Any) -> Tensor:
    image: Tensor = batch["image"] if isinstance(batch, Mapping) else batch[0]
    return image

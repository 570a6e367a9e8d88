"""DCGAN: images of noise, by a convolutional generator that deceives a convolutional discriminator."""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor

from .adversarial import AdversarialModule, Adversaries, Forgery, gan_adam
from .draws import Draws
from .generator import ImageGenerator
from .networks.dcgan import DCGANDiscriminator, DCGANGenerator

__all__ = ["DCGAN"]


@final
class DCGAN(AdversarialModule, ImageGenerator):
    """Makes images of noise in one pass, of the class that is asked for where it learns with labels.

    Logs, besides `loss` (what the generator minimises, against the discriminator of now), `discriminator`. Neither says
    how good images are: look at them, or score them.

    Args:
        latent_dim: Normal numbers an image is made of, at least 1.
        channels: Of the finest level of both networks; each coarser one has twice as many, up to eight times these.
        levels: How often the generator doubles the sides, and the discriminator halves them; None is as many as leave
            at least 4 pixels.
        label_smoothing: What is taken from the discriminator's target of real images, 0 to below 1; neutral 0.
        conditional: Whether labels are read; False learns without.
        num_classes: Labels are 0 .. num_classes - 1; the command takes it from the datamodule, 0 reads none.
        in_channels: C; the command takes it from the datamodule, elsewhere None means 3.
        image_size: H and W, pixels, or one number for both, even; likewise, elsewhere None means 32.
        seed: Fixes every random draw of training and validation, at least 0.
        optimizer: Makes the optimizer of each network from its parameter groups; None is the paper's, `gan_adam`.
        lr_scheduler: Makes the schedule of each from its optimizer; None keeps the learning rates.
        lr_interval: Whether schedules count epochs or optimizer steps.
        no_decay_norm_bias: Spare norms and biases from weight decay.

    Raises:
        ValueError: a setting is out of its range, or the images' sides cannot be halved so often.

    Example:
        >>> model = DCGAN(channels=8, num_classes=10, in_channels=1, image_size=8)
        >>> model.sample(2, label=[3, 7]).shape
        torch.Size([2, 1, 8, 8])

    Reference: Radford et al. 2016, arXiv:1511.06434

    BibTeX:
        @inproceedings{radford2016unsupervised,
          title = {Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks},
          author = {Radford, Alec and Metz, Luke and Chintala, Soumith},
          booktitle = {International Conference on Learning Representations},
          year = {2016},
          eprint = {1511.06434},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Latent numbers are normal and not uniform. Labels can be read, as Miyato and Koyama 2018, arXiv:1802.05637,
        let a discriminator read them.

    See also:
        `ColourisationGAN`, whose generator is given the lightness of a photograph.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        channels: int = 64,
        levels: int | None = None,
        label_smoothing: float = 0.0,
        conditional: bool = True,
        num_classes: int | None = None,
        in_channels: int | None = None,
        image_size: int | Sequence[int] | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        no_decay_norm_bias: bool = True,
    ) -> None:
        super().__init__(
            num_classes if conditional else 0,
            in_channels,
            image_size,
            seed,
            gan_adam if optimizer is None else optimizer,
            lr_scheduler,
            lr_interval,
            no_decay_norm_bias,
        )
        if latent_dim < 1 or channels < 1:
            raise ValueError(f"DCGAN: latent_dim is {latent_dim} and channels {channels}; give at least 1 of each")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"DCGAN: label_smoothing is {label_smoothing}; give a number from 0 to below 1")
        self.latent_dim, self.label_smoothing = latent_dim, label_smoothing
        generator = DCGANGenerator(self.image_size, self.in_channels, latent_dim, channels, levels, self.num_classes)
        discriminator = DCGANDiscriminator(self.image_size, self.in_channels, channels, levels, self.num_classes)
        self.network = Adversaries(generator, discriminator)

    def forge(self, batch: Any, batch_idx: int) -> Forgery:
        image, label = self.image_and_label(batch)
        return self._forged(image, label, self.batch_draws(image, batch_idx, training=True))

    def judge(self, image: Tensor, condition: Tensor | None) -> Tensor:
        logits: Tensor = self.network.discriminator(image, condition)
        return logits

    def losses(self, image: Tensor, label: Tensor | None, random: Generator) -> dict[str, Tensor]:
        return self.terms(self._forged(image, label, random))

    def make(self, draws: Draws, label: Tensor | None, **settings: Any) -> Tensor:
        """As `ImageGenerator`, in one pass.

        Raises:
            ValueError: there are settings.
        """
        if settings:
            raise ValueError(f"DCGAN makes images in one pass, without {', '.join(settings)}; leave that out")
        weight = next(self.network.generator.parameters())
        made = self.network.generator(draws.normal(self.latent_dim).to(weight), label)
        scale, shift = self._to_unit(made)
        found: Tensor = (made - shift) / scale
        return found

    def _forged(self, image: Tensor, label: Tensor | None, random: Generator) -> Forgery:
        latent = torch.randn(len(image), self.latent_dim, generator=random, device=image.device).to(image)
        scale, shift = self._to_unit(image)
        return Forgery(image * scale + shift, self.network.generator(latent, label), label)

    def _to_unit(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and summand `(C, 1, 1)` that bring black to -1 and white to 1, which the generator's tanh answers."""
        mean, std = (torch.tensor(it).to(image).view(-1, 1, 1) for it in self.statistics())
        return 2 * std, 2 * mean - 1

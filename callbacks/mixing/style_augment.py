"""Adversarial style augmentation (AdvStyle): noise on the style of features, as strong as hurts the task most.

Zhang, Deng, Li, Jia and Zhang 2023, arXiv:2301.12643. The mathematics stands in `feature_style.py`; symbols: s_mu,
s_sigma how strong the noise on the mean and the standard deviation of a channel is; letters: B samples, C channels, H
and W of the maps.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..hooks._checks import above_zero, number
from ..hooks._frozen import part_name
from ..hooks._layer_names import patterns_of, that_match
from ..hooks.inserted import Inserted
from .feature_style import StyleIntensity, beside

__all__ = ["StyleAugment"]


@final
class StyleAugment(Inserted):
    """Trains against noise on the style of inner features, which learns by gradient reversal to hurt the task most.

    The style of a sample is mean and standard deviation of each channel of its maps: light, colour and texture rather
    than what is shown. Behind each of `layers` they are moved by Gaussian noise while `training_step` runs. How strong
    the noise is in each channel is learned beside the network, by the module's own optimizers: the gradient of the loss
    is turned round on its way, so one and the same step makes the loss smaller in the network's weights and larger in
    the noise's. In evaluation, and to whoever calls the network between two steps, it is the network as it is. Files
    hold the network alone, the callback's state the noise.

    Args:
        layers: Names of the layers behind which styles are moved, or patterns such as `network.layer*`, of what puts
            out maps `(B, C, H, W)`. None: the stages of a network of timm, which are the authors'; elsewhere the last
            layer at each size of maps.
        p: Probability that the maps of a layer are changed, drawn for each batch and layer, 0 to 1. Neutral: 0.
        adv_weight: By what the turned gradient is multiplied, >= 0: how fast the noise learns beside the network. The
            authors' 1 by default and 10 for PACS. At 0 nothing but the optimizer's weight decay moves it.
        eps: Added to variances before their roots are taken, > 0.
        init: What the strength of the noise begins with: "batch", how far the styles of the first batch's samples are
            apart (as DSU takes the noise of every batch), or a number >= 0 for all channels.
        network: Path of the part of the module that makes something of images alone; empty is the module itself. It is
            called at set-up, to see what its layers put out.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        name: Part of the state key.

    Shape:
        outputs of the layers `(B, C, H, W)` with H W of at least 2, floating point.

    Raises:
        ValueError: a setting outside its range; at set-up, a pattern that names no layer, a layer that puts out no
            maps, or no layer that does; before the first step, an optimizer that lacks what was added; in it, a layer
            that is computed again in backward, or with init="batch" one that runs without gradients.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks.mixing.feature_style import restyle
        >>> x = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
        >>> restyle(x, torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1)).flatten()
        tensor([3., 5.])

    Reference: Zhang et al. 2023, arXiv:2301.12643

    BibTeX:
        @article{zhang2023advstyle,
          title = {Adversarial Style Augmentation for Domain Generalization},
          author = {Zhang, Yabin and Deng, Bin and Li, Ruihuang and Jia, Kui and Zhang, Lei},
          journal = {arXiv preprint arXiv:2301.12643},
          year = {2023},
        }

    Differs from the paper:
        The authors' code leaves a layer alone in a third of all calls, moves styles so in another third and in the last
        by the batch's own spread, as DSU does (Li et al. 2022, arXiv:2202.03958); here it is this noise or none, by
        `p`. One gradient step serves network and noise, as in their main runs; their variant with three steps of the
        noise is left out. As there, statistics are unbiased and the gradient flows through them.

    See also:
        `ColorJitter`, which changes the style of pixels.
    """

    neutral = ({"p": 0.0},)
    adds_parameters = "optimizers hold the noise's strength besides the module's parameters; files have it in its state"

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        p: float = 0.5,
        adv_weight: float = 1.0,
        eps: float = 1e-6,
        init: Literal["batch"] | float = "batch",
        network: str = "",
        seed: int = 0,
        image_key: str = "image",
        name: str | None = None,
    ) -> None:
        super().__init__(network=network, seed=seed, image_key=image_key, name=name)
        number("StyleAugment", "p", p, 0, 1)
        number("StyleAugment", "adv_weight", adv_weight, 0)
        above_zero("StyleAugment", "eps", eps)
        if init != "batch":
            number("StyleAugment", "init", init, 0)
        self.layers, self.p, self.adv_weight, self.eps, self.init = layers, p, adv_weight, eps, init
        self._patterns = () if layers is None else patterns_of("StyleAugment", "layers", layers)
        self._looked_at: set[nn.Module] = set()  # what ran in this batch, and could not begin

    def chosen(self, pl_module: LightningModule, maps: Mapping[str, torch.Size]) -> Sequence[str]:
        stages = _stages(pl_module)
        if self._patterns:
            names = [part_name(path) for path, _ in pl_module.named_modules() if path]
            found = that_match("StyleAugment", "layers", self._patterns, names, "layers")
        else:
            # Of maps of one pixel, as the last stage makes of small images, there is no style.
            found = (
                [it for it in stages if tuple(maps.get(it, ())[2:]) != (1, 1)] if stages else _last_at_each_size(maps)
            )
        for path in found:
            shape, channels = maps.get(path, torch.Size()), None if self._patterns else stages.get(path)
            if not _has_style(shape) or channels not in (None, shape[1]):
                raise ValueError(
                    f"StyleAugment: layer {path!r} puts out {tuple(shape) or 'no tensor'} for two images and no maps "
                    "(B, C, H, W) of more than one pixel; name others with layers=."
                )
        if not found:
            raise ValueError(
                f"StyleAugment: no layer of {type(pl_module).__name__} puts out maps (B, C, H, W) of more than one "
                "pixel, which alone have a style; name layers with layers=, or leave it out."
            )
        return found

    def part(self, shape: torch.Size) -> StyleIntensity:
        return StyleIntensity(shape[1], None if self.init == "batch" else float(self.init))

    def amiss(self) -> str | None:
        waiting = [path for path, it in self.trained.items() if it in self._looked_at and it.waits]
        self._looked_at.clear()
        if not waiting:
            return None
        return (
            f"StyleAugment: layer {waiting[0]!r} ran without gradients in training_step, as under torch.no_grad, so "
            "its noise never begins; name others with layers=, or give a number for init=."
        )

    def changed(self, part: nn.Module, output: Tensor, random: np.random.Generator) -> Tensor:
        assert isinstance(part, StyleIntensity)
        # Not by somebody who only looks, for what is learned begins with it.
        if part.waits and torch.is_grad_enabled():
            part = deepcopy(part) if self.passing else part
            part.begin(output, self.eps)
        elif part.waits:
            self._looked_at.add(part)
        if random.random() >= self.p:
            # DDP waits for the gradient of each parameter.
            return beside(output, part.mean, part.std)
        noise = torch.from_numpy(random.standard_normal((2, *output.shape[:2], 1, 1), dtype=np.float32))
        changed: Tensor = part(output, noise.to(output.device, non_blocking=True), self.adv_weight, self.eps)
        return changed


def _has_style(shape: torch.Size) -> bool:
    return len(shape) == 4 and shape[2] * shape[3] > 1


def _stages(pl_module: nn.Module) -> dict[str, int]:
    """Paths of the stages of the first network of timm in the module, and how many channels each puts out."""
    for path, part in pl_module.named_modules():
        told = getattr(part, "feature_info", None)
        if isinstance(told, list) and told:
            prefix = f"{path}." if path else ""
            return {part_name(prefix + it["module"]): it["num_chs"] for it in told}
    return {}


def _last_at_each_size(maps: Mapping[str, torch.Size]) -> list[str]:
    return list({shape[2:]: path for path, shape in maps.items() if _has_style(shape)}.values())

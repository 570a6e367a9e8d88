"""Attentive CutMix: paste the cells of an image that a frozen network looks at, at the same place, into another.

Walawalkar, Shen, Liu and Savvides 2020, arXiv:2003.13048. Symbols: N `top_n`, the number of cells that are pasted;
`grid`, the cells along each side, 7 in the paper; x_1 `images[partner]`, whence they come; letters: B samples of the
micro-batch, C channels, H height, W width, (h, w) cells.
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks._checks import whole
from ..hooks._memory import Blocks, dense, elements
from ..hooks.attended import Attended
from ..hooks.targets import Mix

__all__ = ["AttentiveCutMix", "AttentiveCutMixDraw", "cell_edges", "paste_cells", "top_cells"]


def top_cells(attention: Tensor, top_n: int) -> Tensor:
    """The cells of each image with the highest attention; of equal ones the upper, then the left ones.

    Args:
        attention: `(B, h, w)`.
        top_n: How many, 0 to h w.

    Returns:
        bool `(B, h, w)`, with `top_n` true ones an image.
    """
    order = attention.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :top_n]
    chosen = torch.zeros_like(attention.flatten(1), dtype=torch.bool)
    return chosen.scatter_(1, order, True).view_as(attention)


def cell_edges(cells: int, pixels: int) -> Tensor:
    """Where cells begin and end along a side: i pixels / cells, rounded to whole pixels, int64 `(cells + 1,)`.

    They tile the side without gaps, by cells whose lengths differ by at most one pixel.

    Raises:
        ValueError: there are more cells than pixels.
    """
    if cells > pixels:
        raise ValueError(
            f"AttentiveCutMix: {cells} cells do not fit along {pixels} pixels; pool the attention with grid=, or give "
            "a smaller extractor_size."
        )
    return (torch.arange(cells + 1) * pixels + cells // 2) // cells


def paste_cells(images: Tensor, partner: Tensor, cells: Tensor, blocks: Blocks | None = None) -> Tensor:
    """Images with the partner's pixels in some cells, and the own ones in all others.

    Args:
        images: `(B, C, H, W)`, any dtype; left unchanged.
        partner: int64 `(B,)`, whose pixels each sample is given.
        cells: bool `(B, h, w)`, in which cells.
        blocks: Where memory for the result is taken from on the CPU; None takes fresh memory.

    Returns:
        New tensor with shape, dtype and memory format of `images`.
    """
    rows, columns = (cell_edges(count, size) for count, size in zip(cells.shape[1:], images.shape[2:], strict=True))
    if images.device.type != "cpu" or images.requires_grad:
        # On an accelerator one mask for the batch: slices would be kernels, each started by the host.
        rows, columns, cells, partner = (it.to(images.device) for it in (rows.diff(), columns.diff(), cells, partner))
        height, width = images.shape[2:]
        mask = cells.repeat_interleave(rows, 1, output_size=height).repeat_interleave(columns, 2, output_size=width)
        return torch.where(mask[:, None], images[partner], images)
    images = dense(images)
    mixed = (blocks or Blocks()).like(images).copy_(images)
    source, result = elements(images), elements(mixed)
    top, left, others = rows.tolist(), columns.tolist(), partner.tolist()
    for sample, row, column in cells.nonzero().tolist():
        place = (slice(None), slice(top[row], top[row + 1]), slice(left[column], left[column + 1]))
        result[sample][place] = source[others[sample]][place]
    return mixed


@dataclass(frozen=True)
class AttentiveCutMixDraw:
    """All random choices that AttentiveCutMix makes for a batch.

    Args:
        partner: int64 `(B,)`, a permutation.
        attention: Where the extractor looks in each image, `(B, h, w)`; None asks it.
    """

    partner: Tensor
    attention: Tensor | None = None


@final
class AttentiveCutMix(Attended):
    """Pastes the cells that a frozen network looks at into another image and shares the label by their number.

    Each training micro-batch is mixed once, on the device, before `training_step` and all that replays it: the `top_n`
    cells of the partner that have the highest mean activation in the extractor's last maps are pasted at the place
    where they were. Integer labels stay integers, so metrics count the own label; the loss computed from them becomes
    `(1 - top_n / cells) L(own) + top_n / cells L(partner's)`. The loader's images, validation, test and prediction stay
    untouched. A batch of one sample is left alone.

    Args:
        top_n: Cells that are pasted, from 0 to all; the paper's is 6 of 49. Neutral: 0.
        grid: Cells along each side, to which the extractor's maps are averaged; None takes the maps as they are.
        feature_extractor: A name of timm's, the paper's a ResNet-50; the path of a checkpoint (`*.ckpt`) of a
            classifier; or a network, of timm's or one that answers with maps `(B, C, h, w)`.
        extractor_weights: Of a name: "pretrained", timm's own, fetched unless they are on this machine; "random", which
            looks at contrast and knows no objects, drawn from `seed`; or a file.
        extractor_size: Side in pixels that images are scaled to before the extractor sees them, 224 in the paper; None
            leaves them.
        prob: Probability that a batch is mixed, 0 to 1. Neutral: 0.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed; "sampled" keeps a label with probability 1 - top_n / cells and takes the
            partner's otherwise.
        num_classes: Classes of `targets="soft"`; None asks the module, then the datamodule.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point or uint8; labels int64 `(B,)`, or any whose loss torch computes.

    Raises:
        ValueError: a setting outside its range; another callback mixes the loss; the number of classes is unknown; at
            set-up, an extractor that cannot be had, shares weights with the module or does not take its images; there
            and in any batch, a grid finer than its maps or than the images, fewer cells than `top_n`; at the first
            step, a loss that cannot be seen.

    Example:
        >>> import torch
        >>> top_cells(torch.tensor([[[0.1, 0.9], [0.3, 0.2]]]), top_n=2)[0].tolist()
        [[False, True], [True, False]]
        >>> cell_edges(cells=3, pixels=8).tolist()
        [0, 3, 5, 8]

    Reference: Walawalkar et al. 2020, arXiv:2003.13048

    BibTeX:
        @inproceedings{walawalkar2020attentive,
          title = {Attentive {CutMix}: An Enhanced Data Augmentation Approach for Deep Learning Based Image
            Classification},
          author = {Walawalkar, Devesh and Shen, Zhiqiang and Liu, Zechun and Savvides, Marios},
          booktitle = {International Conference on Acoustics, Speech and Signal Processing},
          year = {2020},
        }

    Differs from the paper:
        Nothing with the defaults but the weights of the ResNet-50, which are timm's. Where cells do not divide the
        image, they differ by a pixel, and the label's share is still that of cells. `grid`, `prob`, "soft" and
        "sampled" are additions.

    See also:
        `CutMix`, whose box is anywhere.
    """

    neutral = ({"top_n": 0}, {"prob": 0.0})

    def __init__(
        self,
        top_n: int = 6,
        grid: int | None = None,
        feature_extractor: nn.Module | str = "resnet50",
        extractor_weights: str = "pretrained",
        extractor_size: int | None = 224,
        prob: float = 1.0,
        targets: Literal["loss", "soft", "sampled"] = "loss",
        num_classes: int | None = None,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            feature_extractor=feature_extractor,
            extractor_weights=extractor_weights,
            extractor_size=extractor_size,
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        whole("AttentiveCutMix", "top_n", top_n, 0)
        if grid is not None:
            whole("AttentiveCutMix", "grid", grid, 1)
        self.top_n, self.grid = top_n, grid

    def admit(self, attention: Tensor, size: tuple[int, int]) -> None:
        height, width = attention.shape[1:]
        if self.grid is not None and self.grid > min(height, width):
            raise ValueError(
                f"AttentiveCutMix: grid={self.grid} is finer than the extractor's maps of {height}x{width}; give a "
                "larger extractor_size, or a coarser grid."
            )
        rows, columns = (height, width) if self.grid is None else (self.grid, self.grid)
        if self.top_n > rows * columns:
            raise ValueError(
                f"AttentiveCutMix: top_n={self.top_n} of {rows}x{columns} cells is more than there are; give fewer, or "
                "a larger extractor_size."
            )
        for cells, pixels in zip((rows, columns), size, strict=True):
            cell_edges(cells, pixels)

    def draw(self, shape: torch.Size, random: np.random.Generator) -> AttentiveCutMixDraw:
        # A permutation: a flip or a roll pairs neighbours only, and a flip needs an even batch.
        return AttentiveCutMixDraw(torch.from_numpy(random.permutation(shape[0])))

    def mix(self, images: Tensor, draw: AttentiveCutMixDraw) -> Mix:
        attention = self.attention(images) if draw.attention is None else draw.attention
        # Again, for maps of other images than those of set-up may be smaller.
        self.admit(attention, (images.shape[2], images.shape[3]))
        if self.grid is not None:
            attention = F.adaptive_avg_pool2d(attention, self.grid)
        partner = draw.partner.to(images.device, non_blocking=True)
        count = attention[0].numel()
        cells = top_cells(attention[partner.to(attention.device)], self.top_n)
        return Mix(paste_cells(images, partner, cells, self.blocks), partner, (count - self.top_n) / count)

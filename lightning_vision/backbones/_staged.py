"""What the convolutional networks of this folder share: timm's interface around stem, stages and head."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """A network as stem, stages, final layers and classifier head, behind the interface timm expects.

    Subclasses build the parts and hand them over; each child of a stage is one unit, a layer of its own for layer-wise
    learning rates and for gradient checkpointing.

    Args:
        stem: Layers before the first stage.
        stages: Sequential of Sequentials of units.
        final: Layers after the last stage, possibly none.
        widths: Channels after each stage.
        reductions: Image pixels per pixel after each stage.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: What the constructor was given, kept for timm's helpers.
        head_drop_rate: Dropout before the classifier, fraction.
        global_pool: timm's pooling name, or `""` for none.
        conv_head: Classify with a 1x1 convolution in the place of a linear layer.
    """

    def __init__(
        self,
        *,
        stem: nn.Sequential,
        stages: nn.Sequential,
        final: nn.Sequential,
        widths: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        in_chans: int,
        drop_rate: float,
        head_drop_rate: float,
        global_pool: str,
        conv_head: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = widths[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = stages
        self.final = final
        self.head = ClassifierHead(
            widths[-1], num_classes, pool_type=global_pool, drop_rate=head_drop_rate, use_conv=conv_head
        )
        modules = [f"stages.{i}" for i in range(len(stages))]
        if len(final):
            modules[-1] = f"final.{len(final) - 1}"
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": module}
            for width, reduction, module in zip(widths, reductions, modules, strict=True)
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map `(B, num_features, H', W')` of an image `(B, in_chans, H, W)`."""
        x = self.stem(x)
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x, flatten=True)
        else:
            x = self.stages(x)
        return self.final(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `(B, num_classes)`, or with `pre_logits` the pooled features `(B, num_features)`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of an image `(B, in_chans, H, W)`."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, or with 0 classes by none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each unit in the backward pass, to save memory; batch norm statistics then move twice a step."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm numbers the layers: stem, then units (or stages), then the head."""
        return {
            "stem": r"^stem",
            "blocks": [(r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None), (r"^final", (99999,))],
        }

"""A backbone with the first layers of a projection head, to be fine-tuned as one network."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from lightning_vision import backbones

from .learner import feature_dim_of
from .simclr import simclr_head

__all__ = ["ProjectedBackbone"]


class ProjectedBackbone(nn.Module):
    """A backbone, the first layers of SimCLR's projection head behind it, and a linear classifier.

    SimCLR's second version fine-tunes from the head's first layer. `ImageClassifier(ProjectedBackbone(...),
    weights=FILE)` takes backbone and head from a checkpoint of `SimCLR`: the layers that are kept, exactly, and nothing
    of the others.

    Args:
        backbone: Name of a network, as `SimCLR` had it.
        num_classes: Width of the logits.
        layers: Layers of the head that are kept, each with its batch norm and ReLU (none behind the last of all); 0 is
            the backbone alone.
        hidden_dim: As `SimCLR` had it.
        out_dim: As `SimCLR` had it.
        head_layers: As `SimCLR` had it.
        in_channels: Channels of the image.
        backbone_settings: As `SimCLR` had it.

    Shape:
        `(B, in_channels, H, W)` to `(B, num_classes)`.

    Raises:
        ValueError: the head has fewer layers than are to be kept.

    Example:
        >>> network = ProjectedBackbone("resnet8_cifar", num_classes=10, layers=1, in_channels=1)
        >>> network(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 10])

    Reference: Chen et al. 2020, arXiv:2006.10029
    """

    # How timm's networks name their classifier.
    pretrained_cfg: Mapping[str, Any] = MappingProxyType({"classifier": "classifier"})

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        layers: int = 1,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        head_layers: int = 3,
        in_channels: int = 3,
        backbone_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= layers <= head_layers:
            raise ValueError(f"layers is {layers} and the head has {head_layers}; give 0 to {head_layers}")
        self.num_classes = num_classes
        settings = backbone_settings or {}
        self.backbone = backbones.create(backbone, num_classes=0, in_channels=in_channels, **settings)
        dim = feature_dim_of(self.backbone)
        head = simclr_head(dim, hidden_dim, out_dim, head_layers)
        linear = [number for number, layer in enumerate(head) if isinstance(layer, nn.Linear)]
        end = [*linear, len(head)][layers]
        self.projector = head[:end]
        # Names of the other layers in a file, which are not missed here.
        self.left_out = tuple(f"projector.{number}." for number in range(end, len(head)))
        if layers:
            dim = out_dim if layers == head_layers else hidden_dim or dim
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of normalised images `(B, in_channels, H, W)`."""
        logits: Tensor = self.classifier(self.projector(self.backbone(image)))
        return logits

"""What every builder of a detector is told."""

from dataclasses import dataclass

__all__ = ["DetectorSettings"]


@dataclass(frozen=True)
class DetectorSettings:
    """What all architectures are told about the objects they look for, and what of their findings they give.

    Args:
        num_classes: K, the background not counted.
        image_size: Height and width of the images, pixels.
        object_sizes: Smallest and largest object, fractions of the image's shorter side.
        pyramid_channels: Channels of the feature pyramid, or of the maps that are added to a network's.
        score_threshold: Detections below are dropped, 0..1.
        nms_threshold: Of detections of a class that overlap by more, intersection over union, the best stays.
        max_detections: At most so many an image.

    Raises:
        ValueError: a number is outside its range.
    """

    num_classes: int
    image_size: tuple[int, int]
    object_sizes: tuple[float, float] = (0.04, 1.0)
    pyramid_channels: int = 256
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        smallest, largest = self.object_sizes
        checks = {
            f"num_classes={self.num_classes} is below 1; count what is to be found, without the background": (
                self.num_classes >= 1
            ),
            f"image_size={self.image_size} is below 1; give pixels": min(self.image_size) >= 1,
            f"object_sizes={self.object_sizes} are no sizes from small to large; give fractions such as (0.04, 1.0)": (
                0 < smallest < largest
            ),
            f"pyramid_channels={self.pyramid_channels} is below 2; give at least 2": self.pyramid_channels >= 2,
            f"score_threshold={self.score_threshold} is outside [0, 1); give a fraction": 0 <= self.score_threshold < 1,
            f"nms_threshold={self.nms_threshold} is outside (0, 1]; give a fraction": 0 < self.nms_threshold <= 1,
            f"max_detections={self.max_detections} is below 1; give at least 1": self.max_detections >= 1,
        }
        for problem, fine in checks.items():
            if not fine:
                raise ValueError(problem)

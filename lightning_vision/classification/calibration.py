"""What makes the probabilities of a trained classifier come true: one temperature, and maybe one shift of the image.

Letters: B batch, C channels, H and W sides, K classes, T `temperature`.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from torch import Tensor, nn

__all__ = ["Calibration"]


class Calibration(nn.Module):
    """Corrects a trained classifier's confidence: logits f(x) become f(x + delta) / T.

    The classes' order is that of f where delta is none. Nothing of it is in a state dict; `state` and `from_state`
    carry it.

    Args:
        temperature: T, above 0: over 1 lowers the confidence, below raises it; neutral 1.
        delta: What is added to each normalised image, float `(C, H, W)`; neutral None, and 0.

    Shape:
        Images are `(B, C, H, W)`, logits `(B, K)`; both keep their type.

    Raises:
        ValueError: the temperature is not finite and above 0, `delta` is no finite image, or, from `perturb`, images
            have another shape than it.

    Example:
        >>> import torch
        >>> calibration = Calibration(temperature=2.0)
        >>> calibration(torch.tensor([[4.0, 0.0]]))
        tensor([[2., 0.]])
    """

    delta: Tensor | None

    def __init__(self, temperature: float = 1.0, delta: Tensor | None = None) -> None:
        super().__init__()
        if not (isfinite(temperature) and temperature > 0):
            raise ValueError(f"the temperature of a calibration is {temperature}; give a finite number above 0")
        if delta is not None and (delta.ndim != 3 or not delta.is_floating_point() or not bool(delta.isfinite().all())):
            came = f"{tuple(delta.shape)} {delta.dtype}"
            raise ValueError(f"the delta of a calibration is {came}; give finite floats of an image's shape (C, H, W)")
        # A number, not a buffer: `half()` on the model does not round it.
        self.temperature = float(temperature)
        self.register_buffer("delta", delta, persistent=False)

    def perturb(self, image: Tensor) -> Tensor:
        """Images `(B, C, H, W)` with delta added; the very tensor where delta is none."""
        if self.delta is None:
            return image
        if image.shape[1:] != self.delta.shape:
            ours, theirs = tuple(self.delta.shape), tuple(image.shape)
            raise ValueError(
                f"the model was calibrated with images of shape {ours} and got a batch {theirs}; give it images of "
                "that shape, or calibrate with --method temperature"
            )
        return image + self.delta.to(image.dtype)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits over T."""
        return logits / self.temperature

    def logits(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Calibrated logits `(B, K)` that a network gives of images `(B, C, H, W)`: f(x + delta) / T."""
        calibrated: Tensor = self(network(self.perturb(image)))
        return calibrated

    def state(self) -> dict[str, Any]:
        """Plain numbers and tensors on the CPU, from which `from_state` makes the same again."""
        delta = None if self.delta is None else self.delta.detach().cpu().clone()
        return {"temperature": self.temperature, "delta": delta}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Calibration":
        """What `state` was taken from."""
        return cls(state["temperature"], state["delta"])

"""Asking a network for its answer with other weights than its own."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..hooks._lent import call_with

__all__ = ["answer"]


def answer(owner: str, module: nn.Module, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What the module makes of images `(B, C, H, W)` with `tensors` in the place of its own.

    Buffers that are not among them are copied, so that the module's stay as they are. It is asked at rest, so that
    nothing else of it changes.

    Args:
        owner: Who asks, for the message.
        module: Its parameters' names are the keys of `tensors`.
        images: On the module's device.
        tensors: Weights and buffers, by name.

    Raises:
        ValueError: the module cannot be called on images alone, or does not answer with a tensor of floats.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if name not in tensors}
    try:
        found = call_with(module, {**buffers, **tensors}, (images,))
    except Exception as error:
        raise ValueError(
            f"{owner}: {type(module).__name__} could not be called as `module(images)` on images of shape "
            f"{tuple(images.shape)} ({error}); give it a `forward` that takes them, or choose another criterion."
        ) from error
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ValueError(
            f"{owner}: {type(module).__name__} answers images with {type(found).__name__}, where a tensor of floats is "
            "needed; let its `forward` return one, or choose another criterion."
        )
    return found

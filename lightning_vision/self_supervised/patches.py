"""Images as rows of patches, and back.

Letters: B images, C channels, H and W pixels, N patches, p and q the pixels of a patch's height and width.
"""

from torch import Tensor

__all__ = ["normalise_patches", "patchify", "unpatchify"]


def patchify(image: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images `(B, C, H, W)` into patches `(B, N, C p q)`.

    Patches come row by row; in each stands channel after channel, as in `torch.nn.functional.unfold`.

    Args:
        image: The images; H and W are multiples of p and q.
        patch: p and q, pixels.

    >>> import torch
    >>> patchify(torch.arange(16).view(1, 1, 4, 4), (2, 2))[0, :2].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    (height, width), (p, q) = image.shape[2:], patch
    blocks = image.unflatten(3, (width // q, q)).unflatten(2, (height // p, p))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The images `(B, C, H, W)` of patches `(B, N, C p q)`: the inverse of `patchify`.

    Args:
        patches: As `patchify` gives them.
        patch: p and q, pixels.
        grid: Patches below and beside each other, H / p and W / q.
    """
    blocks = patches.unflatten(2, (-1, *patch)).unflatten(1, grid)
    return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch less its mean, over its standard deviation: what hides brightness and contrast and leaves texture.

    Args:
        patches: `(B, N, P)`, P at least 2.
        eps: Added to the variance, of P - 1 degrees of freedom, so that flat patches become 0.

    Returns:
        The normalised patches, and the means and standard deviations `(B, N, 1)` that undo it.
    """
    mean, std = patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + eps).sqrt()
    return (patches - mean) / std, mean, std

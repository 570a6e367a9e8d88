"""What a network's convolution kernels say of its training: how many are spent, alike, or as at random.

Gavrikov and Keuper 2022, arXiv:2203.15331. A layer's weight `(O, I, k, k)` holds n = O I kernels of k x k numbers; I is
the number of channels of a group.
"""

import torch
from torch import Tensor, nn

__all__ = [
    "explained_ratios",
    "filter_report",
    "filter_shift",
    "kernel_entropy",
    "kernel_orthogonality",
    "spent_kernels",
]

WHOLE = "all"  # the last row's layer


def spent_kernels(weight: Tensor, eps: float = 0.01) -> Tensor:
    """Which kernels of a layer are spent: all their entries below `eps` times the layer's largest, bool `(n,)`.

    Args:
        weight: `(O, I, k, k)`.
        eps: Share of the largest absolute weight, 0 to 1; the paper's 0.01.
    """
    kernels = _kernels(weight).abs()
    # Below or equal, for where all weights are 0 all kernels are spent.
    largest = kernels.max()
    below = kernels < eps * largest if bool(largest > 0) else kernels <= 0
    return below.all(1)


def explained_ratios(kernels: Tensor) -> Tensor:
    """The share of the variance that each principal component explains, largest first, `(d,)`.

    All zero where the kernels are all equal.

    Args:
        kernels: `(n, d)`, a flattened kernel a row.
    """
    centred = (kernels - kernels.mean(0)).double()
    # The eigenvalues of the covariance: there are many more kernels than numbers in one.
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp_min(0)
    total = variances.sum()
    # What is left of equal kernels by rounding is no variance.
    noise = kernels.abs().max().double() ** 2 * kernels.numel() * torch.finfo(kernels.dtype).eps ** 2
    return variances / total if bool(total > noise) else torch.zeros_like(variances)


def kernel_entropy(weight: Tensor) -> float:
    """How different the kernels of a layer are: H = -sum_i p_i log10 p_i of the ratios of explained variance.

    0 where all are multiples of one, towards log10(k k) where they are as at random (0.954 for 3 x 3).

    Args:
        weight: `(O, I, k, k)`.
    """
    ratios = explained_ratios(_kernels(weight))
    return float(-torch.xlogy(ratios, ratios).sum() / torch.log(torch.tensor(10.0)))


def kernel_orthogonality(weight: Tensor) -> float:
    """How orthogonal the filters of a layer are: 1 - sum |W W^T - I| / (O (O - 1)), 1 where all are, 0 where all equal.

    The rows of W are the filters `(I k k)` divided by their length; a filter of zeros stays zero. A filter alone has 1.

    Args:
        weight: `(O, I, k, k)`.
    """
    count = len(weight)
    if count < 2:
        return 1.0
    rows = nn.functional.normalize(weight.detach().flatten(1).float(), dim=1)
    products = (rows @ rows.T).abs()
    return 1 - float(products.sum() - products.diagonal().sum()) / (count * (count - 1))


def filter_report(
    model: nn.Module, kernel_size: int | tuple[int, int] = 3, eps: float = 0.01
) -> list[dict[str, str | int | float]]:
    """Quality of a network's convolution kernels, a row a layer and one for all: spent, alike or orthogonal.

    Rows have the keys `layer` (dotted name, `all` in the last row), `kernels`, `sparsity` (share of spent kernels, 0 to
    1), `entropy` (variance entropy, 0 to log10(k k)) and `orthogonality` (0 to 1). The last row has the sparsity of all
    kernels, each measured in its layer, the entropy of all kernels taken together, each divided by its largest absolute
    entry, and the layers' mean orthogonality.

    Args:
        model: Any network.
        kernel_size: Of the convolutions that are reported, pixels; one number for squares.
        eps: Share of a layer's largest absolute weight below which a kernel is spent, 0 to 1; the paper's 0.01.

    Raises:
        ValueError: no convolution has kernels of that size, of which there have to be two or more numbers; `eps` is
            outside 0 to 1.

    Example:
        >>> import timm
        >>> from lightning_vision.explain import filter_report
        >>> filter_report(timm.create_model("resnet18"))[0]["kernels"]
        4096

    Reference: Gavrikov and Keuper 2022, arXiv:2203.15331

    BibTeX:
        @inproceedings{gavrikov2022cnnfilterdb,
          title     = {CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters},
          author    = {Gavrikov, Paul and Keuper, Janis},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year      = {2022}
        }
    """
    if not 0 <= eps <= 1:
        raise ValueError(f"filter_report: eps is {eps}; give a share of the largest weight, 0 to 1.")
    weights = _weights(model, kernel_size)
    rows: list[dict[str, str | int | float]] = []
    spent = 0
    for name, weight in weights.items():
        number = int(spent_kernels(weight, eps).sum())
        spent += number
        count = weight.shape[0] * weight.shape[1]
        rows.append(_row(name, count, number / count, kernel_entropy(weight), kernel_orthogonality(weight)))
    kernels = _scaled(weights)
    mean = sum(float(row["orthogonality"]) for row in rows) / len(rows)
    rows.append(_row(WHOLE, len(kernels), spent / len(kernels), kernel_entropy(kernels[:, None, None]), mean))
    return rows


def filter_shift(
    model: nn.Module, reference: nn.Module, kernel_size: int | tuple[int, int] = 3, bins: int = 70, eps: float = 1e-5
) -> float:
    """How far the kernels of two networks are apart: symmetric Kullback-Leibler divergence of their coefficients.

    Kernels are divided by their largest absolute entry and written in the principal components of both networks'
    kernels together; of each component's coefficients both have a histogram of the same bins. The sum over bins of
    (P - Q) log(P / Q), natural logarithm, is weighted by the component's ratio of explained variance and summed.
    0 is the same distribution.

    Args:
        model: Any network.
        reference: Another one.
        kernel_size: Of the convolutions that are compared, pixels; one number for squares.
        bins: Of each histogram, >= 2; the paper's 70.
        eps: Least probability of a bin, so that empty ones have a logarithm.

    Raises:
        ValueError: one of them has no convolution with kernels of that size; `bins` or `eps` is out of its range.

    Reference: Gavrikov and Keuper 2022, arXiv:2203.15331
    """
    if bins < 2 or not 0 < eps < 1:
        raise ValueError(f"filter_shift: bins is {bins} and eps {eps}; give bins >= 2 and eps between 0 and 1.")
    own, other = (_scaled(_weights(it, kernel_size)) for it in (model, reference))
    both = torch.cat([own, other])
    mean = both.mean(0)
    centred = both - mean
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    sides = [(it - mean) @ components for it in (own, other)]
    low, high = (float(f(torch.cat(sides))) for f in (torch.min, torch.max))
    total = 0.0
    for index, ratio in enumerate(explained_ratios(both).tolist()):
        shares = [torch.histc(it[:, index], bins, low, high) / len(it) for it in sides]
        p, q = (it.clamp_min(eps) for it in shares)
        total += ratio * float(((p - q) * (p / q).log()).sum())
    return total


def _weights(model: nn.Module, kernel_size: int | tuple[int, int]) -> dict[str, Tensor]:
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    found = {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    chosen = {name: part.weight.detach().float().cpu() for name, part in found.items() if part.kernel_size == size}
    if size[0] * size[1] < 2:
        raise ValueError("filters: a kernel of 1x1 is one number and has no shape; give a larger kernel_size.")
    if not chosen:
        sizes = sorted({part.kernel_size for part in found.values()})
        there = (
            f"those there are have {', '.join(f'{h}x{w}' for h, w in sizes)}." if sizes else "there are none at all."
        )
        raise ValueError(f"{type(model).__name__} has no convolution with kernels of {size[0]}x{size[1]}; {there}")
    return chosen


def _kernels(weight: Tensor) -> Tensor:
    return weight.detach().flatten(2).flatten(0, 1)


def _scaled(weights: dict[str, Tensor]) -> Tensor:
    """The kernels of all layers `(n, d)`, each divided by its largest absolute entry; those of zeros stay zero."""
    kernels = torch.cat([_kernels(weight) for weight in weights.values()])
    largest = kernels.abs().amax(1, keepdim=True)
    return kernels / torch.where(largest > 0, largest, 1)


def _row(layer: str, kernels: int, sparsity: float, entropy: float, orthogonal: float) -> dict[str, str | int | float]:
    return {
        "layer": layer,
        "kernels": kernels,
        "sparsity": sparsity,
        "entropy": entropy,
        "orthogonality": orthogonal,
    }

"""What the pictures of class activation maps share: a network of ten fitted filters and an image of three digits."""

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["DigitFilters", "show", "three_digits"]

SIDE = 8


class DigitFilters(nn.Module):
    """Tells digits by one filter a class, fitted by least squares to answer 1 over the middle of its digit, else 0.

    In closed form, so that it is the same network on every machine. Maps are what exceeds 0.2, times `gain`, spread
    over nine pixels; scores are pooled by a log-sum-exp, which listens to the strongest places, the more the larger the
    gain, and held against the mean of all classes.
    """

    def __init__(self, gain: float = 3000.0) -> None:
        super().__init__()
        pixels, labels = load_digits(return_X_y=True)
        digits = torch.from_numpy(pixels).double().view(-1, 1, SIDE, SIDE) / 16
        wanted = F.one_hot(torch.from_numpy(labels), 10).double()
        cases, answers = [digits], [wanted]
        padded = F.pad(digits, (SIDE,) * 4)
        for down in range(2, 15, 2):
            for right in range(2, 15, 2):
                if (down, right) != (SIDE, SIDE):
                    cases.append(padded[::4, :, down : down + SIDE, right : right + SIDE])
                    answers.append(torch.zeros(len(cases[-1]), 10, dtype=torch.double))
        known = F.pad(torch.cat(cases).flatten(1), (0, 1), value=1.0)
        weights = torch.linalg.solve(known.T @ known + torch.eye(known.shape[1]), known.T @ torch.cat(answers)).float()
        self.filters = nn.Conv2d(1, 10, SIDE)
        with torch.no_grad():
            self.filters.weight.copy_(weights[:-1].T.view(10, 1, SIDE, SIDE) * gain)
            self.filters.bias.copy_((weights[-1] - 0.2) * gain)
        self.maps = nn.Sequential(nn.ReLU(), nn.AvgPool2d(9, 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        # One more row and column before than after: a filter of even side has no middle.
        found = self.maps(self.filters(F.pad(images, (4, 3, 4, 3))))
        scores = found.flatten(2).logsumexp(2)
        return scores - scores.mean(1, keepdim=True)


def three_digits(labels: tuple[int, int, int] = (3, 7, 0), size: tuple[int, int] = (20, 44)) -> Tensor:
    """The last digits of three classes side by side at different heights, `(1, 1, H, W)`, 0 to 1."""
    pixels, classes = load_digits(return_X_y=True)
    image = torch.zeros(1, 1, *size)
    for place, label in enumerate(labels):
        digit = torch.from_numpy(pixels[classes == label][-1]).float().view(SIDE, SIDE) / 16
        top, left = 2 + 4 * place, 3 + 15 * place
        image[0, 0, top : top + SIDE, left : left + SIDE] = digit
    return image


def show(axis: Any, values: Tensor, title: str, colours: str = "turbo") -> None:
    """One map or image `(H, W)` on its axis, from 0 to its maximum."""
    axis.imshow(values.numpy(), cmap=colours, vmin=0, vmax=max(float(values.max()), 1e-6), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)

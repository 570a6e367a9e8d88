"""AutoAugment: learned policies of a few operations an image, their file, and the three that were published.

Cubuk et al. 2019, arXiv:1805.09501. A policy is a list of sub-policies, a sub-policy a list of steps, a step an
operation, a probability and the bin of its magnitude, 0 to 9.
"""

from pathlib import Path
from typing import Any, final

import yaml
from torch import Tensor

from lightning_vision.catalogue import nearest

from ._affine import Fill, Interpolation, check_outside
from ._published import PUBLISHED, Step, SubPolicy
from ._spaces import LEARNED
from ._steps import Plan, Planned
from .operations import OPERATIONS

__all__ = ["AutoAugment", "read_policy", "write_policy"]

BINS = 10
FREE = ("Identity", "AutoContrast", "Equalize", "Invert")


@final
class AutoAugment(Planned):
    """Changes each image by one sub-policy of a learned policy: ImageNet's, CIFAR-10's, SVHN's or your own.

    A sub-policy is drawn for each image; each of its steps is taken with its probability, and its magnitude turned to
    the negative half of the time where the operation has a sign. Images are changed as torchvision's `AutoAugment`
    changes them, bit for bit on a CPU, each with a draw of its own.

    Args:
        policy: `imagenet`, `cifar10` or `svhn`, as published; or the path of a YAML file that `write_policy` or
            `lightning_vision search_policy` wrote; or a list of sub-policies, each a list of steps
            `[operation, probability, bin]`: an operation, a share 0..1, a whole number 0..9 (None for
            operations without magnitude). Neutral: probabilities of 0.
        interpolation: `nearest` or `bilinear`, of the operations that move pixels; torchvision's default.
        fill: What they let in from outside, 0..255, for all channels or a list of one a channel; 0 is black.

    Shape:
        uint8 `(B, C, H, W)`, 0..255, C is 1 or 3, to the same.

    Raises:
        ValueError: no such policy or file; a bad step, named with its place; an unknown interpolation or fill; images
            that are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> AutoAugment([[["Invert", 1.0, None]]])(images).unique()
        tensor([255], dtype=torch.uint8)

    Reference: Cubuk et al. 2019, arXiv:1805.09501

    BibTeX:
        @inproceedings{cubuk2019autoaugment,
          title = {{AutoAugment}: Learning Augmentation Strategies from Data},
          author = {Cubuk, Ekin D. and Zoph, Barret and Mane, Dandelion and Vasudevan, Vijay and Le, Quoc V.},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2019},
          eprint = {1805.09501},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Magnitudes are torchvision's: translations go up to 150/331 of the side, the share that the paper's 150 pixels
        are of its images; Posterize keeps 8 to 4 bits; Cutout and SamplePairing, which no published policy has, are
        left out.

    See also:
        `policy`, which puts it behind a crop; `RandAugment` and `TrivialAugment`, which need no learned policy.
    """

    def __init__(
        self,
        policy: str | list[list[list[Any]]] = "imagenet",
        interpolation: Interpolation = "nearest",
        fill: Fill = 0,
    ) -> None:
        check_outside("AutoAugment", interpolation, fill)
        if not isinstance(policy, str):
            self.policy = _checked(policy, "AutoAugment: the policy")
        elif policy in PUBLISHED:
            self.policy = PUBLISHED[policy]
        elif Path(policy).is_file():
            self.policy = read_policy(policy)
        else:
            raise ValueError(
                f"AutoAugment: there is no policy and no file called {policy!r}{nearest(policy, PUBLISHED)}; give one "
                f"of {', '.join(PUBLISHED)}, a YAML file or a list of sub-policies."
            )
        self.interpolation = interpolation
        self.fill = fill
        self.draws = 1 + 2 * max(map(len, self.policy))

    def plans(self, uniform: Tensor, sides: tuple[int, int]) -> list[Plan]:
        """The steps that each image takes.

        Args:
            uniform: What `apply` takes, `(B, draws)`: a number for the sub-policy, then two a step, whether it is
                taken and its sign.
            sides: Height and width, pixels.

        Returns:
            For each image names of operations and magnitudes.
        """
        result = []
        for which, *rest in uniform.tolist():
            steps = zip(self.policy[int(which * len(self.policy))], rest[::2], rest[1::2], strict=False)
            result.append(
                [
                    LEARNED.step(name, number or 0, BINS, sign, sides)
                    for (name, probability, number), taken, sign in steps
                    if taken < probability
                ]
            )
        return result


def read_policy(path: str | Path) -> tuple[SubPolicy, ...]:
    """The policy in a YAML file: sub-policies of steps (operation, probability, bin).

    Args:
        path: Of a file with an entry `policy`, a list of sub-policies as `AutoAugment` takes it.

    Raises:
        ValueError: no policy in it, or a bad step; the file, the sub-policy and the step are named.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or "policy" not in content:
        raise ValueError(f"{path} has no entry `policy`; give it one with a list of sub-policies.")
    return _checked(content["policy"], f"{path}: the policy")


def write_policy(policy: list[list[list[Any]]] | tuple[SubPolicy, ...], path: str | Path) -> None:
    """Write a policy as YAML, one sub-policy a line, for `AutoAugment(path)` and `read_policy`.

    Args:
        policy: A list of sub-policies as `AutoAugment` takes it.
        path: Of the file, which is overwritten.

    Raises:
        ValueError: a bad step; the sub-policy and the step are named.
    """
    steps = [[list(step) for step in steps] for steps in _checked(policy, "write_policy: the policy")]
    lines = ["  - " + yaml.safe_dump(it, default_flow_style=True, width=float("inf")).strip() for it in steps]
    Path(path).write_text("\n".join(["policy:", *lines, ""]), encoding="utf-8")


def _checked(policy: Any, where: str) -> tuple[SubPolicy, ...]:
    if not isinstance(policy, (list, tuple)) or not policy:
        raise ValueError(f"{where} is {policy!r}; give a list of sub-policies, at least one.")
    return tuple(_sub_policy(steps, f"{where}: sub-policy {number}") for number, steps in enumerate(policy, 1))


def _sub_policy(steps: Any, where: str) -> SubPolicy:
    if not isinstance(steps, (list, tuple)) or not steps:
        raise ValueError(f"{where} is {steps!r}; give a list of steps [operation, probability, bin], at least one.")
    return tuple(_step(step, f"{where}, step {number}") for number, step in enumerate(steps, 1))


def _step(step: Any, where: str) -> Step:
    if not isinstance(step, (list, tuple)) or len(step) != 3:
        raise ValueError(f"{where} is {step!r}; give [operation, probability, bin].")
    name, probability, number = step
    if not isinstance(name, str) or name not in OPERATIONS:
        hint = nearest(str(name), OPERATIONS)
        raise ValueError(f"{where} has the operation {name!r}{hint}; there are {', '.join(OPERATIONS)}.")
    if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise ValueError(f"{where} has the probability {probability!r}; give a number from 0 to 1.")
    if not (number is None and name in FREE) and (type(number) is not int or not 0 <= number < BINS):
        raise ValueError(f"{where} has the bin {number!r}; give a whole number from 0 to {BINS - 1}.")
    return name, float(probability), number

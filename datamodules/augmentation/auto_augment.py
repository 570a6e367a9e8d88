"""AutoAugment: learned policies of two operations an image, their file, and the three that were published.

Cubuk et al. 2019, arXiv:1805.09501. A policy is a list of sub-policies, a sub-policy a list of steps (operation,
probability, bin of the magnitude).
"""

from pathlib import Path
from typing import Any, final

import yaml
from torch import Tensor

from lightning_vision.catalogue import nearest

from ._affine import Fill, Interpolation
from ._checks import check_images
from ._published import PUBLISHED, Step, SubPolicy
from ._spaces import SIGNED, Space
from ._steps import Plan, apply_plans
from .augmentation import Augmentation
from .operations import OPERATIONS

__all__ = ["AutoAugment", "read_policy", "write_policy"]

BINS = 10
SPACE = Space(
    tuple(OPERATIONS), shear=0.3, across=lambda side: 150.0 / 331.0 * side, degrees=30.0, blend=0.9, bits=(8, 4)
)


@final
class AutoAugment(Augmentation):
    """Change each image by a sub-policy drawn from a learned policy."""

    def __init__(
        self,
        policy: str | list[list[list[Any]]] = "imagenet",
        interpolation: Interpolation = "nearest",
        fill: Fill = 0,
    ) -> None:
        if not isinstance(policy, str):
            self.policy = _checked(policy, "AutoAugment: the policy")
        elif policy in PUBLISHED:
            self.policy = PUBLISHED[policy]
        elif Path(policy).is_file():
            self.policy = read_policy(policy)
        else:
            known = ", ".join(PUBLISHED)
            raise ValueError(
                f"AutoAugment: there is no policy and no file called {policy!r}{nearest(policy, PUBLISHED)}; give one "
                f"of {known}, a YAML file or a list of sub-policies."
            )
        self.interpolation = interpolation
        self.fill = fill
        self.draws = 1 + 2 * max(map(len, self.policy))

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("AutoAugment", images, uniform, self.draws)
        plans = self.plans(uniform, *images.shape[-2:])
        return apply_plans(images, plans, self.interpolation, self.fill)

    def plans(self, uniform: Tensor, height: int, width: int) -> list[Plan]:
        """The steps of each image, operations with magnitudes, that the numbers `(B, draws)` stand for."""
        result = []
        for first, *rest in uniform.tolist():
            plan = []
            steps = self.policy[int(first * len(self.policy))]
            for (name, probability, bin_), applied, sign in zip(steps, rest[::2], rest[1::2], strict=False):
                if applied < probability:
                    magnitude = SPACE.magnitudes(name, BINS, height, width)[bin_ or 0]
                    plan.append((name, -magnitude if name in SIGNED and sign < 0.5 else magnitude))
            result.append(plan)
        return result


def read_policy(path: str | Path) -> tuple[SubPolicy, ...]:
    """The policy in a YAML file that `write_policy` or a person wrote."""
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    if not isinstance(content, dict) or "policy" not in content:
        raise ValueError(f"{path}: no policy; the file needs an entry `policy` with a list of sub-policies.")
    return _checked(content["policy"], f"{path}: the policy")


def write_policy(policy: list[list[list[Any]]] | tuple[SubPolicy, ...], path: str | Path) -> None:
    """Write a policy as YAML, one sub-policy a line, that `AutoAugment(path)` and `read_policy` take."""
    lines = [
        "  - " + yaml.safe_dump([list(step) for step in steps], default_flow_style=True, width=1000).strip()
        for steps in _checked(policy, "write_policy: the policy")
    ]
    Path(path).write_text("\n".join(["policy:", *lines]) + "\n", encoding="utf-8")


def _checked(policy: Any, where: str) -> tuple[SubPolicy, ...]:
    if not isinstance(policy, (list, tuple)) or not policy:
        raise ValueError(f"{where} is {policy!r}; give a list of sub-policies, at least one.")
    return tuple(_sub_policy(steps, f"{where}, sub-policy {number}") for number, steps in enumerate(policy, 1))


def _sub_policy(steps: Any, where: str) -> SubPolicy:
    if not isinstance(steps, (list, tuple)) or not steps:
        raise ValueError(f"{where}, is {steps!r}; give a list of steps [operation, probability, bin], at least one.")
    return tuple(_step(step, f"{where}, step {number}") for number, step in enumerate(steps, 1))


def _step(step: Any, where: str) -> Step:
    if not isinstance(step, (list, tuple)) or len(step) != 3:
        raise ValueError(f"{where}, is {step!r}; give [operation, probability, bin].")
    name, probability, bin_ = step
    if name not in OPERATIONS:
        known = ", ".join(OPERATIONS)
        raise ValueError(
            f"{where}, has an unknown operation {name!r}{nearest(str(name), OPERATIONS)}; there are {known}."
        )
    if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise ValueError(f"{where}, has probability {probability!r}; give a number from 0 to 1.")
    free = name in ("Identity", "AutoContrast", "Equalize", "Invert")
    if not (free and bin_ is None) and (type(bin_) is not int or not 0 <= bin_ < BINS):
        raise ValueError(
            f"{where}, has bin {bin_!r}; give a whole number from 0 to {BINS - 1}{' or none' if free else ''}."
        )
    return name, float(probability), bin_

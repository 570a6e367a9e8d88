"""What merges of state dicts share: the same names and shapes in all of them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["refuse_other_architectures"]


def refuse_other_architectures(states: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> None:
    """Compare all state dicts with the first one.

    Args:
        states: At least one.
        labels: What to call each of them, such as its file.

    Raises:
        ValueError: names or shapes differ; the sentence names two of them and the first name that differs.
    """
    first, *others = states
    for label, state in zip(labels[1:], others, strict=True):
        for name in [*first, *(it for it in state if it not in first)]:
            mine, theirs = _said(first, name), _said(state, name)
            if mine != theirs:
                raise ValueError(
                    f"{labels[0]} and {label} are of different architectures: {name} {mine} in the first and {theirs} "
                    "in the second; merge checkpoints of one network."
                )


def _said(state: Mapping[str, Tensor], name: str) -> str:
    return f"has the shape {tuple(getattr(state[name], 'shape', ()))}" if name in state else "is missing"

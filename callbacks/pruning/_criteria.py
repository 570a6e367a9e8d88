"""Criteria by name; the file of each is imported when it is asked for."""

from importlib import import_module

from lightning_vision.catalogue import nearest

from ._criterion import Criterion

__all__ = ["CRITERIA", "criterion_named"]

# File and class.
CRITERIA = {
    "magnitude": ("magnitude", "Magnitude"),
    "random": ("random_weights", "RandomWeights"),
    "synflow": ("synflow", "SynFlow"),
    "movement": ("movement", "Movement"),
    "rate_distortion": ("rate_distortion", "RateDistortion"),
}


def criterion_named(owner: str, name: str) -> Criterion:
    """A new criterion with its own defaults.

    Raises:
        ValueError: none has this name.
    """
    if not isinstance(name, str) or name not in CRITERIA:
        hint = nearest(str(name), CRITERIA) or f"; there are {', '.join(CRITERIA)}."
        raise ValueError(f"{owner}: there is no criterion {name!r}{hint}")
    file, kind = CRITERIA[name]
    criterion: Criterion = getattr(import_module(f".{file}", __package__), kind)()
    return criterion

"""How good the digits of the other shipped runs of generation are, by the protocol of docs/study_generation.md."""

from .study_generation import rows_of

__all__ = ["blocks"]

RUNS = ("ddpm", "edm", "ncsn", "consistency", "caf", "gan", "vae")


def blocks(quick: bool) -> dict[str, str]:
    """A row for each run, of one seed.

    Args:
        quick: Of the last run, two steps.
    """
    return {"study_generators": rows_of([(name, 0) for name in (RUNS[-1:] if quick else RUNS)], quick)}

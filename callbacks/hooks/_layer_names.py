"""Layers chosen by shell patterns on their names."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

__all__ = ["patterns_of", "that_match"]


def patterns_of(owner: str, argument: str, value: object) -> tuple[str, ...]:
    """Patterns as a tuple, of one string or a list of strings; anything else is refused."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not all(isinstance(it, str) and it for it in given):
        raise ValueError(f"{owner}: {argument} is {value!r}; give a pattern such as 'blocks.*.act', or a list of them.")
    return tuple(given)


def that_match(owner: str, argument: str, patterns: Sequence[str], names: Iterable[str], what: str) -> list[str]:
    """The names that match any pattern, in their own order; a pattern that matches none is refused.

    A pattern is one of the shell (`*`, `?`, `[ab]`) and has to fit a whole name.

    Args:
        owner: Who speaks in the refusal.
        argument: Where the patterns come from.
        patterns: At least none.
        names: Those to choose from.
        what: What is named, in the plural.
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            listed = f"there are {', '.join(close)}" if close else "there are none"
            raise ValueError(f"{owner}: {argument} {pattern!r} matches none of the {what}; {listed}.")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]

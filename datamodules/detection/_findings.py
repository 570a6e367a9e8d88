"""What is wrong with annotations: an error at once, or left out and told once."""

from collections import Counter
from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

__all__ = ["Findings", "OnBadAnnotation"]

OnBadAnnotation = Literal["error", "skip"]
NAMED = 3


class Findings:
    """Of one file of annotations, or of one list of images.

    Args:
        where: Its name, for messages.
        on_bad: What `bad` does: `error` raises, `skip` counts.
    """

    def __init__(self, where: str, on_bad: OnBadAnnotation) -> None:
        self.where, self.on_bad = where, on_bad
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def bad(self, problem: str) -> None:
        """An annotation that cannot be used, or an image.

        Args:
            problem: Which it is and what is wrong, as the second half of a sentence.

        Raises:
            ValueError: with `on_bad="error"`.
        """
        if self.on_bad == "error":
            raise ValueError(f"{self.where}: {problem}; mend it or pass on_bad_annotation='skip'")
        self.note("unusable and left out", problem)

    def note(self, kind: str, what: str) -> None:
        """Something that is mended, whatever `on_bad`.

        Args:
            kind: What was done, to be followed by how often.
            what: Which it was.
        """
        self._counts[kind] += 1
        if self._counts[kind] <= NAMED:
            self._first.setdefault(kind, []).append(what)

    def tell(self) -> None:
        """Say in one line what was found, if anything was."""
        if self._counts:
            said = [
                f"{kind}: {count} ({'; '.join(self._first[kind])}{'; ...' if count > NAMED else ''})"
                for kind, count in self._counts.items()
            ]
            rank_zero_warn(f"{self.where}: {', '.join(said)}")

"""Gradual unfreezing: the head learns first, then one group of layers more at a time, from the top down.

Howard and Ruder 2018, arXiv:1801.06146, section 3.3: the last layer holds the least general knowledge, so it thaws
first; the next lower frozen group joins it after each epoch, until all train.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from ..hooks._checks import whole
from ..hooks._layer_names import patterns_of, that_match
from ..hooks._live_tensors import plain_name
from ..hooks.freezing import Freezing
from ._groups import found_groups, thawed, whole_parts

__all__ = ["Unfreeze"]


@final
class Unfreeze(Freezing):
    """Thaws a network one group of layers after the other, from the head down to the stem (gradual unfreezing).

    What is still frozen has no gradient, so neither steps nor weight decay reach it; what holds no trained parameter is
    in evaluation mode, batch norm's statistics included. The optimizer holds all parameters from the start, in its own
    groups, so rates and schedules are those of a plain run, and nothing is added to it when a group thaws. What trains
    follows from the epoch alone. Parameters that the module froze itself stay frozen. The plan is printed once.

    Args:
        epochs_per_group: Epochs after which one group more trains, a whole number >= 0, or a list with one for each
            group but the last. 1 as in the paper. Neutral: 0, with `start_epoch` 0.
        groups: From the first that trains to the last, a shell pattern each, or a list of them, on names of parts or
            parameters, as `network.layer4`; what none of them names makes one more, the last. None finds them: the
            classifier, then stages or blocks as timm's `group_matcher` numbers them, or else the module's parts.
        start_epoch: Epochs, a whole number >= 0, in which the first group trains alone before the count begins.
        name: Part of the state key.

    Shape:
        Parameters of any shape.

    Raises:
        ValueError: a number is no whole one >= 0, `groups` holds no patterns; before training, if a pattern names
            nothing that trains, if there are fewer than two groups, or if a list of epochs has another length than
            they need; a second callback that freezes, be it Lightning's `BackboneFinetuning`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import Unfreeze
        >>> trainer = Trainer(callbacks=[Unfreeze(epochs_per_group=2)], accelerator="cpu", logger=False)

    Reference: Howard and Ruder 2018, arXiv:1801.06146

    BibTeX:
        @inproceedings{howard2018universal,
          title = {Universal Language Model Fine-tuning for Text Classification},
          author = {Howard, Jeremy and Ruder, Sebastian},
          booktitle = {Annual Meeting of the Association for Computational Linguistics},
          year = {2018},
          eprint = {1801.06146},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There it goes with a rate a layer and a slanted triangular schedule, which here are the optimizer's and the
        schedule's affair; its groups are the layers of a recurrent network, here stages or blocks.

    See also:
        `HeadFirst`, the same with two groups. `lightning.pytorch.callbacks.BackboneFinetuning`, which adds a group to
        the optimizer when it thaws, and on several processes leaves what it thawed without synchronisation.
    """

    neutral = ({"epochs_per_group": 0, "start_epoch": 0},)

    def __init__(
        self,
        epochs_per_group: int | list[int] = 1,
        groups: list[str | list[str]] | None = None,
        start_epoch: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if epochs_per_group == []:
            raise ValueError(
                "Unfreeze: epochs_per_group is []; give a whole number, or one for each group but the last."
            )
        for epochs in epochs_per_group if isinstance(epochs_per_group, list) else [epochs_per_group]:
            whole("Unfreeze", "epochs_per_group", epochs, 0)
        whole("Unfreeze", "start_epoch", start_epoch, 0)
        if groups is not None and (not isinstance(groups, list) or not groups):
            raise ValueError(f"Unfreeze: groups is {groups!r}; give a list of patterns, or None to have them found.")
        self._patterns = [patterns_of("Unfreeze", "groups", it) for it in groups or ()]
        if () in self._patterns:
            raise ValueError(
                f"Unfreeze: groups is {groups!r}, and one of them is empty; give patterns, or leave it out."
            )
        self.epochs_per_group, self.groups, self.start_epoch = epochs_per_group, groups, start_epoch
        self._found: list[tuple[str, ...]] = []
        self._ends: list[int] = []

    def plan(self, pl_module: LightningModule, epochs: int | None) -> str | None:
        groups = self._named(pl_module) if self._patterns else found_groups(pl_module)
        kind = type(pl_module).__name__
        if len(groups) < 2:
            raise ValueError(
                f"Unfreeze: all that trains of {kind} is one group, so nothing would be frozen; name others with "
                "groups=, as in groups=['network.fc', 'network.layer4']."
            )
        self._ends = self._epochs(len(groups))
        self._found = [whole_parts(pl_module, group) for group in groups]
        steps = zip([0, *self._ends], self._found, groups, strict=True)
        said = "; ".join(f"from {end} {' + '.join(_few(parts))} ({len(names)})" for end, parts, names in steps)
        rank_zero_info(f"Unfreeze: by epoch, these parts (so many parameters) train, too: {said}.")
        if epochs is not None and epochs <= self._ends[-1]:
            frozen = sum(end >= epochs for end in self._ends)
            return (
                f"Unfreeze: training has max_epochs={epochs} and {frozen} of {len(groups)} groups thaw later, so they "
                "never train; lower epochs_per_group, name fewer groups, or train longer."
            )
        return None

    def trained(self, epoch: int) -> tuple[str, ...] | None:
        return thawed(self._found, self._ends, epoch)

    def _named(self, pl_module: LightningModule) -> list[list[str]]:
        """The groups that the user named, and one of what is left."""
        left = [plain_name(name) for name, it in pl_module.named_parameters() if it.requires_grad]
        paths = {name: _prefixes(name) for name in left}
        known = dict.fromkeys(path for prefixes in paths.values() for path in prefixes)
        groups = []
        for patterns in self._patterns:
            that_match("Unfreeze", "groups", patterns, known, "parts that train")
            group = [name for name in left if any(fnmatchcase(it, own) for it in paths[name] for own in patterns)]
            if not group:
                raise ValueError(
                    f"Unfreeze: groups {' + '.join(patterns)!r} names nothing that an earlier group does not; put what "
                    "is named twice into one of them."
                )
            groups.append(group)
            left = [name for name in left if name not in group]
        return [*groups, left] if left else groups

    def _epochs(self, groups: int) -> list[int]:
        """The epochs from which the second group trains, the third, and so on."""
        each = self.epochs_per_group
        if not isinstance(each, list):
            each = [each] * (groups - 1)
        if len(each) != groups - 1:
            raise ValueError(
                f"Unfreeze: epochs_per_group has {len(each)} numbers and there are {groups} groups; give one for each "
                f"but the last, {groups - 1}."
            )
        first, *others = each
        return list(accumulate([self.start_epoch + first, *others]))


def _prefixes(name: str) -> list[str]:
    """A parameter's name and those of all parts that it lies in, outermost first."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _few(parts: Sequence[str]) -> list[str]:
    return [*parts[:3], f"{len(parts) - 3} more"] if len(parts) > 4 else list(parts)

"""Linear probing, then fine-tuning: the head learns before the features that it reads may move.

Kumar, Raghunathan, Jones, Ma and Liang 2022, arXiv:2202.10054, section 3.4 (LP-FT): the head is first trained on the
features of the pretrained network, which stand still, then all of it is trained from there.
"""

from typing import final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from ..hooks._checks import whole
from ..hooks._frozen import lies_in
from ..hooks._live_tensors import plain_name
from ..hooks.freezing import Freezing
from ._classifier import classifier_of, named_parts
from ._groups import thawed

__all__ = ["HeadFirst"]


@final
class HeadFirst(Freezing):
    """Trains the classifier alone for the first epochs, everything else frozen, and then all of it (LP-FT).

    A new classifier sends large and random gradients into pretrained features; here those stand still until it reads
    them well. While `epochs` last, all other parameters have no gradient, so neither steps nor weight decay reach them
    and a step is cheaper; what holds no trained parameter is in evaluation mode, batch norm's statistics included.
    The optimizer holds all parameters from the start, in its own groups, so rates and schedules are those of a plain
    run. Parameters that the module froze itself stay frozen.

    Args:
        epochs: Epochs in which the head alone trains, a whole number >= 0. The paper trains it to convergence; 1 does
            for a head on many images. Neutral: 0.
        head: Names with which the head's parameters begin, as `network.fc`, or several of them. None finds it: what a
            timm network calls its classifier, or a part called `fc`, `classifier`, `head` or `heads`, else the last
            layer with parameters, if it is linear; none or more than one is refused.
        name: Part of the state key.

    Shape:
        Parameters of any shape.

    Raises:
        ValueError: `epochs` is no whole number >= 0, `head` no name or list of names; before training, if the module
            has no part of that name, none or several that may be the classifier, or nothing in it that trains; a
            second callback that freezes, be it Lightning's `BackboneFinetuning`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import HeadFirst
        >>> trainer = Trainer(callbacks=[HeadFirst(epochs=2)], accelerator="cpu", logger=False)

    Reference: Kumar et al. 2022, arXiv:2202.10054

    BibTeX:
        @inproceedings{kumar2022finetuning,
          title = {Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution},
          author = {Kumar, Ananya and Raghunathan, Aditi and Jones, Robbie and Ma, Tengyu and Liang, Percy},
          booktitle = {International Conference on Learning Representations},
          year = {2022},
          eprint = {2202.10054},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There the two phases are runs of their own, each with its rate, schedule and choice of the best epoch; here they
        share one run and its schedule, and the first has a fixed length.

    See also:
        `Unfreeze`, which thaws one group of layers after the other. `lightning.pytorch.callbacks.BackboneFinetuning`,
        which adds a group to the optimizer when it thaws.
    """

    neutral = ({"epochs": 0},)

    def __init__(self, epochs: int = 1, head: str | list[str] | None = None, name: str | None = None) -> None:
        super().__init__(name=name)
        whole("HeadFirst", "epochs", epochs, 0)
        names = [head] if isinstance(head, str) else head
        if names is not None and not (
            isinstance(names, list) and names and all(isinstance(it, str) and it.strip(".") for it in names)
        ):
            raise ValueError(f"HeadFirst: head is {head!r}; give a name, a list of names, or None to have it found.")
        self.epochs, self.head = epochs, head
        self._named = None if names is None else tuple(it.strip(".") for it in names)
        self._found: tuple[str, ...] = ()

    def plan(self, pl_module: LightningModule, epochs: int | None) -> str | None:
        if self._named is None:
            self._found = classifier_of("HeadFirst", pl_module)
        else:
            self._found = named_parts("HeadFirst", pl_module, self._named)
        trains = [plain_name(name) for name, it in pl_module.named_parameters() if it.requires_grad]
        head = [name for name in trains if lies_in(name, self._found)]
        found = " and ".join(self._found)
        if not head:
            raise ValueError(
                f"HeadFirst: all parameters of {found} are frozen by {type(pl_module).__name__} itself, so nothing "
                "would train; thaw them, or name another part with head=."
            )
        length = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        rank_zero_info(
            f"HeadFirst: for {length} the head trains alone: {found}, {len(head)} of {len(trains)} parameters."
        )
        if len(head) == len(trains):
            return (
                f"HeadFirst: {type(pl_module).__name__} has frozen all but {found} itself, so nothing will be thawed "
                f"after {length}; leave HeadFirst or the module's own freezing out."
            )
        if epochs is not None and epochs <= self.epochs:
            return (
                f"HeadFirst: training has max_epochs={epochs} and the head trains alone for the first {length}, so "
                "nothing else ever trains; lower epochs, or train longer."
            )
        return None

    def trained(self, epoch: int) -> tuple[str, ...] | None:
        return thawed([self._found], [self.epochs], epoch)

"""Movement pruning: weights that training moves towards zero go, large or small.

The score of a weight is what gradient descent would make of its importance, S = - sum over steps of dL/dW * W: it grows
while the weight moves away from zero. Sanh et al. 2020, arXiv:2005.07683, section 4, Eq. 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ._criterion import Criterion, Moment
from ._scores import keep_largest

__all__ = ["Movement", "add_movement_scores"]


@torch.no_grad()
def add_movement_scores(scores: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Add one step to movement scores, in place: S <- S - W * dL/dW; nothing if any gradient is not finite.

    A loss scaler passes over a step with such gradients, so the weights do not move in it.

    Args:
        scores: S, one for each weight, of its shape.
        weights: W before the step.
        gradients: dL/dW of the step.

    Example:
        >>> score = torch.zeros(2)
        >>> add_movement_scores([score], [torch.tensor([2.0, -3.0])], [torch.tensor([-0.5, -0.5])])
        >>> score  # the first moves away from zero, the second towards it
        tensor([ 1.0000, -1.5000])
    """
    if not scores:
        return
    # On the device, for asking the host would wait for it in every step.
    finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
    moved = torch._foreach_mul(list(weights), list(gradients))
    torch._foreach_sub_(
        list(scores), [torch.where(finite, it, 0).to(S.dtype) for it, S in zip(moved, scores, strict=True)]
    )


@final
class Movement(Criterion):
    """Keeps the weights that moved furthest away from zero since training began, over all layers together.

    It looks at weights and gradients before each optimizer step and is asked after some of them, so pruning has to
    begin later than step 0. The weights with the largest scores stay (top-v, hard movement pruning); a weight that is
    masked moves no more, and its score stands still.

    Raises:
        ValueError: from `keep`, if nothing was observed before.

    Example:
        >>> from lightning_vision.callbacks.pruning.movement import Movement
        >>> criterion = Movement()
        >>> criterion.observe({})

    Reference: Sanh et al. 2020, arXiv:2005.07683

    BibTeX:
        @inproceedings{sanh2020movement,
          title = {Movement Pruning: Adaptive Sparsity by Fine-Tuning},
          author = {Sanh, Victor and Wolf, Thomas and Rush, Alexander M.},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2020},
          eprint = {2005.07683},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There masks are applied in the forward pass alone: masked weights go on moving, by a straight-through gradient,
        and may return. Here a masked weight stays at zero. Scores have no optimizer of their own, so its rate is 1,
        which changes no order. The soft variant, a threshold on scores with a penalty, is not here: its
        sparsity cannot be asked for.

    See also:
        `Pruning`, which asks it.
    """

    def __init__(self) -> None:
        self._scores: dict[str, Tensor] = {}

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        moving = {name: weight for name, weight in weights.items() if weight.grad is not None}
        for name, weight in moving.items():
            score = self._scores.get(name)
            if score is None:
                # At least single precision, for many small steps are summed.
                score = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            self._scores[name] = score.detach().to(weight.device)
        gradients = [weight.grad for weight in moving.values() if weight.grad is not None]
        add_movement_scores([self._scores[name] for name in moving], list(moving.values()), gradients)

    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        if not self._scores:
            raise ValueError(
                f"Movement: masks are asked for at step {moment.step}, before any step was observed; let pruning begin "
                "after some optimizer steps."
            )
        scores = {
            name: self._scores[name].to(weight.device) if name in self._scores else torch.zeros_like(weight)
            for name, weight in moment.weights.items()
        }
        return keep_largest(scores, moment.kept, count)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": {name: score.cpu() for name, score in self._scores.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scores = dict(state["scores"])

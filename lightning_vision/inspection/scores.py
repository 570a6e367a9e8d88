"""The score of a class in what a network answers, be it logits or detections."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["class_scores", "rival_logits"]


def class_scores(answer: Any, class_index: int | Tensor | None) -> tuple[Tensor, Tensor]:
    """The score of one class of each image, `(B,)`, and which class it is, int64 `(B,)`.

    Of a detector a class's score is the sum of the scores of its detections in the image, so of a class that was not
    detected it is 0.

    Args:
        answer: Logits `(B, K)`; or of a detector a list of B mappings with `scores` `(D,)` and `labels` `(D,)`.
        class_index: One class for all, int64 `(B,)`, or None for each image's largest logit, of a detector the class of
            the detection with the highest score (-1 without any).

    Raises:
        ValueError: the answer is neither, or a class is outside 0..K-1.
    """
    if isinstance(answer, list) and all(isinstance(it, Mapping) and {"scores", "labels"} <= set(it) for it in answer):
        best = [it["labels"][it["scores"].argmax()] if len(it["scores"]) else -1 for it in answer]
        chosen = torch.tensor(best) if class_index is None else torch.as_tensor(class_index).expand(len(answer)).long()
        sums = [it["scores"][it["labels"] == label].sum() for it, label in zip(answer, chosen.tolist(), strict=True)]
        return torch.stack(sums), chosen
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        got = f"{tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ValueError(
            f"the model answered {got} and no logits (B, K), so there is no class to explain; wrap it in a module that "
            "returns the logits."
        )
    if class_index is None:
        chosen = answer.detach().argmax(1)
    else:
        asked = torch.as_tensor(class_index, device=answer.device)
        if asked.shape not in ((), (len(answer),)) or asked.is_floating_point():
            raise ValueError(
                f"class_index is {asked.dtype} {tuple(asked.shape)}; give one class, or one for each of the "
                f"{len(answer)} images."
            )
        # A copy, for what was made in inference mode cannot wait for a backward pass.
        chosen = asked.expand(len(answer)).long().clone()
        if int(chosen.min()) < 0 or int(chosen.max()) >= answer.shape[1]:
            raise ValueError(
                f"class_index is {chosen.unique().tolist()} and the model has classes 0 to {answer.shape[1] - 1}."
            )
    return answer.gather(1, chosen[:, None]).squeeze(1), chosen


def rival_logits(answer: Any) -> Tensor:
    """The answer as logits `(B, K)` of which a softmax makes probabilities.

    Raises:
        ValueError: it is no `(B, K)`, or K is 1, where the softmax is 1 whatever the image.
    """
    if isinstance(answer, list):
        raise ValueError("the model answers detections and no logits (B, K), of which probabilities could be made.")
    class_scores(answer, None)
    if answer.shape[1] < 2:
        raise ValueError(
            "the model answers one logit, whose softmax is 1 whatever the image; wrap it in a module that returns "
            "logits of two classes, as torch.cat([-logit, logit], 1) / 2."
        )
    return answer

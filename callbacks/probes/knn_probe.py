"""kNN probe: images are classified by what their nearest training images are, with nothing trained.

Wu et al. 2018, arXiv:1805.01978, section 3.4: of the k training images of highest cosine similarity s, each votes for
its class with the weight exp(s / T). Letters: Q queries, N training images (the bank), D features, C classes, T
temperature.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..hooks._checks import above_zero, whole
from ..hooks.probing import Probing, Read

__all__ = ["KNNProbe", "knn_predict"]

Protocol = Literal["instdisc", "dinov2", "solo"]
# Neighbours, several for several numbers, and temperature.
PROTOCOLS: dict[str, tuple[tuple[int, ...], float]] = {
    "instdisc": ((200,), 0.1),
    "dinov2": ((10, 20, 100, 200), 0.07),
    "solo": ((20,), 0.07),
}


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    k: int | Sequence[int] = 200,
    temperature: float = 0.1,
    chunk: int = 256,
) -> Tensor:
    """The class of each query by a weighted vote of its k nearest neighbours, int64 `(Q,)`; of several k `(len(k), Q)`.

    The votes of all k are prefix sums over the neighbours of the largest one, so several cost no more than that. No
    more than `chunk` rows of similarities are held at once: memory is `chunk * (N + C)` numbers beside the features and
    a copy of them of length 1.

    Args:
        queries: `(Q, D)`, of any length; compared by cosine similarity.
        bank: Features of the training images, `(N, D)`.
        labels: Their classes, int64 `(N,)`, >= 0.
        k: Neighbours that vote, 1 .. N; several in any order.
        temperature: Above 0; small, and the nearest decides.
        chunk: Queries that are compared at a time, >= 1.

    Raises:
        ValueError: k is larger than the bank or below 1, or shapes do not fit.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import knn_predict
        >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_predict(torch.tensor([[2.0, 1.9]]), bank, torch.tensor([1, 1, 0]), k=[1, 3])
        tensor([[1],
                [1]])
    """
    several = [k] if isinstance(k, int) else list(k)
    if bank.ndim != 2 or queries.ndim != 2 or queries.shape[1] != bank.shape[1] or labels.shape != bank.shape[:1]:
        shapes = f"queries {tuple(queries.shape)}, a bank {tuple(bank.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"knn_predict: {shapes} do not fit; give (Q, D), (N, D) and (N,).")
    if not several or min(several) < 1 or max(several) > len(bank):
        raise ValueError(
            f"knn_predict: k is {k} and the bank has {len(bank)} images; give whole numbers from 1 to {len(bank)}."
        )
    classes = int(labels.max()) + 1
    order = sorted(range(len(several)), key=several.__getitem__)
    queries, bank = F.normalize(queries, dim=1), F.normalize(bank, dim=1)
    found = torch.empty(len(several), len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), chunk):
        similarity, place = _largest(queries[start : start + chunk] @ bank.T, max(several))
        # The nearest weighs 1, which changes no order and cannot overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        vote, voted = weight.new_zeros(len(weight), classes), labels[place]
        done = 0
        for index in order:
            until = several[index]
            vote.scatter_add_(1, voted[:, done:until], weight[:, done:until])
            found[index, start : start + chunk], done = vote.argmax(1), until
    return found[0] if isinstance(k, int) else found


def _largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, largest first, and their positions: `torch.topk`, in fewer comparisons.

    Columns are dealt to groups; the k largest entries lie in the k groups whose largest entries are largest.

    Args:
        rows: `(Q, N)`.
        k: At most N.
    """
    columns = rows.shape[1]
    deep = int((columns / k) ** 0.5)
    groups = columns // deep
    if deep < 2:
        return rows.topk(k)
    dealt = rows[:, : deep * groups].unflatten(1, (deep, groups))
    best = dealt.amax(1).topk(k, sorted=False).indices
    steps = torch.arange(0, deep * groups, groups, device=rows.device)
    rest = torch.arange(deep * groups, columns, device=rows.device).expand(len(rows), -1)
    places = torch.cat([(best[:, None] + steps[:, None]).flatten(1), rest], 1)
    values, found = rows.gather(1, places).topk(k)
    return values, places.gather(1, found)


@final
class KNNProbe(Probing):
    """Logs how many validation images their nearest training images classify rightly, by their features.

    Nothing is trained: each validation image takes the class for which its k nearest training images vote, by cosine
    similarity, each with the weight exp(similarity / T). The numbers are shares of right answers, `probe/knn`, or with
    several k `probe/knn_K` each; tests give `probe/test/...`. Each stands beside its protocol in `probes.csv`, and the
    last is printed when the fit ends. Training sees nothing of it. Images without a class (negative) have no part.

    Args:
        protocol: Whose settings: `instdisc` (k 200, T 0.1), `dinov2` (k 10, 20, 100 and 200 in one pass, T 0.07) or
            `solo` (k 20, T 0.07). Changed, by one of the next three, it is called `instdisc*` and so on.
        k: Neighbours that vote instead, >= 1, at most the training images; a list gives a number each.
        temperature: T instead, above 0.
        max_samples: Training images in the bank at most; None takes all, as the protocols do.
        chunk: Validation images that are compared at a time; memory is so many rows of a number a training image.
        every_n_epochs: While fitting, validations of every n-th epoch are measured, from the first on, and the last, >=
            0; `validate` and `test` always. Neutral: 0, which measures nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the numbers are called instead of `knn`.

    Shape:
        Features `(B, D)` of the module's `features(images)`; labels int `(B,)`.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the module has no `features`; before
            the first step, or where only reading tells the bank's size after the first epoch, if k is larger than it;
            in the first batch, sanity check included, if labels are missing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import KNNProbe
        >>> trainer = Trainer(callbacks=[KNNProbe("solo")], accelerator="cpu", logger=False)

    Reference: Wu et al. 2018, arXiv:1805.01978

    BibTeX:
        @inproceedings{wu2018unsupervised,
          title = {Unsupervised Feature Learning via Non-Parametric Instance Discrimination},
          author = {Wu, Zhirong and Xiong, Yuanjun and Yu, Stella X. and Lin, Dahua},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2018},
          eprint = {1805.01978},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The bank holds features of this moment's weights, through the evaluation's transform, and not those that the
        training left of each image.

    See also:
        `knn_predict`, the vote on any features; `OnlineProbe`, a linear classifier.
    """

    title: ClassVar[str] = "knn"
    uses_bank = True

    def __init__(
        self,
        protocol: Protocol = "instdisc",
        k: int | list[int] | None = None,
        temperature: float | None = None,
        max_samples: int | None = None,
        chunk: int = 256,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            every_n_epochs=every_n_epochs,
            max_samples=max_samples,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        if protocol not in get_args(Protocol):
            raise ValueError(f"KNNProbe: protocol is {protocol!r}; give 'instdisc', 'dinov2' or 'solo'.")
        if isinstance(k, list) and (not k or len(set(k)) < len(k)):
            raise ValueError(f"KNNProbe: k is {k!r}; give one number or several different ones.")
        for it in [k] if isinstance(k, int) else k or ():
            whole("KNNProbe", "k", it, 1)
        if temperature is not None:
            above_zero("KNNProbe", "temperature", temperature)
        whole("KNNProbe", "chunk", chunk, 1)
        self._named: Protocol = protocol
        self.k, self.temperature, self.chunk = k, temperature, chunk
        own, self._temperature = PROTOCOLS[protocol]
        self._ks = own if k is None else (k,) if isinstance(k, int) else tuple(k)
        self._temperature = self._temperature if temperature is None else float(temperature)

    @property
    def protocol(self) -> str:
        as_published = (self._ks, self._temperature) == PROTOCOLS[self._named] and self.max_samples is None
        return self._named if as_published else f"{self._named}*"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "k": list(self._ks),
            "temperature": self._temperature,
            "similarity": "cosine",
            "weight": "exp(similarity / temperature)",
            "max_samples": self.max_samples,
        }

    def ready(self, trainer: Trainer, pl_module: LightningModule, bank_size: int | None) -> None:
        if bank_size is not None:
            self._refuse(bank_size)

    def measure(self, pl_module: LightningModule, images: Read, bank: Read | None) -> Mapping[str, float]:
        assert bank is not None and bank.targets is not None and images.targets is not None
        known, asked = bank.targets >= 0, images.targets >= 0
        among, queries = bank.features[known], images.features[asked]
        if self.rehearsing:
            several = [min(it, len(among)) for it in self._ks]
        else:
            self._refuse(len(among))
            several = list(self._ks)
        if not len(among) or not len(queries):
            return {}
        found = knn_predict(queries, among, bank.targets[known], several, self._temperature, self.chunk)
        right = (found == images.targets[asked]).double().mean(1).tolist()
        if len(self._ks) == 1:
            return {"": right[0]}
        return {str(it): share for it, share in zip(self._ks, right, strict=True)}

    def _refuse(self, bank: int) -> None:
        if bank < max(self._ks):
            raise ValueError(
                f"KNNProbe: {max(self._ks)} neighbours are to vote and there are {bank} training images with a class; "
                f"give k= of at most {bank}, or more images."
            )

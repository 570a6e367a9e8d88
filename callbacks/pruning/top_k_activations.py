"""Top-k activations: of the hidden features of each token only the k largest go on, all others are zero.

Li et al. 2023, arXiv:2210.06313, section 4. Letters: N tokens or positions, D hidden features, k of them kept.
"""

from math import ceil
from typing import final

from lightning.pytorch import LightningModule
from torch import Tensor, zeros_like

from ..hooks._activations import activations_of
from ..hooks._checks import number, whole
from ..hooks._layer_names import patterns_of
from ..hooks.forwards import Forwards

__all__ = ["TopKActivations", "keep_top_k"]


def keep_top_k(activation: Tensor, k: int, dim: int = -1) -> Tensor:
    """Keep the k largest entries along one dimension and set the others to zero; gradients pass the kept ones alone.

    Of equal ones torch's `topk` chooses. Where k is the size of the dimension or more, the very tensor comes back.

    Args:
        activation: Any shape.
        k: How many are kept, >= 1.
        dim: Along which dimension.

    Raises:
        ValueError: k is no whole number >= 1.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import keep_top_k
        >>> keep_top_k(torch.tensor([[3.0, 1.0, 2.0]]), k=2)
        tensor([[3., 0., 2.]])

    Reference: Li et al. 2023, arXiv:2210.06313
    """
    whole("keep_top_k", "k", k, 1)
    if k >= activation.shape[dim]:
        return activation
    kept = activation.topk(k, dim=dim, sorted=False)
    return zeros_like(activation).scatter(dim, kept.indices, kept.values)


@final
class TopKActivations(Forwards):
    """Lets only the k largest hidden activations of each token through, in training and whenever the Trainer evaluates.

    It acts on what the activations inside MLP blocks put out, before the second linear map; all else of the step is
    untouched, and no parameter is added. Files are plain: they hold the weights of a network that was trained so, and
    know nothing of k. Whoever predicts with them has to give the Trainer this callback again, or to call `keep_top_k`
    behind the activations; without it the network computes with all its activations, which is another function.

    Args:
        fraction: Of the features of a token that are kept, above 0 to 1, rounded up. Neutral: 1.
        k: Instead: how many are kept, >= 1. One of the two is given.
        layers: Names of the layers whose outputs are cut, a shell pattern or a list; None takes the activation of each
            MLP block (`fc1`, `act`, `fc2`), and where there is none, each ReLU and GELU.
        name: Part of the state key.

    Shape:
        Tokens `(..., D)`, of which D are the features; of layers outside of MLP blocks, maps `(B, D, H, W)`.

    Raises:
        ValueError: from the constructor, for a setting out of range, both `k` and a fraction, or neither; before the
            first step, if a pattern matches no layer or there is no MLP block, ReLU or GELU; in the first batch, if a
            layer puts out no tensor.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import TopKActivations
        >>> trainer = Trainer(callbacks=[TopKActivations(k=128)], accelerator="cpu", logger=False)

    Reference: Li et al. 2023, arXiv:2210.06313

    BibTeX:
        @inproceedings{li2023lazy,
          title = {The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers},
          author = {Li, Zonglin and You, Chong and Bhojanapalli, Srinadh and Li, Daliang and Rawat, Ankit Singh and
            Reddi, Sashank J. and Ye, Ke and Chern, Felix and Yu, Felix and Guo, Ruiqi and Kumar, Sanjiv},
          booktitle = {International Conference on Learning Representations},
          year = {2023},
          eprint = {2210.06313},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        There the activations are ReLUs, of which the k largest are never negative; a GELU's k largest are kept
        whatever their sign. The activation itself is not exchanged: choose it where the network is made.

    See also:
        `ActivationSparsity`, which tells how many activations a network uses by itself.
    """

    neutral = ({"fraction": 1.0, "k": None},)

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        layers: str | list[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if (fraction is None) == (k is None):
            given = "neither k nor fraction was" if k is None else f"both k={k} and fraction={fraction} were"
            raise ValueError(f"TopKActivations: {given} given; give one of them.")
        if k is not None:
            whole("TopKActivations", "k", k, 1)
        else:
            number("TopKActivations", "fraction", fraction, 0.0, 1.0)
        if fraction == 0.0:
            raise ValueError("TopKActivations: fraction is 0.0, which lets nothing through; give a share above 0.")
        self._patterns = () if layers is None else patterns_of("TopKActivations", "layers", layers)
        self.fraction, self.k, self.layers = fraction, k, layers
        self._last: dict[str, bool] = {}

    def chosen(self, pl_module: LightningModule) -> dict[str, bool]:
        self._last = activations_of("TopKActivations", pl_module, self._patterns)
        return self._last

    def changed(self, layer: str, output: Tensor) -> Tensor:
        dim = 1 if output.ndim == 4 and not self._last[layer] else -1
        k = self.k if self.fraction is None else ceil(self.fraction * output.shape[dim])
        assert k is not None
        return keep_top_k(output, k, dim)

"""Guidance: a network learns to tell images apart, layer by layer, as a frozen network of another architecture does.

Subramaniam et al. 2024, arXiv:2410.20035: the loss of the task plus 1 - CKA for each pair of layers. Letters: X and Y
what two layers put out for B images, a row each; K and L their centred Gram matrices `(B, B)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import Size, Tensor, nn

from ..hooks._checks import number, whole
from ..hooks._frozen import part_name
from ..hooks._layer_table import layers_with_weights
from ..hooks._teachers import Teacher
from ..hooks.taught import Answer, Taught

__all__ = ["Guidance", "even_pairs", "linear_cka"]


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of two layers, in [0, 1]: 1 if they place the same images alike, but for scale.

    With K and L the Gram matrices of a and b, each without its mean: <K, L> / (|K| |L|). Neither rotations of the
    features nor their scale change it, and the two widths may differ. Computed in at least float32.

    Args:
        a: Features of B images `(B, ...)`.
        b: Features of the same images `(B, ...)`, others in number.

    Shape:
        A scalar. It is 0, and its gradient too, where one of them is the same for all images, and for B = 1.

    Example:
        >>> import torch
        >>> features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
        >>> round(float(linear_cka(features, -3 * features.flip(1))), 5)
        1.0

    Reference: Kornblith et al. 2019, arXiv:1905.00414
    """
    ours, theirs = _gram(a), _gram(b)
    norms = ours.norm() * theirs.norm()
    return ((ours * theirs).sum() / norms.where(norms > 0, 1)).clamp(0, 1)


def _gram(features: Tensor) -> Tensor:
    wide = features.flatten(1) if features.ndim > 1 else features[:, None]
    wide = wide.to(torch.promote_types(features.dtype, torch.float32))
    centred = wide - wide.mean(dim=0)
    largest = centred.detach().abs().max()
    # What rounding leaves of constants is none; the scale, which does not matter, keeps squares of squares finite.
    constant = largest <= len(wide) * torch.finfo(wide.dtype).eps * wide.detach().abs().max()
    unit = torch.where(constant, 0, centred / largest.where(~constant, 1))
    return unit @ unit.T


def even_pairs(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """As many pairs as the shorter list has names, spread evenly over both: first with first and last with last.

    >>> even_pairs(["a", "b", "c"], ["1", "2", "3", "4", "5"])
    [('a', '1'), ('b', '3'), ('c', '5')]
    """
    count = min(len(ours), len(theirs))
    if count == 1:
        return [(ours[-1], theirs[-1])]
    places = [it / (count - 1) for it in range(count)]
    return [(ours[round(it * (len(ours) - 1))], theirs[round(it * (len(theirs) - 1))]) for it in places]


@final
class Guidance(Taught):
    """Guides the layers of a network by those of a frozen network of another architecture, which may be untrained.

    To the loss of each batch comes 1 - CKA (`linear_cka`) of what a layer puts out and what a layer of the guide puts
    out for the same images, the mean over pairs of layers. Widths and kinds of layers may differ, nothing is learned
    beside the network. The guide's answers do not matter, only its layers: one with random weights hands on what its
    architecture makes alike. Logged is `train/guidance`, before its weight. Give a deep network norms: CKA does not see
    scale, so its gradient grows as layers come to differ less between images, while that of the task shrinks; without
    norms it drowned the task on the card's digits.

    Args:
        teacher: The guide: a network, the path of a checkpoint (`*.ckpt`), a name of timm's, or a list of those, over
            which the mean is taken.
        weight: Factor, at least 0; 1 as the authors, 0 leaves it out.
        layers: Paths of the network's layers, below `network`, each with that of the guide's layer for it; None pairs
            all Linear and convolutional ones but the last, evenly and in their order.
        stop_epoch: Epochs that are guided, at least 1; from then on the guide does not run. None is all.
        stop_step: Optimizer steps that are guided, at least 1; the authors also end after 300. None is all.
        teacher_weights: Of a name: `pretrained`, timm's own; `random`; or a file.
        seed: Of random weights, at least 0.
        network: Path of the part of the module that makes logits of images, as `network`; empty is the module itself,
            whose forward `training_step` calls.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key.

    Shape:
        Images `(B, C, H, W)`; a layer's output `(B, ...)`, or several rows an image as windows have, one image after
        the other. On several ranks each compares its own images.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if a layer is not there, is called
            more than once or has no rows of images, or there are none to pair.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import Guidance
        >>> trainer = Trainer(callbacks=[Guidance("resnet18", teacher_weights="random")], logger=False)

    Reference: Subramaniam et al. 2024, arXiv:2410.20035

    BibTeX:
        @inproceedings{subramaniam2025training,
          title = {Training the Untrainable: Introducing Inductive Bias via Representational Alignment},
          author = {Subramaniam, Vighnesh and Mayo, David and Conwell, Colin and Poggio, Tomaso and Katz, Boris and
            Cheung, Brian and Barbu, Andrei},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2025},
          eprint = {2410.20035},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The mean over pairs where the authors have the sum: their weight is this one divided by the number of pairs.
        Where the guide has more layers they let several fall on one of the network's and keep the last; here both
        lists are thinned out evenly. Layers of normalisation and pooling are not paired unless they are named.

    See also:
        `Distillation`, which compares answers.
    """

    neutral = ({"weight": 0.0},)
    # Only its layers matter.
    same_classes = False

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        weight: float = 1.0,
        layers: Mapping[str, str] | None = None,
        stop_epoch: int | None = None,
        stop_step: int | None = None,
        teacher_weights: str = "pretrained",
        seed: int = 0,
        network: str = "",
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        number("Guidance", "weight", weight, 0)
        for argument, value in (("stop_epoch", stop_epoch), ("stop_step", stop_step)):
            if value is not None:
                whole("Guidance", argument, value, 1)
        if layers is not None:
            if not (isinstance(layers, Mapping) and layers):
                raise ValueError(f"Guidance: layers is {layers!r}; give a layer of the guide for each layer, or None.")
            if not all(isinstance(it, str) for pair in layers.items() for it in pair):
                raise ValueError(
                    f"Guidance: layers is {layers!r}; give paths as text, in quotes where they are numbers."
                )
        super().__init__(
            teacher=teacher,
            teacher_weights=teacher_weights,
            seed=seed,
            network=network,
            image_key=image_key,
            target_key=target_key,
            weights={"guidance": weight},
            name=name,
        )
        self.weight, self.layers, self.stop_epoch, self.stop_step = weight, layers, stop_epoch, stop_step
        self._pairs: list[list[tuple[str, str]]] = []  # of each guide

    def resting(self, trainer: Trainer) -> bool:
        epochs, steps = self.stop_epoch, self.stop_step
        return (epochs is not None and trainer.current_epoch >= epochs) or (
            steps is not None and trainer.global_step >= steps
        )

    def student_layers(self, network: nn.Module) -> Sequence[str]:
        if self.layers is None:
            ours = _before_the_last(network, "the network")
            self._pairs = [even_pairs(ours, _before_the_last(it, "the guide")) for it in self.teachers]
        else:
            self._pairs = [list(self.layers.items()) for _ in self.teachers]
        return [ours for pairs in self._pairs for ours, _ in pairs]

    def teacher_layers(self, teacher: nn.Module) -> Sequence[str]:
        place = next(place for place, it in enumerate(self.teachers) if it is teacher)
        return [theirs for _, theirs in self._pairs[place]]

    def parts(self, student: Mapping[str, Size], teachers: Sequence[Mapping[str, Size]]) -> Mapping[str, nn.Module]:
        for shapes in (student, *teachers):
            for path, shape in shapes.items():
                # Places first and images second, as transformers of torch have it unless told otherwise.
                if not shape or shape[0] % 2 or (shape[0] > 2 and shape[1:2] == (2,)):
                    raise ValueError(
                        f"Guidance: the layer {path!r} puts out {tuple(shape)} for two images, which is no row for "
                        "each; pair others with layers=."
                    )
        return {}

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        images = self.fields.image(batch)
        # In full precision, whatever the rest is in: a mean is taken away.
        with torch.autocast(images.device.type, enabled=False):
            apart = [
                1 - linear_cka(*(it.reshape(len(images), -1) for it in (student.layers[ours], guide.layers[theirs])))
                for guide, pairs in zip(teachers, self._pairs, strict=True)
                for ours, theirs in pairs
            ]
        return {"guidance": torch.stack(apart).mean()}


def _before_the_last(network: nn.Module, whose: str) -> list[str]:
    """Paths of the layers with weights; the last one makes logits."""
    paths = [part_name(name).removesuffix(".weight") for name in layers_with_weights(network)][:-1]
    if not paths:
        raise ValueError(
            f"Guidance: {whose}, {type(network).__name__}, has no Linear or convolutional layer before its last one to "
            "pair; name layers with layers=."
        )
    return paths

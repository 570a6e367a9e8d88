"""A sanity check of maps: whether they change when what the model has learnt is randomised.

Adebayo et al. 2018, arXiv:1810.03292, section 3 (model parameter randomisation).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_vision.inspection.at_rest import at_rest

__all__ = ["RandomisedLayer", "randomised_layers"]


@dataclass(frozen=True)
class RandomisedLayer:
    """How much of the maps is left once a layer is random.

    Args:
        layer: Dotted name of the layer that was randomised last.
        maps: Of the model as it is now, `(B, H, W)`.
        spearman: Rank correlation of each map with that of the trained model, `(B,)`, -1 to 1; nan for a constant map.
        ssim: Structural similarity of both, each scaled to 0..1, `(B,)`.
    """

    layer: str
    maps: Tensor
    spearman: Tensor
    ssim: Tensor


def randomised_layers(
    model: nn.Module,
    explain: Callable[[nn.Module, Tensor], Tensor],
    images: Tensor,
    cascading: bool = True,
    seed: int = 0,
    layers: Sequence[str] | None = None,
) -> list[RandomisedLayer]:
    """Randomise a copy of `model` layer by layer, from the top, and compare its maps with those of the trained model.

    Maps that explain what was learnt lose their likeness; those that stay alike show the image and not the model. A
    layer is drawn anew by its `reset_parameters`, or from a normal distribution of its own mean and deviation where it
    has none. Batch norms from there on take their statistics from `images`, for those of the trained network would
    leave nothing of what random layers put out.

    Args:
        model: Trained; it is left as it was.
        explain: Makes maps `(B, H, W)` of a model and images, of classes fixed beforehand.
        images: `(B, C, H, W)`.
        cascading: Keep random what was randomised before, as the paper's main test; False randomises one at a time.
        seed: Of the draws, which are made on the CPU; the global random state is left alone.
        layers: Dotted names of the layers at which maps are compared; all are randomised on the way. None is each.

    Returns:
        An entry a layer that has parameters, or of `layers`, in the order in which they were randomised.

    Raises:
        ValueError: the model has no layer with parameters, none of a name in `layers`, or `explain` gives no
            `(B, H, W)`.

    Reference: Adebayo et al. 2018, arXiv:1810.03292
    """
    used = _in_order_of_use(model, images)
    if not used:
        raise ValueError(f"{type(model).__name__} has no layer with parameters, so there is nothing to randomise.")
    if layers is not None and (not layers or not set(layers) <= set(used)):
        raise ValueError(f"layers are {list(layers)}; give some of those that are randomised, as {used[-1]!r}.")
    trained = explain(model, images)
    if trained.shape != (len(images), *images.shape[-2:]):
        raise ValueError(f"explain gave {tuple(trained.shape)} for images {tuple(images.shape)}; give (B, H, W) maps.")
    copy, found = deepcopy(model), []
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed would seed the streams of all other devices for good.
        torch.default_generator.manual_seed(seed)
        for name in reversed(used):
            if not cascading:
                copy = deepcopy(model)
            _draw_anew(copy.get_submodule(name))
            _measure_statistics(copy, used[used.index(name) :], images)
            if layers is not None and name not in layers:
                continue
            maps = explain(copy, images)
            found.append(RandomisedLayer(name, maps, _spearman(maps, trained), _ssim(maps, trained)))
    return found


def _in_order_of_use(model: nn.Module, images: Tensor) -> list[str]:
    used: dict[str, None] = {}
    handles = [
        part.register_forward_hook(lambda _module, _inputs, _output, name=name: used.setdefault(name))
        for name, part in model.named_modules()
        if name and next(part.parameters(recurse=False), None) is not None
    ]
    try:
        with at_rest(model), torch.no_grad():
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(used)


@torch.no_grad()
def _draw_anew(layer: nn.Module) -> None:
    """Change a layer's parameters, by draws on the CPU, and leave its buffers."""
    drawn = deepcopy(layer).cpu()
    reset = getattr(drawn, "reset_parameters", None)
    if callable(reset):
        reset()
    else:
        for parameter in drawn.parameters(recurse=False):
            spread = float(parameter.std(correction=0)) if parameter.numel() > 1 else 1.0
            parameter.normal_(float(parameter.mean()), spread)
    for parameter, value in zip(layer.parameters(), drawn.parameters(), strict=True):
        parameter.copy_(value)


@torch.no_grad()
def _measure_statistics(model: nn.Module, layers: Sequence[str], images: Tensor) -> None:
    """Give the batch norms among `layers` the mean and variance of what they are given, one after the other."""

    def measure(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        over = [dim for dim in range(x.ndim) if dim != 1]
        average, variance = part.running_mean, part.running_var
        assert isinstance(average, Tensor)
        assert isinstance(variance, Tensor)
        if x.numel() > x.shape[1]:
            average.copy_(x.mean(over))
            variance.copy_(x.var(over, correction=0))

    parts = [model.get_submodule(name) for name in layers]
    norms = [part for part in parts if isinstance(getattr(part, "running_mean", None), Tensor)]
    handles = [part.register_forward_pre_hook(measure) for part in norms]
    try:
        with at_rest(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()


def _spearman(maps: Tensor, trained: Tensor) -> Tensor:
    ranks = [torch.from_numpy(rankdata(it.flatten(1).cpu().numpy(), axis=1)) for it in (maps, trained)]
    ours, theirs = (it - it.mean(1, keepdim=True) for it in ranks)
    return ((ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))).float()


def _ssim(maps: Tensor, trained: Tensor) -> Tensor:
    ours, theirs = (_scaled(it)[:, None].cpu() for it in (maps, trained))
    found = structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found


def _scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)

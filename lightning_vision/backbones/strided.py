"""Replace the pooling of any network by strided convolutions (Springenberg et al. 2014, arXiv:1412.6806, section 2)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["replace_pooling"]


def replace_pooling(
    network: nn.Module, example: Tensor, activation: Callable[[], nn.Module] | None = nn.ReLU
) -> list[str]:
    """Replace each `MaxPool2d` and `AvgPool2d` by a convolution of the same kernel, stride and padding.

    The network is changed in place; map sizes stay the same. Global and adaptive pooling stays, and so does pooling
    that the network calls as a function, which cannot be seen. The new weights are drawn from torch's generator as
    He et al. draw them; make the optimizer afterwards.

    Args:
        network: Any module.
        example: Input on which the network runs once, to see how many channels each pooling layer has.
        activation: Builds what follows each new convolution, or None for nothing.

    Returns:
        Dotted paths of the replaced layers.

    Raises:
        ValueError: nothing is to be replaced, a layer rounds its size up (`ceil_mode`), was not reached by `example`,
            or is used at two places with different numbers of channels.

    Reference: Springenberg et al. 2014, arXiv:1412.6806
    """
    places = [
        (name, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    ]
    if not places:
        raise ValueError(f"{type(network).__name__} has no MaxPool2d or AvgPool2d to replace")
    channels = _channels_seen(network, example, dict(places))
    for name, pool in places:
        if pool.ceil_mode:
            raise ValueError(
                f"pooling layer {name!r} has ceil_mode=True, which no convolution matches; set it to False"
            )
        if len(channels[pool]) != 1:
            raise ValueError(
                f"pooling layer {name!r} met {sorted(channels[pool]) or 'no'} channels on the example; "
                "it must be used with one number of channels to become a convolution"
            )
    made: dict[nn.Module, nn.Sequential] = {}
    for name, pool in places:
        if pool not in made:
            made[pool] = _convolution(pool, min(channels[pool]), activation).to(example.device, example.dtype)
            made[pool].train(pool.training)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, made[pool])
    return [name for name, _ in places]


def _channels_seen(network: nn.Module, example: Tensor, places: dict[str, nn.Module]) -> dict[nn.Module, set[int]]:
    seen: dict[nn.Module, set[int]] = {module: set() for module in places.values()}
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen[module].add(inputs[0].shape[1])) for module in seen
    ]
    training = {module: module.training for module in network.modules()}
    try:
        # In evaluation mode, so that no running statistic moves and no random number is drawn.
        network.eval()
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return seen


def _convolution(
    pool: nn.MaxPool2d | nn.AvgPool2d, channels: int, activation: Callable[[], nn.Module] | None
) -> nn.Sequential:
    dilation = getattr(pool, "dilation", 1)
    convolution = nn.Conv2d(channels, channels, pool.kernel_size, pool.stride, pool.padding, dilation)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu" if activation else "linear")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, *([activation()] if activation else []))

"""The one place where networks enter timm's registry."""

import sys
from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def preset(
    network: type[nn.Module],
    name: str,
    summary: str,
    *,
    reference: str,
    features: dict[str, Any],
    first_conv: str,
    classifier: str = "head.fc",
    input_size: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    **settings: Any,
) -> Callable[..., nn.Module]:
    """Register `network` with `settings` as `name` in timm and return the function that builds it.

    Args:
        network: Class to build; every keyword of its constructor can be given to the built function, over `settings`.
        name: Name in timm's registry, and of the returned function.
        summary: First line of the function's docstring.
        reference: Paper, as `Authors Year, arXiv:NNNN.NNNNN`.
        features: What `features_only=True` hands to timm's `build_model_with_cfg` as `feature_cfg`.
        first_conv: Dotted path of the convolution that reads the image.
        classifier: Dotted path of the last linear layer.
        input_size: Channels, height and width the network was designed for.
        num_classes: Classes when the caller names none.
        **settings: Constructor arguments that make this variant.
    """

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(network, name, pretrained, feature_cfg=dict(features), **(settings | kwargs))

    module = sys.modules[network.__module__]
    build.__name__ = build.__qualname__ = name
    build.__module__ = network.__module__
    build.__doc__ = f"{summary}\n\nReference: {reference}\n"
    cifar = input_size[-1] == 32
    cfg = {
        "input_size": input_size,
        "num_classes": num_classes,
        "crop_pct": 1.0 if cifar else 0.875,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    } | ({"mean": CIFAR_MEAN, "std": CIFAR_STD} if cifar else {})
    # timm looks for this name in the module of the function it registers.
    vars(module).setdefault("default_cfgs", {}).update(generate_default_cfgs({name: cfg}))
    return register_model(build)

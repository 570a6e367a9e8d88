"""Networks by name: timm's and this project's through one door, with errors a user can act on."""

import re
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.utils import get_session
from timm.models import get_arch_pretrained_cfgs, is_model
from torch import nn

from lightning_vision.catalogue import nearest

__all__ = ["create", "names"]

# What a failed download raises besides OSError, by the package that raises it.
_NETWORK_PACKAGES = {"httpcore", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
# Files of weights in a repository of timm's on the hub, in the order in which timm looks for them.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_PATIENCE = 5.0  # seconds for the hub to answer at all


def names(pattern: str = "*") -> list[str]:
    """List the networks `create` knows, timm's and this project's, in natural order.

    Args:
        pattern: Wildcard as in a shell, for example `resnet*_cifar`.

    >>> names("allcnn_*")
    ['allcnn_a', 'allcnn_b', 'allcnn_c']
    """
    return timm.list_models(pattern)


def create(
    name_or_module: str | nn.Module,
    *,
    num_classes: int,
    in_channels: int,
    pretrained: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    **settings: Any,
) -> nn.Module:
    """Build a network by name, or pass a ready one through.

    Args:
        name_or_module: Any name of timm's (`resnet50`, `resnet50.a1_in1k`, `hf-hub:OWNER/REPO`, `local-dir:FOLDER`),
            one of this project's (`resnet8_cifar`), or a module, which is returned as it is.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_channels: Channels of the image.
        pretrained: Load timm's weights, from the hub's cache on this machine or else from the network.
        drop_rate: Dropout, fraction, where the network has it; handed over only when not 0.
        drop_path_rate: Stochastic depth, fraction; handed over only when not 0.
        features_only: Build a network that returns a list of feature maps, coarser and coarser.
        **settings: Further arguments of the network's constructor, for example `img_size=8`.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: the name is unknown (the nearest ones are listed), the network has no pretrained weights, lacks a
            setting that was given; or something was asked of a ready module that only a
            network built by name can be given.
        ConnectionError: the pretrained weights are not on this machine and could not be fetched; after a few seconds,
            with the address to copy them from.

    Example:
        >>> network = create("resnet8_cifar", num_classes=10, in_channels=1)
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    asked: dict[str, Any] = {
        "pretrained": pretrained,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        "features_only": features_only,
    }
    chosen = {key: value for key, value in asked.items() if value} | settings
    if isinstance(name_or_module, nn.Module):
        return _checked(name_or_module, num_classes, chosen)
    name = name_or_module
    if not isinstance(name, str):
        raise ValueError(f"backbone must be a name or an nn.Module, got {name!r}")
    if ":" not in name:
        _check_name(name, pretrained)
    repository = _repository(name, pretrained)
    if files := _cached(repository):
        # Without asking the hub, which without a network is asked six times; weights with their own loader go by it.
        if ":" not in name and not getattr(timm.get_pretrained_cfg(name), "custom_load", False):
            chosen = {"pretrained_cfg_overlay": {"file": files[0]}} | chosen
    elif repository:
        _ask_hub(name, repository, pretrained)
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **chosen)
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None or unexpected[1] not in chosen:
            raise
        key = unexpected[1]
        raise ValueError(f"backbone {name!r} takes no {key}; leave {key} out or choose another backbone") from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _NETWORK_PACKAGES:
            raise
        raise _unreachable(name, repository, error, pretrained) from error


def _repository(name: str, pretrained: bool) -> str:
    """Where `name` needs something of Hugging Face's hub, `OWNER/REPO`; empty if it does not."""
    if ":" in name:
        return name.removeprefix("hf-hub:").partition("@")[0] if name.startswith("hf-hub:") else ""
    return getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or "" if pretrained else ""


def _cached(repository: str) -> list[str]:
    """The weights of `repository` that an earlier run has fetched."""
    found = [huggingface_hub.try_to_load_from_cache(repository, file) for file in _HUB_FILES if repository]
    return [file for file in found if isinstance(file, str)]


def _ask_hub(name: str, repository: str, pretrained: bool) -> None:
    """Find out once, and soon, whether the hub answers; a download tries for most of a minute and warns all the while.

    Raises:
        ConnectionError: it does not.
    """
    try:
        get_session().head(huggingface_hub.hf_hub_url(repository, _HUB_FILES[0]), timeout=_PATIENCE)
    except Exception as error:  # of whichever package huggingface_hub asks through
        raise _unreachable(name, repository, error, pretrained) from error


def _unreachable(name: str, repository: str, error: Exception, pretrained: bool) -> ConnectionError:
    way_out = "check the name"
    if pretrained:
        copy = f"a copy of {huggingface_hub.hf_hub_url(repository, _HUB_FILES[0])}" if repository else "a local file"
        way_out = f"pass weights=FILE (--model.weights FILE) with {copy}, or pretrained=False"
    return ConnectionError(f"backbone {name!r} could not be fetched ({type(error).__name__}); when offline, {way_out}")


def _checked(module: nn.Module, num_classes: int, chosen: dict[str, Any]) -> nn.Module:
    if chosen:
        raise ValueError(
            f"{', '.join(chosen)} can only be set for a backbone given by name, not for a ready "
            f"{type(module).__name__}; set it when you build the module"
        )
    found = getattr(module, "num_classes", None)
    if isinstance(found, int) and found != num_classes:
        raise ValueError(
            f"the {type(module).__name__} given as backbone has num_classes={found}, but {num_classes} classes are "
            "needed; build it with that number or call its reset_classifier"
        )
    return module


def _check_name(name: str, pretrained: bool) -> None:
    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        raise ValueError(f"unknown backbone {name!r}{nearest(architecture, timm.list_models())}")
    tags = [entry for entry in get_arch_pretrained_cfgs(architecture) if "." in entry]
    if tag and name not in tags:
        known = ", ".join(tags) or "none"
        raise ValueError(f"backbone {architecture!r} has no weights tagged {tag!r}; its tags are: {known}")
    if pretrained and not timm.is_model_pretrained(name):
        raise ValueError(f"no pretrained weights exist for backbone {name!r}; pass pretrained=False")

"""Finding the classifier of a module that somebody else wrote."""

from lightning.pytorch import LightningModule
from torch import nn

from ..hooks._frozen import lies_in, part_name
from ..hooks._live_tensors import plain_name

__all__ = ["classifier_of", "named_parts"]

# As torchvision, and most people, call it.
NAMES = ("fc", "classifier", "head", "heads")


def named_parts(owner: str, pl_module: LightningModule, head: tuple[str, ...]) -> tuple[str, ...]:
    """The parts that a user named, checked.

    Raises:
        ValueError: A name fits no parameter, or the names fit all parameters.
    """
    names = [plain_name(name) for name, _ in pl_module.named_parameters()]
    for part in head:
        if not any(lies_in(name, (part,)) for name in names):
            raise ValueError(
                f"{owner}: head names {part!r}, and no parameter of {type(pl_module).__name__} has a name that begins "
                f"so; {_whereabouts(pl_module)}."
            )
    if all(lies_in(name, head) for name in names):
        raise ValueError(
            f"{owner}: head names all parameters of {type(pl_module).__name__}, so nothing would be frozen; name the "
            "classifier alone, or leave head out to have it found."
        )
    return head


def classifier_of(owner: str, pl_module: LightningModule, argument: str = "head") -> tuple[str, ...]:
    """Names of the parts that make up the one classifier of a module, such as `("network.fc",)`.

    It is what a timm network in the module calls its classifier, or the outermost part outside of those that is called
    `fc`, `classifier`, `head` or `heads`; if there is neither, the last layer with parameters, if that is linear.
    Parts without a trained parameter do not count.

    Raises:
        ValueError: There is none, or more than one.
    """
    found = _of_timm(pl_module) + _by_name(pl_module)
    if not found:
        found = _last_linear(pl_module)
    if len(found) == 1:
        return found[0]
    seen = " and ".join(" + ".join(parts) for parts in found) or "nothing"
    raise ValueError(
        f"{owner}: which part of {type(pl_module).__name__} is its classifier is not clear ({seen} looks like one); "
        f"name it with {argument}=, as in {argument}='network.fc'; {_whereabouts(pl_module)}."
    )


def _of_timm(pl_module: LightningModule) -> list[tuple[str, ...]]:
    found = []
    for name, part in pl_module.named_modules():
        classifier = (getattr(part, "pretrained_cfg", None) or {}).get("classifier") or ()
        names = [classifier] if isinstance(classifier, str) else list(classifier)
        prefix = f"{part_name(name)}." if name else ""
        parts = tuple(f"{prefix}{it}" for it in names if _trains(part, it))
        if parts and parts not in found:
            found.append(parts)
    return found


def _by_name(pl_module: LightningModule) -> list[tuple[str, ...]]:
    networks = tuple(
        part_name(name) for name, part in pl_module.named_modules() if name and hasattr(part, "pretrained_cfg")
    )
    names = [
        part_name(name)
        for name, part in pl_module.named_modules()
        if name.rpartition(".")[2] in NAMES and not lies_in(part_name(name), networks) and _trains(part, "")
    ]
    depth = min((name.count(".") for name in names), default=0)
    return [(name,) for name in names if name.count(".") == depth]


def _last_linear(pl_module: LightningModule) -> list[tuple[str, ...]]:
    layers = [
        (part_name(name), part)
        for name, part in pl_module.named_modules()
        if any(True for _ in part.parameters(recurse=False))
    ]
    return [
        (name,) for name, part in layers[-1:] if len(layers) > 1 and isinstance(part, nn.Linear) and _trains(part, "")
    ]


def _trains(part: nn.Module, name: str) -> bool:
    return any(it.requires_grad for key, it in part.named_parameters() if not name or lies_in(plain_name(key), (name,)))


def _whereabouts(pl_module: LightningModule) -> str:
    return f"the parts of the module are {', '.join(name for name, _ in pl_module.named_children()) or 'none'}"

"""Freezing all of a module but some named parts, and its undo."""

from lightning.pytorch import LightningModule

from ._live_tensors import plain_name

__all__ = ["Frozen", "lies_in", "part_name"]


def lies_in(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a parameter or a part of a module is one of `parts` or lies inside one; names are compared part by part.

    >>> lies_in("network.fc.weight", ("network.fc",)), lies_in("network.fc2.weight", ("network.fc",))
    (True, False)
    """
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def part_name(name: str) -> str:
    """A part's name in its module without the wrappers of `torch.compile`.

    >>> part_name("network._orig_mod"), part_name("network._orig_mod.fc")
    ('network', 'network.fc')
    """
    return plain_name(f"{name}.")[:-1]


class Frozen:
    """A module of which only some parts train; made, it is frozen, until `undo`.

    What was frozen or in evaluation before stays so. A part that contains a trained one keeps its mode, for its forward
    may depend on it (auxiliary outputs, dropout before the head); so does one without parameters that the module holds
    directly, such as a loss, a metric or an augmentation.

    Args:
        module: Which module.
        trained: Names of the parts, or of parameters, that train. A parameter with several names trains if one does.
    """

    def __init__(self, module: LightningModule, trained: tuple[str, ...]) -> None:
        self.module, self.training = module, module.training
        named = list(module.named_parameters(remove_duplicate=False))
        kept = {id(it) for name, it in named if lies_in(plain_name(name), trained)}
        self.parameters = [it for it in module.parameters() if id(it) not in kept and it.requires_grad]
        bare = tuple(name for name, part in module.named_children() if next(part.parameters(), None) is None)
        spared = {
            id(part)
            for name, part in module.named_modules(remove_duplicate=False)
            if not name
            or lies_in(part_name(name), (*trained, *bare))
            or any(it.startswith(f"{part_name(name)}.") for it in trained)
        }
        self.parts = [part for part in module.modules() if id(part) not in spared and part.training]
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            # What is left of earlier steps would be stepped with once more.
            parameter.grad = None
        self.rest()

    def rest(self) -> None:
        """Put the frozen parts into evaluation mode again."""
        for part in self.parts:
            if part.training:
                part.training = False

    def undo(self) -> None:
        """Give parameters and parts back what they had, except that a module under evaluation keeps its parts so."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if self.module.training is not self.training:
            return
        for part in self.parts:
            part.training = True

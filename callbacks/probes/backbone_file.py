"""The backbone of a trained module as a file that another training starts from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from torch import Tensor, nn

from ..hooks._live_tensors import plain_name
from ..hooks.files import Files

__all__ = ["BackboneFile"]


@final
class BackboneFile(Files):
    """Writes the backbone's weights as `backbone.safetensors` into the run's folder when the fit ends.

    Names are the network's own, those of timm for one of timm's, so `ImageClassifier(name, weights=FILE)`, any learner
    with `weights=FILE`, and `timm.create_model(name, checkpoint_path=FILE)` start from it; heads are left out. Weights
    are the last ones, never those of a best validation; where an average of them goes into checkpoints (`EMA`, `SWA`),
    it is in this file, too. The file is exchanged as a whole, so a crash leaves the old one, and holds as text: the
    module's `class`, the `backbone`'s name, `epoch`, `step` and the `preprocessing` of images. Training is untouched.

    Args:
        module: Dotted name of what is written, in the module; None takes `backbone` where there is one, else `network`.
        every_n_epochs: Epochs from one file to the next, which takes its place, >= 1; None writes at the end only.
        filename: Of the file, which ends in `.safetensors`.
        name: Part of the state key.

    Raises:
        ValueError: from the constructor, for a setting out of its range; at set-up, if another callback writes the same
            file; before the first step, if the module has no such part.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import BackboneFile
        >>> trainer = Trainer(callbacks=[BackboneFile(every_n_epochs=10)], accelerator="cpu", logger=False)

    See also:
        `export`, the subcommand that writes a network with its classifier for other runtimes.
    """

    neutral = "a run is untouched under any setting, for it only writes a file"

    def __init__(
        self,
        module: str | None = None,
        every_n_epochs: int | None = None,
        filename: str = "backbone.safetensors",
        name: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, filename=filename, name=name)
        if Path(filename).suffix != ".safetensors" or Path(filename).name != filename:
            raise ValueError(
                f"BackboneFile: filename is {filename!r}; give a name without folders that ends in .safetensors."
            )
        self.module = module

    def admit(self, pl_module: LightningModule) -> None:
        self._found(pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule, tensors: Mapping[str, Tensor], path: Path) -> None:
        prefix, network = self._found(pl_module)
        # Clones, for safetensors refuses tensors that share memory.
        own = {
            name.removeprefix(prefix): it.detach().to("cpu").contiguous().clone()
            for name, it in tensors.items()
            if name.startswith(prefix)
        }
        part = path.with_name(f"{path.name}.part")
        save_file(own, part, metadata=_metadata(trainer, pl_module, network))
        os.replace(part, path)
        rank_zero_info(f"BackboneFile: {path} holds {len(own)} tensors after step {trainer.global_step}")

    def _found(self, pl_module: LightningModule) -> tuple[str, nn.Module]:
        """The prefix of the part's tensors in the module's files, and the part."""
        wanted = ["backbone", "network"] if self.module is None else [self.module]
        for name in wanted:
            part: Any = pl_module
            for word in name.split("."):
                part = getattr(part, word, None)
            # It may be a property, so its place in the module is looked up.
            for place, it in pl_module.named_modules():
                if it is part and place and isinstance(part, nn.Module):
                    return f"{plain_name(place)}.", part
        kind, tried = type(pl_module).__name__, " or ".join(wanted)
        parts = ", ".join(name for name, _ in pl_module.named_children()) or "none"
        raise ValueError(
            f"BackboneFile: {kind} has no part called {tried} with weights of its own, its parts are {parts}; name one "
            "with module=."
        )


def _metadata(trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> dict[str, str]:
    """What the file says of its weights, as text."""
    kind = type(pl_module)
    data: Any = getattr(trainer, "datamodule", None)
    told = getattr(pl_module, "preprocessing", None) or getattr(data, "preprocessing", None)
    named = getattr(network, "pretrained_cfg", None) or {}
    found = {
        "format": "pt",
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "backbone": getattr(pl_module, "hparams", {}).get("backbone") or named.get("architecture"),
        "epoch": str(trainer.current_epoch),
        "step": str(trainer.global_step),
        "preprocessing": json.dumps(dict(told)) if isinstance(told, Mapping) else None,
    }
    return {key: value for key, value in found.items() if isinstance(value, str)}

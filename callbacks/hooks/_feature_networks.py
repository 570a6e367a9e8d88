"""Networks that turn images into rows of numbers by which sets of images are compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.base.weights import module_from_checkpoint, read_weights

from ._metadata import Pixels, as_pixels
from ._teachers import Renormalised, fingerprint, lend, statistics_of

__all__ = ["FeatureNetwork", "inception", "refuse_shared"]


class FeatureNetwork:
    """Features float32 `(B, D)` of normalised images `(B, C, H, W)`, without gradients, in evaluation mode and float32.

    Args:
        owner: Who speaks in a refusal.
        features: None for the pixels themselves; the path of a checkpoint (`*.ckpt`) of a classifier, whose features
            before the last layer count, or of a module with `features(images)`; `inception`; or a network of one's own,
            which is given the images as they are.
        weights: A file, for `inception`.
        normalised: Mean and standard deviation that were taken away from the images, where it is known; a checkpoint
            that was trained with others gets images as it had them.

    Raises:
        ValueError: it cannot be had, or cannot be given such images.
        ModuleNotFoundError: `inception` needs a package that is not installed.
    """

    def __init__(
        self, owner: str, features: nn.Module | str | None, weights: str | None, normalised: Pixels | None
    ) -> None:
        self.owner, self.network = owner, nn.Module()
        self._ask: Callable[[Tensor], Any] = _flat
        self.name, self.fingerprint = "pixels", "pixels"
        if features == "inception":
            self.network, self.name = inception(owner, weights), "Inception v3"
            self._ask = _of_bytes(owner, self.network, normalised)
        elif isinstance(features, nn.Module):
            self.network = self._ask = features
            self.name = type(features).__name__
        elif features is not None:
            self.network, self._ask = _from_file(owner, features, normalised)
            self.name = Path(features).name
        if features is not None:
            self.fingerprint = f"{type(self.network).__name__} {fingerprint(self.network)}"
        self._lent = lend(self.network)

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.network.to(device)

    def give_back(self) -> None:
        """Put modes and device of the network to what they were."""
        self._lent.close()

    def __call__(self, images: Tensor) -> Tensor:
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                found = self._ask(images.float())
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"{self.owner}: the network of the features ({self.name}) does not take images "
                f"{tuple(images.shape[1:])} ({reason}); give one that was made for them."
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(
                f"{self.owner}: the network of the features ({self.name}) answered {got} to {len(images)} images; let "
                "it return one row of numbers an image, (B, D)."
            )
        return found.detach().float()


def refuse_shared(owner: str, features: nn.Module | str | None, pl_module: nn.Module) -> None:
    """Raise a ValueError if the network of the features is, in part, the one that trains."""
    own = {id(it) for it in [*pl_module.parameters(), *pl_module.buffers()]}
    given = features if isinstance(features, nn.Module) else nn.Module()
    if any(id(it) in own for it in [*given.parameters(), *given.buffers()]):
        raise ValueError(
            f"{owner}: the network of the features ({type(given).__name__}) shares weights with "
            f"{type(pl_module).__name__}, so the features would change as it learns; give a copy, as copy.deepcopy "
            "makes it."
        )


def inception(owner: str, weights: str | None) -> nn.Module:
    """The Inception v3 of 2015 by which published values are computed: uint8 `(B, 3, H, W)` to `(B, 2048)`.

    Args:
        owner: Who speaks in a refusal.
        weights: File of torch-fidelity, `weights-inception-2015-12-05-6726825d.pth`; nothing is downloaded.

    Raises:
        ValueError: no file was given, or it is none of such weights.
        ModuleNotFoundError: torch-fidelity is not installed.
    """
    if weights is None:
        raise ValueError(
            f"{owner}: features='inception' downloads nothing; give with weights= the file of torch-fidelity, "
            "weights-inception-2015-12-05-6726825d.pth."
        )
    try:
        import torch_fidelity  # noqa: F401  (torchmetrics imports without it, and has another message)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f'{owner} needs torch-fidelity; pip install "lightning_vision[fid]"') from None
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # torch-fidelity would run code that the file carries; here it is refused.
        read_weights(weights)
        # As published values are computed, without the antialiasing of torchmetrics.
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], weights, antialias=False)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(":. ")
        raise ValueError(
            f"{owner}: weights {weights!r} are none of torch-fidelity's Inception v3 ({reason})."
        ) from error


def _flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def _of_bytes(owner: str, network: nn.Module, normalised: Pixels | None) -> Callable[[Tensor], Any]:
    if normalised is None:
        raise ValueError(
            f"{owner}: Inception v3 takes pixels, and neither datamodule nor module say how images were normalised; "
            "give the datamodule `mean` and `std`."
        )

    def ask(images: Tensor) -> Any:
        return network(as_pixels(images, normalised).expand(-1, 3, -1, -1))

    return ask


def _from_file(owner: str, path: str, normalised: Pixels | None) -> tuple[nn.Module, Callable[[Tensor], Any]]:
    """The module of a checkpoint, and what gives its features."""
    if Path(path).suffix != ".ckpt":
        raise ValueError(
            f"{owner}: features is {path!r}; give a checkpoint's path (*.ckpt), 'inception', a network, or None for "
            "the pixels themselves."
        )
    try:
        module = module_from_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{owner}: features {path!r}: {str(error).rstrip('.')}.") from error
    ask = _features_of(module)
    if ask is None:
        raise ValueError(
            f"{owner}: {path} holds a {type(module).__name__}, which has neither features(images) nor a network with "
            "forward_features and forward_head; give a classifier or a learner."
        )
    wanted = statistics_of(module)
    if normalised is None or wanted is None or normalised == wanted or len(normalised[0]) != len(wanted[0]):
        return module, ask
    renormalised = Renormalised(normalised, wanted)
    return module, lambda images: ask(renormalised(images))


def _features_of(module: nn.Module) -> Callable[[Tensor], Any] | None:
    own = getattr(module, "features", None)
    if callable(own) and not isinstance(own, nn.Module):
        return own
    for part in module.modules():
        if hasattr(part, "forward_features") and hasattr(part, "forward_head"):
            timms: Any = part
            return lambda images: timms.forward_head(timms.forward_features(images), pre_logits=True)
    return None

"""What is kept of activations for the backward pass, in fewer bytes.

Around a few functions, and only while they run, torch's saved-tensor hooks are set: so it is known which function keeps
a tensor and for what, and everything that others keep stays torch's own affair, its checks of changes in place
included. A tensor in the storage of a parameter or a buffer is never packed.
"""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any, Self

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

__all__ = ["Coded", "HeldActivations", "Top"]

# What each function is to the paper; `attention` computes several products in one.
KINDS: dict[Callable[..., Any], str] = {
    F.gelu: "gelu",
    F.layer_norm: "layer norm",
    torch.layer_norm: "layer norm",
    torch.matmul: "product",
    torch.bmm: "product",
    Tensor.matmul: "product",
    Tensor.__matmul__: "product",
    Tensor.bmm: "product",
    F.scaled_dot_product_attention: "attention",
    F.multi_head_attention_forward: "attention",
    F.softmax: "softmax",
    torch.softmax: "softmax",
    Tensor.softmax: "softmax",
}


class Coded:
    """A tensor in whole numbers of a few bits, each row of the last axis with a scale of its own.

    A row x becomes round(x / s), with s = max |x| / (2 ** (bits - 1) - 1), so the error is at most s / 2.

    Args:
        tensor: Floating, `(..., N)`, at least two axes.
        bits: 8, or 4, which are stored two in a byte.
    """

    def __init__(self, tensor: Tensor, bits: int) -> None:
        self.shape, self.bits, self.limit = tensor.shape, bits, 2 ** (bits - 1) - 1
        wide = tensor.detach().float()
        scale = (wide.abs().amax(dim=-1, keepdim=True) / self.limit).to(tensor.dtype)
        self.scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        codes = (wide / self.scale).round_().clamp_(-self.limit, self.limit).add_(self.limit).to(torch.uint8)
        if bits == 4:
            codes = F.pad(codes.flatten(), (0, codes.numel() % 2))
            codes = codes[::2] * 16 + codes[1::2]
        self.codes = codes

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.codes.nbytes + self.scale.nbytes

    def read(self) -> Tensor:
        """The tensor, rounded, in its own type."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes // 16, codes % 16), dim=1).flatten()[: self.shape.numel()].reshape(self.shape)
        return (codes.float() - self.limit).mul_(self.scale).to(self.scale.dtype)


class Top:
    """A tensor's largest entries along an axis; the others are read as zero.

    Args:
        tensor: Floating, of any shape; not negative, as what softmax gives.
        keep: Share of the entries along the axis, in (0, 1); rounded up.
        dim: The axis.
    """

    def __init__(self, tensor: Tensor, keep: float, dim: int) -> None:
        self.shape, self.dim, size = tensor.shape, dim, tensor.shape[dim]
        self.values, places = tensor.detach().topk(ceil(keep * size), dim=dim, sorted=False)
        narrow = torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32
        self.places = places.to(narrow)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.values.nbytes + self.places.nbytes

    def read(self) -> Tensor:
        """The tensor with zeros where nothing was kept."""
        return self.values.new_zeros(self.shape).scatter_(self.dim, self.places.long(), self.values)


class HeldActivations(TorchFunctionMode):
    """While it is entered, what some functions keep for their backward pass is packed; it counts the bytes.

    Packed in `bits` are the inputs of GELU, layer norm and matrix products that are no parameters; of a softmax the top
    `keep` of each row, also where a product keeps the same tensor. What is kept twice is packed and counted once.

    Args:
        owner: Who speaks in a refusal.
        module: Whose parameters and buffers are left alone.
        bits: 4 or 8; None leaves all but softmax alone.
        keep: In (0, 1]; 1 leaves softmax to torch, and where a product keeps it, to `bits`.

    Raises:
        ValueError: when it is left for the first time, if no function was called for which it was made.
    """

    def __init__(self, owner: str, module: nn.Module, bits: int | None, keep: float) -> None:
        super().__init__()
        self.owner, self.module, self.bits, self.keep = owner, module, bits, keep
        self.seen = set[str]()  # kinds of functions that were called
        self.plain_bytes = self.held_bytes = 0  # of what was packed since it was entered
        self._checked = False
        self._own = set[int]()
        self._packed: dict[tuple[Any, ...], tuple[StorageWeakRef, Coded | Top]] = {}

    def __enter__(self) -> Self:
        self.plain_bytes = self.held_bytes = 0
        tensors = (*self.module.parameters(), *self.module.buffers())
        self._own = {StorageWeakRef(it.untyped_storage()).cdata for it in tensors}
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._packed.clear()
        if reason[0] is None and not self._checked:
            self._checked = True
            self._check()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = KINDS.get(func)
        if kind is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        self.seen.add(kind)
        pack: Callable[[Tensor], Any] = partial(self._pack, kind, args[0].shape)
        if kind == "softmax":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if self.keep == 1.0 or dim is None:
                return func(*args, **kwargs)
            pack = partial(self._pack_softmax, dim)
        with saved_tensors_hooks(pack, _unpack):
            return func(*args, **kwargs)

    def _check(self) -> None:
        if self.bits is not None and not self.seen - {"softmax"}:
            raise ValueError(
                f"{self.owner}: training_step called no GELU, layer norm or matrix product, whose inputs were to be "
                f"held in {self.bits} bits; leave activation_bits None, or train a transformer."
            )
        if self.keep < 1.0 and "softmax" not in self.seen:
            raise ValueError(
                f"{self.owner}: training_step called no softmax of which the top {self.keep} could be held, and fused "
                "attention holds none; leave softmax_keep 1, or call timm.layers.set_fused_attn(False) before the "
                "network is made."
            )
        rank_zero_info(
            f"{self.owner}: of the activations of the first step {self.plain_bytes / 1e6:.3g} MB are held in "
            f"{self.held_bytes / 1e6:.3g} MB."
        )

    def _pack_softmax(self, dim: int, tensor: Tensor) -> Any:
        return self._once(tensor, lambda: Top(tensor, self.keep, dim % tensor.ndim))

    def _pack(self, kind: str, shape: torch.Size, tensor: Tensor) -> Any:
        own = StorageWeakRef(tensor.untyped_storage()).cdata in self._own
        if own or not tensor.is_floating_point() or tensor.ndim < 2:
            return _Whole(tensor), tensor.shape
        # Statistics of a layer norm and the like have other shapes than what they are of.
        if (kind in ("gelu", "layer norm") and tensor.shape != shape) or (kind == "attention" and tensor.ndim != 4):
            return _Whole(tensor), tensor.shape
        return self._once(tensor, None if self.bits is None else partial(Coded, tensor, self.bits))

    def _once(self, tensor: Tensor, make: Callable[[], Coded | Top] | None) -> Any:
        """The tensor's packed form, which it may have already; itself, if it has none and none is to be made.

        A storage is known by a reference that keeps its address from being used again, and by the version of what is
        in it.
        """
        storage = StorageWeakRef(tensor.untyped_storage())
        layout: tuple[Any, ...] = (tensor.numel(),)
        if not tensor.is_contiguous():
            layout = (tensor.shape, tensor.stride())
        key = (storage.cdata, tensor.storage_offset(), tensor._version, tensor.dtype, *layout)
        if key not in self._packed:
            if make is None:
                return _Whole(tensor), tensor.shape
            packed = make()
            self.plain_bytes += tensor.nbytes
            self.held_bytes += packed.nbytes
            self._packed[key] = storage, packed
        return self._packed[key][1], tensor.shape


class _Whole:
    """A tensor as it is, which must not change until it is read: torch checks that only where no hooks are set."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version

    def read(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that the backward pass needs was changed in place."
            )
        return self.tensor


def _unpack(kept: tuple[Coded | Top | _Whole, torch.Size]) -> Tensor:
    packed, shape = kept
    return packed.read().reshape(shape)

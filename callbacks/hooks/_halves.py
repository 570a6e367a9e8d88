"""A batch that is trained on as it was and mixed at once: two halves, whose losses are computed apart and then added.

A mean or a sum over samples is computed of each half by itself, c of the first and m of the second, and stays two
numbers while it is multiplied or divided, so that a mean over class weights is one of each half. Whatever else is done
with it is done with c + eta m, and so is backward. What may be a number of both halves, of which nobody knows the share
of each, is refused beside values of halves that train. A number without gradient is that of the first half, the images
as they were, where it does not grow with their number, and of both where it does. Letters: 2B samples, eta `weight`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch import Tensor, equal, nn
from torchmetrics import Metric

from ._around import Around

if TYPE_CHECKING:
    from ._mixed_labels import MixedTensor, Mixture

__all__ = ["Halves", "by_halves", "clean_half_counts", "halves_of"]

_TIMES = {"mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_"}
_OVER = {"div", "divide", "true_divide", "__truediv__", "__div__", "__itruediv__", "__idiv__", "div_"}
# Of c and m alike, as of c + eta m.
_LINEAR = _TIMES | _OVER | {"neg", "__neg__", "sum", "mean", "to", "type", "float", "double", "half", "bfloat16"}
_LINEAR |= {"clone", "contiguous", "view", "reshape", "flatten", "squeeze", "unsqueeze"}


@dataclass
class Halves:
    """A value of each half.

    Args:
        first: Of the images as they were.
        second: Of the mixed images, mixed already.
        weight: eta.
        counted: Numbers that a sum over samples of both halves would be divided by to be a mean; empty where the value
            does not grow with the number of samples.
        whole: Whether a tensor went into it that is of no half.
    """

    first: Tensor
    second: Tensor
    weight: float
    counted: frozenset[int] = frozenset()
    whole: bool = False

    @property
    def value(self) -> Tensor:
        """first + eta second."""
        return self.first + self.weight * self.second

    @property
    def requires_grad(self) -> bool:
        return self.first.requires_grad or self.second.requires_grad


def by_halves(
    reduced: Callable[[slice], Tensor], mixture: "Mixture", grows: bool, elements: int = 0
) -> Tensor | Halves:
    """What a function of the samples in a slice is of all of them, or of each half where the batch has two.

    Args:
        reduced: The function; its slice is of the samples.
        mixture: Of the batch.
        grows: Whether it grows with the number of samples, as a sum does.
        elements: Of what is reduced, in both halves.
    """
    if mixture.beside is None:
        return reduced(slice(None))
    half = mixture.size // 2
    counted = frozenset({mixture.size, elements}) - {0} if grows else frozenset[int]()
    return Halves(reduced(slice(half)), reduced(slice(half, None)), mixture.beside, counted)


def halves_of(
    name: str, args: Sequence[Any], found: "Sequence[MixedTensor]", run: Callable[[Callable[[Any], Any]], Any]
) -> Any:
    """What a function makes of values of halves among its arguments.

    Args:
        name: Of the function.
        args: Its arguments by position.
        found: All mixed ones.
        run: Computes it; takes what to put in the place of a mixed argument.
    """
    halves = [it.twin for it in found if isinstance(it.twin, Halves)]
    trained = [it for it in found if it.own.requires_grad]
    one = len(trained) == 1 and (trained[0] is args[0] or name in _TIMES)
    trains = any(it.requires_grad for it in halves)
    if trains and not (name in _LINEAR and one):
        return run(_added)
    counted = frozenset[int]().union(*(it.counted for it in halves))
    plain = [it for it in args if isinstance(it, Tensor) and not hasattr(it, "twin")]
    whole = bool(plain) or any(it.whole for it in halves)
    if trains:
        _refuse_of_both(name, args, plain, halves, found[0].mixture)
    first, second = run(_of_first), run(_of_second)
    if not trained and getattr(first, "requires_grad", False):
        raise found[0].mixture.refusal(
            f"{name} puts sums over labels beside a tensor that may be of plain and mixed images together"
        )
    divisor = getattr(args[1], "twin", None) if name in _OVER and len(args) > 1 else None
    if isinstance(divisor, Halves) and divisor.counted:
        counted = frozenset()
    weight = halves[0].weight
    if not trained and _by_number_of_samples(name, args, counted):
        return Halves(2 * first, 2 * second, weight)
    if not isinstance(first, (tuple, list)):
        return Halves(first, second, weight, counted, whole)
    return [Halves(left, right, weight, counted, whole) for left, right in zip(first, second, strict=True)]


def _refuse_of_both(
    name: str, args: Sequence[Any], plain: Sequence[Tensor], halves: Sequence[Halves], mixture: "Mixture"
) -> None:
    """Refuse to scale what halves cost by what may be of both of them."""
    grows = any(it.requires_grad and it.counted for it in halves)
    if name in _OVER | _TIMES and grows and (mixture.left_torch or _may_count(name, args)):
        raise mixture.refusal(
            "this loss scales a sum over the samples by a number, which for plain and mixed images apart may be another"
        )
    if any(it.whole for it in halves) or (plain and (name in _OVER or (name in _TIMES and grows))):
        raise mixture.refusal(
            "this loss scales what its samples cost by a tensor, which may be of plain and mixed images together"
        )


def _may_count(name: str, args: Sequence[Any]) -> bool:
    """Whether a number among the arguments may be how many samples there are, of which there are at least four."""
    numbers = [abs(it) for it in args if isinstance(it, (int, float))]
    return any(it > 2 if name in _OVER else it < 0.5 for it in numbers)


def _by_number_of_samples(name: str, args: Sequence[Any], counted: frozenset[int]) -> bool:
    """Whether a sum over samples is divided by how many there are."""
    numbers = [it for it in args if isinstance(it, (int, float))]
    numbers += [it.item() for it in args if type(it) is Tensor and it.ndim == 0 and it.device.type == "cpu"]
    by = {1 / it for it in numbers if it} if name in _TIMES else set(numbers) if name in _OVER else set()
    return any(abs(number - count) < 1e-4 * count for number in by for count in counted)


def _of_first(mixed: "MixedTensor") -> Any:
    return mixed.twin.first if isinstance(mixed.twin, Halves) else mixed.twin


def _of_second(mixed: "MixedTensor") -> Any:
    return mixed.twin.second if isinstance(mixed.twin, Halves) else mixed.twin


def _added(mixed: "MixedTensor") -> Any:
    if not isinstance(mixed.twin, Halves):
        return mixed.twin
    return mixed.twin.value if mixed.twin.requires_grad else mixed.own


@contextmanager
def clean_half_counts(
    pl_module: LightningModule, metrics: Sequence[Metric], mixture: "Mixture", warn: Callable[[str], None]
) -> Iterator[None]:
    """Inside, torchmetrics count the images as they were; of another number that is logged of both halves, `warn`.

    Args:
        pl_module: Whose `log` is listened to.
        metrics: Those that are to count the first half.
        mixture: Of the batch.
        warn: Is told the name of the number.
    """
    half = mixture.size // 2

    def cut(value: Any) -> Any:
        plain = value.own if hasattr(value, "mixture") else value
        rows = isinstance(plain, Tensor) and plain.ndim > 0 and len(plain) == mixture.size
        return plain[:half] if rows else value

    def update(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return proceed(*map(cut, args), **{key: cut(value) for key, value in kwargs.items()})

    def log(proceed: Callable[..., Any], name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        twin = getattr(value, "twin", None)
        of_both = twin.counted if isinstance(twin, Halves) else twin is not None and not equal(value.own, twin)
        if of_both and not value.own.requires_grad:
            warn(name)
        return proceed(name, value, *args, **kwargs)

    with ExitStack() as stack:
        stack.callback(Around(pl_module, "log", log).undo)
        for metric in metrics:
            stack.callback(Around(metric, "update", update).undo)
        yield


def metrics_of(module: nn.Module) -> list[Metric]:
    """The torchmetrics of a module that count batches themselves, not by others."""
    return [part for part in module.modules() if isinstance(part, Metric)]

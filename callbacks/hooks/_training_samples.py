"""Which samples of the training set each batch of a fit holds, and which of them an epoch visits at all.

Lightning has no hook between making a fit's loader and measuring it, and takes the length of an epoch once for all. So
`FitLoop.setup_data`, which runs before every epoch, is acted around, and what it derived from the loader's length is
put right, each with a test in `tests/callbacks/hooks/test_training_samples.py` that fails when Lightning changes:

- `fit_loop.max_batches` and `val_check_batch`, by which it knows where an epoch and a stretch between validations end;
- the fetcher's `length`, which it reads again only when it makes a new iterator.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, arange
from torch.utils.data import BatchSampler, DataLoader, Sampler

from ._around import Around
from ._replay import read_streams, rewind
from ._visits import OwnReader, PlainReader, Visit

__all__ = ["TrainingSamples"]


class TrainingSamples:
    """Knows the samples of a fit's training batches by their positions, and says which ones an epoch visits.

    It works with a torch DataLoader over a dataset that has a length, and with loaders of one's own that have a
    `dataset`, a `batch_size`, `visit(positions, ordered)` and `here`, the positions of the batch handed out last, as
    those of this project have.

    Args:
        owner: Who speaks in a refusal.
        trainer: Before its loaders are made, in `setup`: `trainer.estimated_stepping_batches` makes them early.
        plan: Asked before each epoch once `decides` is set, on all ranks, with its number and the samples of the
            training set; None of a `Visit` leaves the epoch alone. Without a plan nothing changes, and batches are only
            told apart.

    Raises:
        ValueError: when the loader is made, if it is none of these.
    """

    def __init__(self, owner: str, trainer: Trainer, plan: Callable[[int, int], Visit | None] | None = None) -> None:
        self.owner, self.trainer, self.plan = owner, trainer, plan
        # Of the training set, and of a full batch on all ranks together; known when the loader is made.
        self.samples = self.batch_size = 0
        # Of an epoch that visits all, on this rank.
        self.batches: int | float = 0
        self._loader: Any = None
        self._reader: PlainReader | OwnReader | None = None
        # Optimizers that ask for the number of steps are made before there is anything to decide by.
        self.decides = False
        self._visits = False
        self._loading = self._taken = False
        self._arounds = [
            Around(trainer.fit_loop, "setup_data", self._set_up),
            Around(trainer.strategy, "process_dataloader", self._process),
        ]

    def undo(self) -> None:
        """Give the loader its own order back and leave it alone; twice does nothing."""
        for around in self._arounds:
            around.undo()
        if self._reader is not None:
            self._reader.leave()
        self._loader = self._reader = None

    def here(self) -> Tensor:
        """Positions of the samples in the batch that was fetched last, int64 `(B,)` on the CPU."""
        assert self._reader is not None
        return self._reader.here()

    def refuse_unchoosable(self) -> None:
        """Refuse a loader whose epochs cannot be of some samples, once it is made and before one is.

        Raises:
            ValueError: it gives samples more than once, or not all of them.
        """
        self._tell(Visit(arange(self.samples)))
        self._tell(None)

    def _set_up(self, proceed: Callable[[], None]) -> None:
        self._loading, self._taken = True, False
        try:
            proceed()
        finally:
            self._loading = False
        if self._taken:
            self.batches = self.trainer.fit_loop.max_batches
        if self._reader is None or self.plan is None or not self.decides:
            return
        visit = self.plan(self.trainer.current_epoch, self.samples)
        if visit is not None or self._visits:
            self._apply(visit)

    def _process(self, proceed: Callable[[Any], Any], loader: Any) -> Any:
        loader = proceed(loader)
        if self._loading:
            self._take(loader)
        return loader

    def _take(self, loader: Any) -> None:
        if self._taken:
            raise ValueError(
                f"{self.owner}: the fit has several training loaders, whose samples cannot be told apart; train with "
                "one loader."
            )
        self._taken = True
        if self._reader is not None:
            # A new loader each epoch (`reload_dataloaders_every_n_epochs`) comes in the place of the last.
            self._reader.leave()
        plain = isinstance(loader, DataLoader)
        try:
            self.samples = len(loader.dataset)
        except (AttributeError, TypeError):
            raise self._refusal(loader, "has no dataset of a known length") from None
        if not plain and not (hasattr(loader, "visit") and hasattr(loader, "here")):
            raise self._refusal(loader, "does not tell which samples it hands out")
        if plain and not (
            type(loader.batch_sampler) is BatchSampler and isinstance(loader.batch_sampler.sampler, Sampler)
        ):
            raise self._refusal(loader, "makes its batches in a way of its own")
        self.batch_size = (loader.batch_size or 1) * self.trainer.world_size
        self._reader = PlainReader(loader, self.trainer.fit_loop) if plain else OwnReader(loader)
        self._loader, self._visits = loader, False

    def _refusal(self, loader: Any, why: str) -> ValueError:
        return ValueError(
            f"{self.owner}: the training loader ({type(loader).__name__}) {why}, so samples cannot be told apart; give "
            "a torch DataLoader over a dataset with a length, made with batch_size= and without a batch_sampler=, or a "
            "datamodule of this project."
        )

    def _tell(self, visit: Visit | None) -> None:
        assert self._reader is not None
        try:
            self._reader.visit(visit)
        except ValueError as error:
            raise ValueError(f"{self.owner}: {error}.") from error

    def _apply(self, visit: Visit | None) -> None:
        trainer, loop = self.trainer, self.trainer.fit_loop
        assert loop._data_fetcher is not None and loop._combined_loader is not None
        self._tell(visit)
        self._visits = visit is not None
        if visit is not None and isinstance(self._loader, DataLoader) and self._loader.num_workers:
            # Workers have been sent for samples already, in an order of all.
            streams = read_streams(trainer.strategy.root_device)
            iter(loop._data_fetcher)
            rewind(streams)
        else:
            loop._data_fetcher.reset()
        assert isinstance(loop._combined_loader, CombinedLoader)
        batches = loop._data_fetcher.length
        assert batches is not None
        loop.max_batches = batches
        interval = trainer.val_check_interval
        if trainer.val_check_batch in (None, float("inf")) or trainer.check_val_every_n_epoch is None:
            return
        trainer.val_check_batch = (
            min(interval, batches) if isinstance(interval, int) else max(1, int(batches * interval))
        )

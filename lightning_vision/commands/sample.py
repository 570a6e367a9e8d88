"""Make images with a trained module, one file each."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.commands._report import print_table, require
from lightning_vision.commands._sample_files import GRID, SampleFolder, SampleWriter
from lightning_vision.generation.generator import ImageGenerator


def run(
    cli: Any,
    ckpt_path: str | None = None,
    num: int = 64,
    label: int | list[int] | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    batch_size: int = 64,
    out: str = "samples",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make images: `000000.png` and so on in a folder, and `grid.png` of the first hundred.

    An image follows from the checkpoint, the seed and its own number, whatever the batch size and the number of
    processes, in full precision unless --trainer.precision asks for another. What an earlier command with the same
    settings has made in the folder is kept and not made again.

    Args:
        ckpt_path: Checkpoint whose weights make them; with `EMA` in its training these are the average.
        num: Images, at least 1.
        label: Class of all, or classes that the images take in turn; without it all classes in turn.
        seed: Fixes all that is random, at least 0.
        steps: Of the sampler, in place of the module's own.
        guidance: How much labels are exaggerated, in place of the module's own; 0 follows them as they were learned.
        sampler: In place of the module's own.
        batch_size: Images that one process makes at a time.
        out: Folder for the files.
        overwrite: Write into a folder that holds other files; images of an earlier command are removed, others kept.

    Returns:
        `folder` and `grid`, paths; `count`, the images that were asked for, and `made`, those made by this command.

    Raises:
        ValueError: the module makes no images, or an option is out of its range.
        FileExistsError: the folder holds other files, and `overwrite` is off.
    """
    require(cli, "model")
    model = cli.model
    if not isinstance(model, ImageGenerator):
        raise ValueError(f"{type(model).__name__} makes no images; give a checkpoint of a generation run")
    if ckpt_path is None:
        raise ValueError("sample needs --ckpt_path, the checkpoint whose weights make the images")
    for name, count, least in (("num", num, 1), ("seed", seed, 0), ("batch_size", batch_size, 1)):
        if count < least:
            raise ValueError(f"--{name} {count}: give at least {least}")
    _set(model, steps=steps, guidance=guidance, sampler=sampler)
    classes = [label] if isinstance(label, int) else label
    if classes == []:
        raise ValueError("--label is an empty list; give classes, or leave it out")
    labels = model.labels_of(None if classes is None else [classes[it % len(classes)] for it in range(num)], range(num))
    if not any(word.startswith("--trainer.precision") for word in cli.words):
        # A run's mixed precision is for training: rounded to bfloat16, an image would depend on those beside it.
        cli.trainer.strategy.precision_plugin = Precision()
    settings = {"seed": seed, "label": classes, "precision": str(cli.trainer.precision), **model.sampling()}
    folder = SampleFolder.open(Path(out).absolute(), Path(ckpt_path), settings, num, overwrite)
    orders = _Orders(folder, num, labels, seed, batch_size)
    if cli.run_dir is None:  # nobody asked for logs, and there is nothing to log
        cli.trainer.loggers = []
        cli.trainer.callbacks = [item for item in cli.trainer.callbacks if not isinstance(item, SaveConfigCallback)]
    cli.trainer.callbacks.append(SampleWriter(folder))
    if cli.trainer.world_size > 1 or folder.missing(num):
        cli.trainer.predict(model, orders, ckpt_path=ckpt_path, weights_only=True, return_predictions=False)
    if cli.trainer.is_global_zero:
        if left := folder.missing(num):
            raise ValueError(f"{len(left)} of {num} images are not made; leave --trainer.limit_predict_batches out")
        folder.draw(num)
        rows = {"images": f"{num} ({orders.made} made now)", "folder": str(folder.path), "grid": GRID}
        print_table("sampled", {**rows, "weights": _weights(cli.checkpoint), **_spent(model), "seed": str(seed)})
    return {"folder": str(folder.path), "grid": str(folder.path / GRID), "count": num, "made": orders.made}


def _set(model: ImageGenerator, **settings: Any) -> None:
    """Put what was asked for in the place of the module's own settings.

    Raises:
        ValueError: the module has no such setting, or cannot sample with it.
    """
    told = {name: value for name, value in settings.items() if value is not None}
    if told.get("sampler") not in (None, getattr(model, "sampler", None)):
        told["sampler_settings"] = {}  # they were another sampler's
    for name, value in told.items():
        if not hasattr(model, name):
            raise ValueError(f"--{name} {value}: {type(model).__name__} has no {name}; leave it out")
        setattr(model, name, value)
    model.check_sampling()


class _Orders(LightningDataModule):
    """What images are to be made, dealt out to the processes.

    Args:
        folder: Which of them are there already, as the first process sees it.
        num: How many are wanted.
        labels: Of each, None where the module reads none.
        seed: Of all.
        batch_size: Of each process.
    """

    def __init__(self, folder: SampleFolder, num: int, labels: Tensor | None, seed: int, batch_size: int) -> None:
        super().__init__()
        self.folder, self.num, self.labels, self.seed, self.batch_size = folder, num, labels, seed, batch_size
        self.made = 0

    def predict_dataloader(self) -> DataLoader[dict[str, int]]:
        assert self.trainer is not None
        # Only now all processes are there, and while one looks another may write.
        missing = self.trainer.strategy.broadcast(self.folder.missing(self.num))
        self.made = len(missing)
        orders = [{"number": number, "seed": self.seed} for number in missing]
        if self.labels is not None:
            orders = [order | {"label": int(self.labels[order["number"]])} for order in orders]
        dataset: Any = orders
        return DataLoader(dataset, batch_size=self.batch_size)


def _weights(checkpoint: dict[str, Any]) -> str:
    """Whether the weights of a checkpoint are an average, and of how many updates."""
    for key, state in checkpoint.get("callbacks", {}).items():
        if isinstance(state, dict) and "average" in state and state.get("updates"):
            return f"{key.partition('{')[0]}, an average after {state['updates']} updates"
    return "as they were trained, no average"


def _spent(model: ImageGenerator) -> dict[str, str]:
    calls = getattr(model, "network_calls", None)
    return {} if calls is None else {"network calls": f"{calls} an image"}

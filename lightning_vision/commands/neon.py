"""Extrapolate a checkpoint away from what training on its own samples made of it."""

from pathlib import Path
from typing import Any, Literal

from lightning_vision.base.weights import load_checkpoint
from lightning_vision.commands._files import output_folder
from lightning_vision.commands._merging import (
    Judge,
    average_in,
    module_of,
    monitored,
    moving_statistics,
    refuse_other_images,
    write_merged,
)
from lightning_vision.commands._report import print_table, require_one_process
from lightning_vision.merging.neon import neon_merge

CKPT = "neon.ckpt"


def run(
    cli: Any,
    base: str,
    self_trained: str,
    w: list[float] | float,
    monitor: str | None = None,
    mode: Literal["min", "max"] | None = None,
    kept: list[str] | str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write (1 + w) BASE - w SELF_TRAINED, with data for the best of several w.

    Args:
        base: Checkpoint of the model.
        self_trained: Checkpoint of the same model after a short fine-tuning on samples of its own.
        w: Merge weight; several, as `[0.5,1,1.5]`, are compared on the validation split.
        monitor: Metric of the validation split that decides; what the checkpoints were chosen by if not given.
        mode: Whether a large or a small metric is good; as the checkpoints have it if not given, else `min` for a loss.
        kept: Shell patterns of names that stay the base's, as `'["*running_*"]'`.
        output: Folder for `neon.ckpt`, the base's own if not given.
        overwrite: Replace the file of an earlier merge.

    Returns:
        `checkpoint`, the path written; `w`, the weight in it; `scores`, with data the metrics of each w, 0 and -1
        being the two checkpoints.

    Raises:
        ValueError: the checkpoints are of different architectures, classes or preparations, a pattern matches nothing,
            several w without data, no validation split, no such metric, or several processes.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: a file exists and `overwrite` is off.
    """
    require_one_process(cli, "neon")
    tried = [w] if isinstance(w, float | int) else list(w)
    if not tried:
        raise ValueError("--w [] names no weight; give a number, or several as [0.5,1]")
    paths = [base, self_trained]
    contents = [load_checkpoint(path) for path in paths]
    states = [content["state_dict"] for content in contents]
    patterns = [kept] if isinstance(kept, str) else list(kept or [])
    neon_merge(states[0], states[1], w=0, kept=patterns, labels=paths)
    refuse_other_images(paths, contents)
    moving = moving_statistics(states) if cli.datamodule is not None else []
    folder = output_folder(cli, output or str(Path(base).parent), (CKPT,), overwrite)
    extrapolated = {it for it in tried if it not in (0, -1)}
    merged = {
        it: neon_merge(
            states[0], states[1], w=it, kept=[*patterns, *(moving if it in extrapolated else [])], labels=paths
        )
        for it in tried
    }
    scores: dict[float, dict[str, float]] = {}
    best = tried[0]
    if cli.datamodule is not None:
        monitor, mode = monitored(contents, monitor, mode)
        judge = Judge(cli, module_of(cli, base), monitor, moving)
        merged = {it: judge.settled(state) if it in extrapolated else state for it, state in merged.items()}
        rivals = {0.0: states[0], -1.0: states[1], **merged}
        scores = {it: judge.metrics(rivals[it]) for it in sorted(rivals)}
        order = max if mode == "max" else min
        best = order(tried, key=lambda it: scores[it][monitor])
        said = {0.0: "  base", -1.0: "  self-trained"}
        print_table(f"{monitor} by w", {f"{it:g}": f"{scores[it][monitor]:.4f}{said.get(it, '')}" for it in scores})
        if order(scores, key=lambda it: scores[it][monitor]) not in tried:
            print("  no w is better than what there was; the file holds the best of those asked for")
    elif len(tried) > 1:
        raise ValueError(f"--w {tried}: several are compared on data; add --config NAME or --data CLASS, or give one")
    averages = [average_in(content) for content in contents]
    if (averages[0] is None) != (averages[1] is None):
        print(
            "  one checkpoint holds an average of the weights and the other trained ones; better merge like with like"
        )
    write_merged(contents[0], merged[best], {"w": best, "base": base, "self_trained": self_trained}, folder / CKPT)
    print_table("written", {"checkpoint": str(folder / CKPT), "w": f"{best:g}"})
    return {"checkpoint": str(folder / CKPT), "w": best, "scores": scores}

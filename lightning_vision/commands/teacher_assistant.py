"""Train a teacher, assistants of falling size and a student, each taught by the one before, and compare the ways."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_vision import console
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks.hooks._table import table_text, write_table
from lightning_vision.commands._folders import prepare_folder
from lightning_vision.commands._merging import hushed
from lightning_vision.commands._parsing import spell_out
from lightning_vision.commands._report import print_table, require, require_one_process
from lightning_vision.commands._trial import trial_trainer
from lightning_vision.configs import find_config, read_config

CSV, MARK, ENTRY = "teacher_assistant.csv", "stage.json", "teacher_assistant"

Way = tuple[str, ...]  # networks, each taught by the one before


def run(
    cli: Any,
    chain: list[str] | str,
    paths: list[list[str]] | None = None,
    alpha: float = 0.5,
    temperature: float = 5.0,
    epochs: list[int] | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Distil along a chain of networks (Mirzadeh et al. 2019) and tell what each way to the student reaches.

    Each network is trained by a `fit` of the given config, in a folder of its own; all but the first of a way learn
    from the best checkpoint of the one before, by alpha CE + (1 - alpha) T^2 KL. Trainings that two ways share are made
    once. A command that was interrupted goes on where it was when it is run again, inside a training from its last
    checkpoint.

    Args:
        chain: From teacher to student: names of backbones, or configs (`*.yaml`) that change the model; the first may
            be a checkpoint (`*.ckpt`) of a teacher that is trained. Two are plain distillation without an assistant.
        paths: Further ways, each a list of entries of the chain; from teacher to student directly and the student alone
            if not given.
        alpha: Share of the labels' loss in the taught networks' loss, from 0 to 1.
        temperature: T, above 0; 1 softens nothing.
        epochs: Of each entry of the chain; the config's if not given.
        output: Folder of all that is written; the trainer's `default_root_dir` if not given.
        overwrite: Train anew what an earlier command with other settings has left there.

    Returns:
        `student`, the checkpoint at the end of the chain; `table`, the path of the CSV; `rows`, what is in it.

    Raises:
        ValueError: an option is out of its range, a way has an entry that is not in the chain, no model or data,
            several processes, or the folder holds a training with other settings.
    """
    require(cli, "model", "data")
    require_one_process(cli, ENTRY)
    chain = [chain] if isinstance(chain, str) else list(chain)
    names = [_label(entry) for entry in chain]
    given = _ways(chain, paths)
    if late := [entry for way in given for entry in way[1:] if _is_checkpoint(entry)]:
        raise ValueError(f"{late[0]} is a checkpoint, which has nothing to learn; put it first in the chain")
    ways = [tuple(_label(entry) for entry in way) for way in given]
    _check(names, ways, alpha, temperature, epochs)
    folder = Path(output or cli.trainer.default_root_dir).absolute()
    prepare_folder(folder, "choose another --output")
    networks = _Chain(cli, folder, list(_words_of_a_fit(cli.words, set(cli.option_names), folder)), overwrite)
    taught = {"hard_weight": alpha, "kd_weight": 1 - alpha, "temperature": temperature}
    stages = list(dict.fromkeys(way[: end + 1] for way in ways for end in range(len(way))))
    done: dict[Way, dict[str, Any]] = {}
    for number, stage in enumerate(stages, start=1):
        print(f"\nnetwork {number} of {len(stages)}: {' > '.join(stage)}", flush=True)
        place = names.index(stage[-1])
        if _is_checkpoint(chain[place]):
            done[stage] = networks.given(chain[place])
            continue
        own = _model_words(chain[place])
        if epochs is not None:
            own += ["--trainer.max_epochs", str(epochs[place])]
        teacher = done[stage[:-1]]["checkpoint"] if len(stage) > 1 else None
        done[stage] = networks.trained(stage, [*own, *_teacher_words(teacher, taught)], teacher)
        if len(stage) > 1 and done[stage]["parameters"] >= done[stage[:-1]]["parameters"]:
            print(f"  {stage[-1]} is not smaller than {stage[-2]}, which taught it", flush=True)
    rows = [{"path": " > ".join(stage), "network": stage[-1], **row} for stage, row in done.items()]
    write_table(rows, folder / CSV)
    told = [name for name in rows[0] if name.endswith(("/acc", "/loss"))] or [name for name in rows[0] if "/" in name]
    print(f"\n{table_text([{name: row[name] for name in ('path', 'parameters', *told)} for row in rows])}", flush=True)
    student = done[ways[0]]["checkpoint"]
    print_table("written", {"table": str(folder / CSV), "student": student})
    return {"student": student, "table": str(folder / CSV), "rows": rows}


def _ways(chain: Sequence[str], paths: Sequence[Sequence[str]] | None) -> list[Sequence[str]]:
    """The chain, and the others that are asked for."""
    others = [[chain[0], chain[-1]], [chain[-1]]] if paths is None and chain else list(paths or [])
    return [chain, *(way for way in others if list(way) != list(chain))]


def _label(entry: str) -> str:
    """How an entry is called in the table and in folders' names."""
    return Path(entry).stem if _is_config(entry) or _is_checkpoint(entry) else entry.replace("/", "_")


def _is_config(entry: str) -> bool:
    return entry.endswith((".yaml", ".yml"))


def _is_checkpoint(entry: str) -> bool:
    return entry.endswith(".ckpt")


def _check(
    names: Sequence[str], ways: Sequence[Way], alpha: float, temperature: float, epochs: Sequence[int] | None
) -> None:
    """Refuse what no training can come of, before the first."""
    if len(names) < 2:
        raise ValueError(f"--chain {list(names)} needs a teacher and a student; name at least two networks")
    if twice := [it for it in names if names.count(it) > 1]:
        raise ValueError(f"--chain has {twice[0]} twice; each network of a chain is called otherwise")
    if unknown := [it for way in ways for it in way if it not in names]:
        raise ValueError(f"--paths has {unknown[0]}, which is not in the chain {list(names)}; add it there")
    if not all(ways):
        raise ValueError("--paths has a way without a network; name those that it goes through")
    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha {alpha} must be from 0 to 1")
    if not temperature > 0:
        raise ValueError(f"--temperature {temperature} must be above 0")
    if epochs is not None and (len(epochs) != len(names) or min(epochs) < 1):
        raise ValueError(f"--epochs {list(epochs)} must be {len(names)} numbers of at least 1, one for each network")


def _words_of_a_fit(words: Sequence[str], options: set[str], folder: Path) -> Iterator[str]:
    """The words of this command that are a `fit`'s, without its own options; configs that have some are copied."""
    following = iter(spell_out(list(words), run))
    for word in following:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-c"):
            yield from ("--config", _without(value if equals else next(following), options, folder))
        elif flag.removeprefix("--") not in options:
            yield word
        elif not equals:
            next(following)


def _without(config: str, options: set[str], folder: Path) -> str:
    """The path of a config without these keys: its own, or that of a copy in the folder."""
    path = find_config(config)
    content = read_config(path)
    if not options & content.keys():
        return str(path)
    copy = folder / f"{path.stem}_fit.yaml"
    kept = {key: value for key, value in content.items() if key not in options}
    copy.write_text(f"# {path.name} as each fit sees it.\n{yaml.safe_dump(kept, sort_keys=False)}", encoding="utf-8")
    return str(copy)


def _model_words(entry: str) -> list[str]:
    return ["--config", str(find_config(entry))] if _is_config(entry) else ["--model.backbone", entry]


def _teacher_words(checkpoint: str | None, taught: dict[str, float]) -> list[str]:
    if checkpoint is None:
        return []
    key = f"--callbacks.{ENTRY}"
    settings = [word for name, value in taught.items() for word in (f"{key}.{name}", repr(value))]
    return [key, "Distillation", f"{key}.teacher", checkpoint, *settings]


def _offers(datamodule: Any, split: str) -> bool:
    if not is_overridden(f"{split}_dataloader", datamodule):
        return False
    datamodule.prepare_data()
    datamodule.setup("validate" if split == "val" else "test")
    return getattr(datamodule, f"{split}_set", split) is not None


class _Chain:
    """Trains networks and measures them, each in a folder of its own.

    Args:
        cli: The command's; its data and its Trainer's settings measure.
        folder: Of all folders.
        words: Of a `fit`, without what tells the networks apart.
        overwrite: Whether a training with other settings gives way.
    """

    def __init__(self, cli: Any, folder: Path, words: list[str], overwrite: bool) -> None:
        self.cli, self.folder, self.words, self.overwrite = cli, folder, words, overwrite
        self.splits = [split for split in ("val", "test") if _offers(cli.datamodule, split)]

    def given(self, checkpoint: str) -> dict[str, Any]:
        """What a network reaches that is trained already."""
        return {**self._measured(checkpoint), "checkpoint": str(Path(checkpoint).absolute())}

    def trained(self, stage: Way, own: list[str], teacher: str | None) -> dict[str, Any]:
        """What a training reached: from its mark if it was finished, else after it is begun or gone on with."""
        place = self.folder / "-".join(stage)
        words = [*self.words, *own, "--trainer.default_root_dir", str(place)]
        # Files may have changed where they lie: a config was edited, a teacher trained anew.
        known = {
            "words": words,
            "configs": [Path(it).read_text(encoding="utf-8") for flag, it in pairwise(words) if flag == "--config"],
            "teacher": teacher and hashlib.sha256(Path(teacher).read_bytes()).hexdigest(),
        }
        mark = place / MARK
        told: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}
        if other := [it for it in known if told and told[it] != known[it]]:
            if not self.overwrite:
                what = "another teacher" if other == ["teacher"] else "other settings"
                raise ValueError(f"{place} holds a training with {what}; choose another --output or add --overwrite")
            shutil.rmtree(place)
            told = {}
        if "reached" in told:
            print(f"  finished before, in {place}", flush=True)
            return dict(told["reached"])
        prepare_folder(place, "choose another --output")
        _write(mark, known)
        begun = any(place.glob("**/checkpoints/*last*.ckpt"))
        best = console.main(["fit", *words, *(["--ckpt_path", "last"] if begun else [])]).best_ckpt
        if best is None:
            raise ValueError(
                f"the fit in {place} wrote no checkpoint to learn from; add a ModelCheckpoint to the config"
            )
        reached = {**self._measured(best), "checkpoint": str(Path(best).absolute())}
        _write(mark, {**known, "reached": reached})
        return reached

    def _measured(self, checkpoint: str) -> dict[str, Any]:
        module = module_from_checkpoint(checkpoint)
        found: dict[str, Any] = {"parameters": sum(it.numel() for it in module.parameters())}
        for split in self.splits:
            with hushed():
                trainer = trial_trainer(self.cli, enable_progress_bar=False, enable_model_summary=False)
                measure = trainer.validate if split == "val" else trainer.test
                for scores in measure(module, datamodule=self.cli.datamodule, verbose=False):
                    found |= dict(scores)
        return found


def _write(mark: Path, content: dict[str, Any]) -> None:
    """All or nothing, for an interrupted command reads it again."""
    part = mark.with_name(f".{mark.name}.part")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    part.replace(mark)

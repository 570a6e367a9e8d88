"""What words and configs turn into: callbacks, sizes, own defaults, one folder a run, one sentence."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jsonargparse
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch.optim import Optimizer

from lightning_vision import main
from lightning_vision.cli import VisionCLI
from lightning_vision.commands._parsing import own_defaults, spell_out
from lightning_vision.configs import read_config, shipped

TOYS = "support.command_toys"
BASE: dict[str, Any] = {
    "model": {"class_path": f"{TOYS}.ToyModule", "init_args": {"in_channels": 3}},
    "data": {"class_path": f"{TOYS}.ToyData"},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
}
CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": ""}}


def write(name: str, content: dict[str, Any]) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


def build(*args: str, **more: Any) -> VisionCLI:
    """The command line's objects, built and not run."""
    quiet = {**BASE, **more, "trainer": {**BASE["trainer"], "logger": False, **more.get("trainer", {})}}
    return VisionCLI(lambda cli: None, ["--config", write("base.yaml", quiet), *args])


def counters(cli: VisionCLI) -> list[tuple[int, int]]:
    return [(c.limit, c.count) for c in cli.trainer.callbacks if type(c).__name__ == "StepCounter"]


def counter(**init_args: int) -> dict[str, Any]:
    return {"class_path": f"{TOYS}.StepCounter", "init_args": init_args}


def test_callbacks_of_two_configs_compose_by_name() -> None:
    second = write("second.yaml", {"callbacks": {"b": counter(limit=2), "a": {"init_args": {"start": 5}}}})
    cli = build("--config", second, callbacks={"a": counter(limit=1)})

    assert counters(cli) == [(1, 5), (2, 0)]


def test_a_flag_overrides_one_knob_of_a_named_callback() -> None:
    assert counters(build("--callbacks.a.limit", "9", callbacks={"a": counter(limit=1, start=4)})) == [(9, 4)]


def test_a_model_of_ones_own_arguments_takes_a_checkpoints_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_project.py").write_text(
        "from lightning_vision import ImageClassifier\n"
        "class Own(ImageClassifier):\n"
        "    def __init__(self, lr: float = 0.1) -> None:\n"
        "        super().__init__('resnet8_cifar', 10, 1)\n"
        "class Silent(ImageClassifier):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__('resnet8_cifar', 10, 1)\n"
    )
    monkeypatch.syspath_prepend(".")
    short = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    for model in ("Own", "Silent"):
        run = read_config(shipped()["classification/digits"]) | {"model": {"class_path": f"own_project.{model}"}}
        words = ["--config", write(f"{model}.yaml", run), *short]
        best = main(["fit", *words]).best_ckpt

        assert main(["test", *words, "--ckpt_path", str(best)]).metrics.keys() >= {"test/acc"}


@pytest.mark.parametrize(
    ("manner", "rows"),
    [
        ("whole numbers", [["0", "4", "0"], ["1", "4", "8"], ["all", "8", "8"]]),
        ("one class", [["0", "4"], ["all", "4"]]),
        *((manner, []) for manner in ("tensor", "list", "one level", "nothing", "shares")),
    ],
)
def test_what_others_call_class_counts_is_shown_or_passed_over(
    manner: str, rows: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"data": {"class_path": f"{TOYS}.Counted", "init_args": {"manner": manner}}}
    main(["fit", "--config", write("counted.yaml", BASE | data), "--trainer.logger", "false"])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert (["images", "of", "each", "class"] in shown) == bool(rows)
    assert [row for row in shown if row in rows] == rows


def test_data_without_a_fraction_is_not_told_to_raise_it() -> None:
    words = ["fit", "--config", "classification/digits", "--data", f"{TOYS}.NoValidation", "--trainer.logger", "false"]
    with pytest.raises(ValueError, match=r"^no image is left for validation, .*; give the data images for it$"):
        main(words)


def test_null_switches_a_named_callback_off() -> None:
    assert counters(build("--callbacks.a", "null", callbacks={"a": counter(), "b": counter(limit=2)})) == [(2, 0)]


def test_a_callback_can_be_added_by_flags_alone() -> None:
    cli = build("--callbacks.mine", f"{TOYS}.StepCounter", "--callbacks.mine.limit=3")

    assert counters(cli) == [(3, 0)]


def test_callbacks_as_a_list_are_told_to_have_names() -> None:
    with pytest.raises(ValueError, match=r"^`callbacks` must map names to entries, as in `callbacks: {sam: "):
        build(callbacks=[counter()])


def test_a_short_name_inside_a_json_value_is_found() -> None:
    cli = build("--data", '{"class_path": "Digits", "init_args": {"batch_size": 7}}', "--model.in_channels", "1")

    assert (type(cli.datamodule).__name__, cli.datamodule.batch_size) == ("Digits", 7)


def test_an_open_size_is_filled_from_the_data() -> None:
    assert build().model.sizes == (7, 3)


def test_a_typed_size_that_differs_from_the_data_names_both() -> None:
    with pytest.raises(ValueError, match=r"^--model.num_classes is 5 but ToyData has 7; drop one of the two$"):
        build("--model.num_classes", "5")


def test_a_typed_size_that_agrees_is_accepted() -> None:
    assert build("--model.num_classes", "7").model.sizes == (7, 3)


def test_data_without_the_size_is_an_error_unless_it_is_typed() -> None:
    with pytest.raises(
        ValueError, match=r"ToyData has no attribute `in_channels` to size the model; pass --model.in_c"
    ):
        build("--model.in_channels", "null")


ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5, "weight_decay": 0.25}}


def optimizer_of(cli: VisionCLI) -> tuple[str, float, float]:
    optimizer = cli.model.configure_optimizers()
    return type(optimizer).__name__, optimizer.defaults["lr"], optimizer.defaults["weight_decay"]


def with_optimizer(spec: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": f"{TOYS}.ToyModule", "init_args": {"in_channels": 3, "optimizer": spec}}


def test_a_class_given_by_flag_starts_from_its_own_defaults() -> None:
    cli = build("--model.optimizer", "SGD", model=with_optimizer(ADAMW))

    assert optimizer_of(cli) == ("SGD", 0.001, 0.0)


def test_a_class_given_by_a_second_config_starts_from_its_own_defaults() -> None:
    spec = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.125}}
    second = write("second.yaml", {"model": {"init_args": {"optimizer": spec}}})

    assert optimizer_of(build("--config", second, model=with_optimizer(ADAMW))) == ("SGD", 0.125, 0.0)


def test_the_same_class_keeps_what_was_set() -> None:
    cli = build("--model.optimizer.lr", "0.125", model=with_optimizer(ADAMW))

    assert optimizer_of(cli) == ("AdamW", 0.125, 0.25)


def test_the_parser_still_needs_the_private_touch_that_own_defaults_makes() -> None:
    kept = jsonargparse._typehints.discard_init_args_on_class_path_change
    with own_defaults():
        assert jsonargparse._typehints.discard_init_args_on_class_path_change is not kept
    assert jsonargparse._typehints.discard_init_args_on_class_path_change is kept

    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--optimizer", type=Callable[..., Optimizer])
    args = ["--optimizer", "torch.optim.AdamW", "--optimizer.weight_decay", "0.25", "--optimizer", "torch.optim.SGD"]

    assert parser.parse_args(args).optimizer.init_args.weight_decay == 0.25


def test_loggers_share_one_new_folder_below_the_root() -> None:
    second = {**CSV, "class_path": "TensorBoardLogger"}
    for number in range(2):
        cli = build(trainer={"logger": [second, CSV], "default_root_dir": "out"})

        assert cli.run_dir == Path("out", f"version_{number}").absolute()
        assert {logger.log_dir for logger in cli.trainer.loggers} == {str(cli.run_dir)}


def test_one_flag_moves_everything_a_run_writes(tmp_path: Path) -> None:
    config = write("run.yaml", {**BASE, "trainer": {**BASE["trainer"], "logger": [CSV], "default_root_dir": "old"}})
    result = main(["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path / "new")])
    written = {path.name for path in (tmp_path / "new").rglob("*") if path.is_file()}

    assert result.run_dir == str(tmp_path / "new" / "version_0")
    assert written >= {"metrics.csv", "config.yaml"}
    assert [path.suffix for path in (tmp_path / "new").rglob("*.ckpt")] == [".ckpt"]
    assert sorted(path.name for path in Path().iterdir()) == ["new", "run.yaml"]


def test_a_resumed_run_goes_on_in_its_own_folder_and_keeps_its_rows() -> None:
    trainer = {**BASE["trainer"], "logger": [CSV], "default_root_dir": "out", "log_every_n_steps": 1}
    config = write("run.yaml", {**BASE, "trainer": trainer})
    first = main(["fit", "--config", config])
    rows = Path("out/version_0/metrics.csv").read_text()
    main(["fit", "--config", config])
    (checkpoint,) = Path("out/version_0").rglob("*.ckpt")
    second = main(["fit", "--config", config, "--ckpt_path", str(checkpoint), "--trainer.max_epochs", "2"])

    assert second.run_dir == first.run_dir
    assert Path("out/version_0/metrics_0.csv").read_text() == rows
    assert Path("out/version_0/metrics.csv").read_text() != rows
    assert sorted(path.name for path in Path("out").iterdir()) == ["version_0", "version_1"]


def test_last_is_the_checkpoint_written_last() -> None:
    saver = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True}}
    trainer = {**BASE["trainer"], "logger": [CSV], "default_root_dir": "out"}
    config = write("run.yaml", {**BASE, "trainer": trainer, "callbacks": {"checkpoint": saver}})
    with pytest.raises(
        FileNotFoundError, match=r"^--ckpt_path last: no last.ckpt under .*out; give a checkpoint's path"
    ):
        main(["fit", "--config", config, "--ckpt_path", "last"])
    for _ in range(2):
        main(["fit", "--config", config])

    assert main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", "2"]).run_dir == str(
        Path("out/version_1").absolute()
    )


def test_an_absolute_folder_and_a_given_version_stay(tmp_path: Path) -> None:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs"), "name": "a", "version": "b"}}
    cli = build(trainer={"logger": [logger], "default_root_dir": "out"})

    assert isinstance(cli.trainer.logger, CSVLogger)
    assert cli.trainer.logger.log_dir == str(tmp_path / "logs" / "a" / "b")


def test_a_saved_config_never_stops_a_run_and_can_be_run_again() -> None:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "name": "", "version": "one"}}
    config = write("run.yaml", {**BASE, "trainer": {**BASE["trainer"], "logger": [logger]}})
    for args in (["--config", config], ["--config", config], ["--config", "one/config.yaml"]):
        result = main(["fit", *args])

        assert set(result.metrics) == {"val/loss"}


def test_what_is_optimised_is_printed_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = write("run.yaml", {**BASE, "trainer": {**BASE["trainer"], "logger": False, "enable_checkpointing": False}})
    with caplog.at_level("INFO"):
        main(["fit", "--config", config, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.125"])
    text = capsys.readouterr().out + caplog.text

    assert text.count("Optimizer: SGD(lr=0.125, momentum=0.0") == 1


MISTAKES = {
    "option": (["--trainer.max_epoch", "3"], "there is no option --trainer.max_epoch; did you mean trainer.max_epochs"),
    "model knob": (["--model.num_clases", "3"], f"model: {TOYS}.ToyModule takes no `num_clases`; did you mean num_cla"),
    "optimizer knob": (
        ["--model.optimizer.lrr", "3"],
        "model.optimizer: torch.optim.AdamW takes no `lrr`; did you mean",
    ),
    "type": (["--trainer.max_epochs", "three"], "trainer.max_epochs: expected int or null, got three"),
    "class": (["--data", "Digitz"], "data: no class called Digitz; did you mean Digits?"),
    "nested type": (
        ["--data", "ImageFolder", "--data.image_size", "big"],
        "data.image_size: expected int or tuple, got",
    ),
    "missing": (
        ["--callbacks.b", "EarlyStopping"],
        "callbacks.b: lightning.pytorch.callbacks.EarlyStopping needs `moni",
    ),
    "callback knob": (
        ["--callbacks.a.limitt", "3"],
        f"callbacks.a: {TOYS}.StepCounter takes no `limitt`; did you mean",
    ),
}


@pytest.mark.parametrize(("args", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_way_out(args: list[str], sentence: str) -> None:
    with pytest.raises(jsonargparse.ArgumentError) as refusal:
        build(*args, callbacks={"a": counter()})

    assert str(refusal.value).startswith(sentence)
    assert len(str(refusal.value).splitlines()) == 1


def test_an_unknown_key_in_a_config_is_named() -> None:
    with pytest.raises(
        jsonargparse.ArgumentError, match=r"^there is no key trainer.max_epochz; did you mean trainer.max"
    ):
        build("--config", write("bad.yaml", {"trainer": {"max_epochz": 3}}))
    with pytest.raises(jsonargparse.ArgumentError, match=r"^there is no key modle; did you mean model"):
        build("--config", write("bad.yaml", {"modle": {"class_path": "x"}}))


def test_a_missing_config_names_the_nearest_shipped_one() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"--config classification/digitz: no such file .* classification/digits"
    ):
        main(["fit", "--config", "classification/digitz"])


def test_a_config_that_is_no_mapping_is_refused() -> None:
    Path("list.yaml").write_text("- 1\n")
    Path("broken.yaml").write_text("a: [1\n")

    with pytest.raises(ValueError, match=r"list.yaml: holds list, expected a mapping of keys to values"):
        main(["fit", "--config", "list.yaml"])
    with pytest.raises(ValueError, match=r"broken.yaml: not valid YAML"):
        main(["fit", "--config=broken.yaml"])


def test_model_and_data_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^no model given; add --config NAME"):
        main(["fit", "--trainer.logger", "false"])


def test_help_of_a_subcommand_returns_instead_of_leaving(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]).metrics == {}
    assert "--ckpt_path" in capsys.readouterr().out


def test_options_of_a_command_become_flags() -> None:
    def command(cli: SimpleNamespace, top_k: int = 5, overwrite: bool = False) -> None: ...

    base = ["--config", write("base.yaml", BASE), "--trainer.logger", "false"]

    assert VisionCLI(command, [*base, "--top_k", "2"]).config.top_k == 2
    for words, value in ((["--overwrite"], True), (["--overwrite", "false"], False), (["--overwrite=true"], True)):
        assert VisionCLI(command, [*base, *words]).config.overwrite is value
        assert VisionCLI(command, [*words, *base]).config.overwrite is value


def test_a_wrong_choice_names_the_right_ones() -> None:
    def command(cli: SimpleNamespace, on_bad_image: Literal["error", "skip"] | None = None) -> None: ...

    with pytest.raises(
        jsonargparse.ArgumentError, match=r"^on_bad_image: expected error or skip, got skp; did you mean"
    ):
        VisionCLI(command, ["--config", write("base.yaml", BASE), "--on_bad_image", "skp"])


def test_more_words_than_a_command_takes_are_refused() -> None:
    def one(cli: Any, ckpt_path: str, bins: int = 15) -> None: ...

    def several(cli: Any, base: str, files: list[str] | str) -> None: ...

    assert spell_out(["a.ckpt", "--bins", "3"], one) == ["--bins", "3", "--ckpt_path", "a.ckpt"]
    assert spell_out(["a", "b", "c"], several) == ["--base", "a", "--files", '["b", "c"]']
    with pytest.raises(ValueError, match=r"^b c: there are more words than ckpt_path; leave out what is too much, or"):
        spell_out(["a", "b", "c"], one)


def test_an_option_given_again_adds_to_what_it_has_in_either_spelling() -> None:
    def several(cli: Any, files: list[str] | str, bins: int = 15) -> None: ...

    assert spell_out(["--files=a", "--bins", "3", "--files=b=c"], several) == ["--bins", "3", "--files", '["a", "b=c"]']
    assert spell_out(["--files", "a", "--files=b"], several) == ["--files", '["a", "b"]']
    assert spell_out(["--files=a", "--bins", "3"], several) == ["--files=a", "--bins", "3"]
    assert spell_out(["--files", "a", "--files"], several) == ["--files", "a", "--files"]

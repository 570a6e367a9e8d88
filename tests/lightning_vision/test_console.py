"""The front door: help, lists and completion, exit codes, and what a person sees when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vision import main
from lightning_vision.catalogue import entries
from lightning_vision.commands import help_lines
from lightning_vision.configs import shipped
from lightning_vision.console import TRACEBACK, console


def leave(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lightning_vision", *args])
    return console()


def test_help_names_every_subcommand_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2 : 2 + len(help_lines())]]

    assert shown == [[name, line] for name, line in help_lines().items()]


def test_no_word_at_all_shows_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(monkeypatch) == 0
    main([])

    assert capsys.readouterr().out.count("usage: lightning_vision SUBCOMMAND") == 2


def test_an_unknown_subcommand_leaves_with_2_and_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(monkeypatch, "fitt") == 2
    expected = "lightning_vision fitt: error: no subcommand 'fitt'; did you mean fit? See `lightning_vision --help`\n"
    assert capsys.readouterr().err == expected


def test_a_wrong_word_for_list_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(monkeypatch, "list", "things") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_list_configs_shows_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "configs"]).output == list(shipped())
    assert "classification/digits" in capsys.readouterr().out


def test_list_backbones_adds_timms_names_on_request() -> None:
    ours = {entry.name for entry in entries() if entry.kind == "backbone"}
    both = main(["list", "backbones", "--timm", "resnet1*"]).output

    assert ours < set(both)
    assert {"resnet18", "resnet101"} < set(both)


def test_timm_goes_with_backbones_only() -> None:
    with pytest.raises(ValueError, match="--timm goes with `list backbones`, not with `list tasks`"):
        main(["list", "tasks", "--timm", "resnet*"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lightning_vision", "expo"], "export"),
        (["lightning_vision", "fit", "--config", "classification/digits_rei"], "classification/digits_reinforced"),
        (["lightning_vision", "fit", "--model", "ImageC"], "ImageClassifier"),
        (["lightning_vision", "fit", "--model.backbone", "resnet8_c"], "resnet8_cifar"),
        (["lightning_vision", "fit", "--callbacks.resume", "Exact"], "ExactResume"),
    ],
    ids=["subcommand", "config", "model", "backbone", "callback"],
)
def test_bash_completes(words: list[str], expected: str) -> None:
    typed = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _lightning_vision; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "-c", f"{main(['completion']).output}\n{ask}"], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == [expected]


def test_an_error_of_someone_elses_code_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken_project.py").write_text(
        "from lightning.pytorch import LightningDataModule\n"
        "class Broken(LightningDataModule):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__()\n"
        "        raise ValueError('theirs')\n"
    )
    monkeypatch.syspath_prepend(".")

    assert leave(monkeypatch, "fit", "--data", "broken_project.Broken", "--trainer.logger", "false") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_in_our_own_files_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Raised in C, below a line of ours that raises nothing.
    monkeypatch.setattr("lightning_vision.commands.list.KINDS", 3)

    assert leave(monkeypatch, "list", "tasks") == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_traceback_of_our_own_errors_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")

    assert leave(monkeypatch, "fitt") == 1
    assert "Traceback" in capsys.readouterr().err


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lightning_vision", "fitt"], capture_output=True, text=True)

    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_reader_that_has_gone_is_no_success_and_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-m", "lightning_vision", "list", "backbones"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, "")

"""The catalogue says what the classes say, and the lazy packages offer what the catalogue says."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vision import catalogue, main
from lightning_vision.datamodules.augmentation.policies import POLICIES


def test_the_file_is_what_the_docstrings_give() -> None:
    main(["catalogue", "--check"])


def test_a_changed_docstring_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = json.loads(catalogue.FILE.read_text())
    entries[0]["summary"] += " and more"
    stale = tmp_path / "catalogue.json"
    stale.write_text(json.dumps(entries, indent=1) + "\n")
    monkeypatch.setattr(catalogue, "FILE", stale)

    with pytest.raises(ValueError, match=r"catalogue.json is out of date; run `lightning_vision catalogue`"):
        main(["catalogue", "--check"])


def test_entries_load_and_are_offered_by_their_packages() -> None:
    elsewhere = [
        entry.path
        for entry in catalogue.entries()
        if entry.load() is not getattr(importlib.import_module(".".join(entry.path.split(".")[:2])), entry.name)
    ]

    assert elsewhere == []


def test_entries_tell_themselves_in_a_line() -> None:
    assert [entry.name for entry in catalogue.entries() if not 10 < len(entry.summary) <= 120] == []


def test_a_function_named_as_its_file_stays_a_function_when_the_file_is_imported(tmp_path: Path) -> None:
    statements = [
        "import sys, types",
        "from lightning_vision.explain.pointing_game import box_masks",
        "from lightning_vision.explain import pointing_game",
        "assert pointing_game is sys.modules['lightning_vision.explain.pointing_game'].pointing_game",
        "from lightning_vision.explain import sanity_check",
        "assert isinstance(sanity_check, types.ModuleType)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(statements)], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    import lightning_vision

    with pytest.raises(AttributeError, match="did you mean ImageClassifier"):
        lightning_vision.ImageClasifier  # noqa: B018  # the access itself is what fails


@pytest.mark.parametrize(
    ("asked", "name", "place"),
    [
        ("lightning_vision.explain", "grad_cam", "lightning_vision.callbacks"),
        ("lightning_vision.callbacks", "insertion", "lightning_vision.explain"),
        ("lightning_vision", "GradCAMLogger", "lightning_vision.callbacks"),
    ],
)
def test_a_name_asked_of_the_wrong_package_is_told_its_place(asked: str, name: str, place: str) -> None:
    with pytest.raises(AttributeError, match=f"^module '{asked}' has no attribute '{name}'; it stands in {place}$"):
        getattr(importlib.import_module(asked), name)
    assert not hasattr(importlib.import_module(asked), name)
    assert hasattr(importlib.import_module(place), name)


def test_every_kind_that_exists_is_listed() -> None:
    for kind in ("task", "callback", "datamodule", "backbone"):
        names = [entry.name for entry in catalogue.entries() if entry.kind == kind]

        assert main(["list", f"{kind}s"]).output == names != []


def test_augmentations_are_listed_with_their_policies(capsys: pytest.CaptureFixture[str]) -> None:
    classes = [entry.name for entry in catalogue.entries() if entry.kind == "augmentation"]
    listed = main(["list", "augmentations"]).output
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert {"AutoAugment", "Chain", "ResizedCrop"} <= set(classes)
    assert listed == [*classes, *POLICIES]
    assert ["standard", "policy:", "ResizedCrop,", "then", "ColorJitter"] in lines
    assert ["none", "policy:", "nothing"] in lines

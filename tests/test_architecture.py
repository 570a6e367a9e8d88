"""The rules of the house that code can break without any other test noticing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEUTRAL = (
    "lightning_vision.backbones",
    "lightning_vision.base.weights",
    "lightning_vision.catalogue",
    "lightning_vision.images",
    "lightning_vision.inspection.",
)
JOINERS = {"cli.py", "commands", "configs.py", "console.py"}  # the command, which knows all wings


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            found |= {
                f"{node.module}.{alias.name}" if node.module == "lightning_vision" else node.module
                for alias in node.names
            }
    return found


@pytest.mark.parametrize("wing", ["callbacks", "datamodules"])
def test_a_wing_knows_no_other_wing(wing: str) -> None:
    foreign = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / wing).rglob("*.py")
        for name in imports_of(path)
        if name.partition(".")[0] == "lightning_vision" and not name.startswith(NEUTRAL)
    }

    assert foreign == set()


def test_tasks_know_neither_callbacks_nor_datamodules_nor_the_command() -> None:
    banned = ("lightning_vision.callbacks", "lightning_vision.datamodules", "lightning_vision.cli")
    foreign = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "lightning_vision").rglob("*.py")
        if path.relative_to(ROOT / "lightning_vision").parts[0] not in JOINERS
        for name in imports_of(path)
        if name.startswith(banned)
    }

    assert foreign == set()


def test_nothing_is_importable_under_a_bare_wing_name(tmp_path: Path) -> None:
    for wing in ("callbacks", "datamodules", "cli_configs"):
        done = subprocess.run([sys.executable, "-c", f"import {wing}"], capture_output=True, text=True, cwd=tmp_path)

        assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import lightning_vision",
        "import lightning_vision.callbacks, lightning_vision.datamodules, lightning_vision.classification",
        "from lightning_vision import main; main(['--help'])",
        "from lightning_vision import main; main(['list', 'tasks'])",
        "from lightning_vision import main; main(['list', 'configs'])",
        "from lightning_vision import main; main(['completion'])",
    ],
)
def test_torch_stays_unimported(statement: str, tmp_path: Path) -> None:
    check = "heavy = {'torch', 'lightning', 'numpy', 'timm'} & set(sys.modules); assert not heavy, heavy"
    guard = f"import sys\n{statement}\n{check}"
    done = subprocess.run([sys.executable, "-c", guard], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr


def test_the_command_is_one_short_file() -> None:
    assert len((ROOT / "lightning_vision" / "cli.py").read_text().splitlines()) < 150

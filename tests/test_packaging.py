"""What is shipped: the package list, the wheel and the source distribution hold what the tree holds."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_worker

ROOT = Path(__file__).parents[1]
WINGS = {"lightning_vision": "lightning_vision", "callbacks": "lightning_vision.callbacks"}
WINGS |= {"datamodules": "lightning_vision.datamodules", "cli_configs": "lightning_vision.cli_configs"}


def shipped_files() -> dict[str, Path]:
    """Path inside the wheel and file in the tree of everything that has to be shipped."""
    files = {}
    for folder, package in WINGS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".yaml", ".json", ".typed"} or path.name == "py.typed":
                files[str(Path(package.replace(".", "/")) / path.relative_to(ROOT / folder))] = path
    return files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_package_list_names_every_folder_with_code_or_configs() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(Path(name).parent) for name in shipped_files()}

    assert set(settings["packages"]) == {folder.replace("/", ".") for folder in folders}
    assert settings["package-dir"] == {package: folder for folder, package in WINGS.items()}


def test_every_package_folder_has_an_init() -> None:
    assert [path for path in shipped_files().values() if not (path.parent / "__init__.py").is_file()] == []


def test_the_wheel_holds_exactly_the_tree(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert names == set(shipped_files())


def test_the_source_distribution_holds_the_tree(built: Path, tmp_path: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    # Not tarfile's own: its argument `filter`, which later Pythons ask for, is younger than 3.11.0.
    shutil.unpack_archive(source, tmp_path)
    (unpacked,) = tmp_path.iterdir()
    missing = [path for path in shipped_files().values() if not (unpacked / path.relative_to(ROOT)).is_file()]

    assert missing == []
    assert (unpacked / "LICENSE").is_file()


# Both hold the tree, as the tests above say; what is installed from them differs in how it was packed.
@pytest.mark.parametrize("kind", ["*.whl", pytest.param("*.tar.gz", marks=pytest.mark.slow)])
def test_installed_elsewhere_it_trains_from_outside_the_checkout(built: Path, kind: str, tmp_path: Path) -> None:
    (archive,) = built.glob(kind)
    place = tmp_path / "installed"
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(archive)], check=True)
    lines = [
        "import sys, runpy, lightning_vision as lv, lightning_vision.callbacks as c",
        "print(lv.__file__, c.__file__)",
        "sys.argv[0] = 'lightning_vision'",
        "runpy.run_module('lightning_vision', run_name='__main__')",
    ]
    short = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "-c", "\n".join(lines), "fit", "--config", "classification/digits", *short]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(place)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = done.stdout.partition("\n")[0].split()

    assert [Path(file).is_relative_to(place) for file in found] == [True, True]
    assert "best.ckpt (val/loss " in done.stdout


def test_dependencies_and_bounds_say_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start, end = lines.index("dependencies = ["), lines.index("[project.scripts]")
    unexplained = []
    for number in range(start + 1, end):
        line = lines[number].strip()
        if line.startswith('"') and not line.startswith('"lightning_vision['):
            block = number - 1
            while lines[block].strip().startswith('"'):
                block -= 1
            if not lines[block].strip().startswith("#"):
                unexplained.append(line)

    assert unexplained == []

"""The words hold: Python blocks run, YAML blocks parse, links lead somewhere, named tests exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from support.box_files import coco_folder, voc_folder
from support.open_images_files import open_images_folder
from support.photos import photo_folder

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CARDS = sorted((ROOT / "docs" / "methods").glob("*.md"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def cost(page: Path) -> list[pytest.MarkDecorator]:
    """A page whose blocks train for long says so itself."""
    return [pytest.mark.slow] if "<!-- test: slow -->" in page.read_text() else []


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name(page), marks=cost(page)) for page in PAGES if blocks(page, "python")]
)
def test_python_blocks_run_in_order(page: Path) -> None:
    if "photos" in page.read_text():  # of the reader's own
        photo_folder("photos", ("brick", "cat"), number=8)
        photo_folder("new", ("cat",), number=2)
        for file in Path("new/cat").iterdir():
            file.rename(Path("new") / file.name)
        Path("new/cat").rmdir()
    if "my_boxes" in page.read_text():
        coco_folder("my_boxes", train=4, val=2)
    if "my_voc" in page.read_text():
        voc_folder("my_voc")
    if "my_open_images" in page.read_text():
        open_images_folder("my_open_images")
    scope: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), scope)  # the page's own code, run as a reader would


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_yaml_blocks_parse(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_and_pictures_exist(page: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    local = [target for target in targets if target and "://" not in target]

    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", CARDS, ids=name)
def test_a_card_names_tests_that_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    missing = [f"{file}::{test}" for file, test in named if test not in functions(ROOT / file)]

    assert named != []
    assert missing == []


def functions(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}

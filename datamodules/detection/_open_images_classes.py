"""The classes of Open Images: their names, and which follows from which."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_vision.catalogue import nearest

__all__ = ["Classes", "find_file", "read_classes"]

FOLDERS = (".", "annotations", "metadata")


@dataclass(frozen=True)
class Classes:
    """The chosen classes, and what a row of any class says of them.

    Args:
        names: For people, label 1 first.
        ids: Of Open Images, such as `/m/01g317`, likewise.
        present: By the id of every described class, the labels that are there where it is.
        absent: Likewise, those that are not there where it is not.
        ancestors: For each of the labels 1..K the labels of its ancestors, ascending.
    """

    names: list[str]
    ids: list[str]
    present: dict[str, tuple[int, ...]]
    absent: dict[str, tuple[int, ...]]
    ancestors: list[list[int]]


def find_file(root: Path, pattern: str) -> Path | None:
    """The file whose name matches, with or without the `oidv6-` that later releases put in front.

    Args:
        root: The folder, in which, and in whose `annotations` and `metadata`, is looked.
        pattern: Regular expression of the name.

    Raises:
        ValueError: there are two.
    """
    whole = re.compile(rf"(oidv\d+-)?({pattern})")
    places = [root / name for name in FOLDERS]
    found = [
        file for place in places if place.is_dir() for file in sorted(place.iterdir()) if whole.fullmatch(file.name)
    ]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} hold the same of two releases; keep one of them")
    return found[0] if found else None


def read_descriptions(file: Path) -> dict[str, str]:
    """Names by id; a first line of titles, which later releases have, is passed over.

    Raises:
        ValueError: a line has no id and name, or an id is there twice; there is none.
    """
    names: dict[str, str] = {}
    with open(file, newline="", encoding="utf-8-sig") as text:
        rows = csv.reader(text)
        for row in rows:
            if row == ["LabelName", "DisplayName"] or not row:
                continue
            if len(row) != 2 or not all(row):
                raise ValueError(f"{file}: line {rows.line_num} is not a class id and its name; download it again")
            if row[0] in names:
                raise ValueError(f"{file}: line {rows.line_num} describes {row[0]} a second time; drop one")
            names[row[0]] = row[1]
    if not names:
        raise ValueError(f"{file} describes 0 classes; download it again")
    return names


def read_hierarchy(file: Path) -> dict[str, set[str]]:
    """Ids of all ancestors of each class that is in the tree; parts of a class (`Part`) are none of its kinds.

    Raises:
        ValueError: it is no JSON, a node has no `LabelName`, or a class is its own ancestor.
    """
    parents: dict[str, set[str]] = {}

    def walk(node: Any, parent: str | None) -> None:
        name = node.get("LabelName") if isinstance(node, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"{file}: below {parent or 'the root'} stands a node without LabelName; download it again")
        parents.setdefault(name, set()).update([] if parent is None else [parent])
        for below in node.get("Subcategory", []):
            walk(below, name)

    try:
        walk(json.loads(file.read_text(encoding="utf-8-sig")), None)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}; download it again") from error
    ancestors: dict[str, set[str]] = {}
    for name in parents:
        above, left = set(), [*parents[name]]
        while left:
            parent = left.pop()
            if parent not in above:
                above.add(parent)
                left.extend(parents[parent])
        if name in above:
            raise ValueError(f"{file}: {name} is its own ancestor; download it again")
        ancestors[name] = above
    return ancestors


def read_classes(root: Path, boxable: bool, wanted: Sequence[str] | None, expand: bool) -> Classes:
    """The classes to learn, of those that the tables describe.

    Args:
        root: The folder of the tables.
        boxable: Where none are wanted by name take those that have boxes, else all that are described.
        wanted: As `choose_classes` takes them.
        expand: Likewise.

    Raises:
        FileNotFoundError: no table describes classes, or the hierarchy to expand by is not there.
        ValueError: a table cannot be read, or a wanted class is not described.
    """
    files = [find_file(root, rf"class-descriptions{part}\.csv") for part in ("-boxable", "")]
    tables = [read_descriptions(file) for file in files if file is not None]
    if not tables:
        raise FileNotFoundError(f"there is no table class-descriptions-boxable.csv in {root}; download it")
    tree = find_file(root, r".*hierarchy\.json")
    if tree is None and expand:
        raise FileNotFoundError(f"there is no bbox_labels_600_hierarchy.json in {root}, which expand_hierarchy reads")
    described = {identity: name for table in tables for identity, name in table.items()}
    ancestors = {} if tree is None else read_hierarchy(tree)
    return choose_classes(tables[0 if boxable else -1], described, wanted, ancestors, expand)


def choose_classes(
    offered: dict[str, str],
    described: dict[str, str],
    wanted: Sequence[str] | None,
    ancestors: dict[str, set[str]],
    expand: bool,
) -> Classes:
    """The classes to learn.

    Args:
        offered: Names by id of those that all are taken of.
        described: Names by id of all that may occur.
        wanted: Names or ids in the order of the labels; None takes all that are offered.
        ancestors: From `read_hierarchy`.
        expand: A row of a class is one of its ancestors', too, and where it is absent so are its descendants.

    Raises:
        ValueError: a wanted class is described nowhere or named twice, or a name is two classes'.
    """
    ids = [*offered] if wanted is None else [_id_of(name, described) for name in wanted]
    if len({*ids}) < len(ids):
        raise ValueError(f"classes names {described[next(it for it in ids if ids.count(it) > 1)]!r} twice; drop one")
    labels = {identity: number for number, identity in enumerate(ids, 1)}
    above = {it: sorted(labels[other] for other in ancestors.get(it, ()) if other in labels) for it in described}
    own = {it: [labels[it]] if it in labels else [] for it in described}
    below: dict[str, list[int]] = {it: [] for it in described}
    for it in ids:
        for other in ancestors.get(it, ()):
            below.setdefault(other, []).append(labels[it])
    return Classes(
        [described[it] for it in ids],
        ids,
        {it: tuple(own[it] + (above[it] if expand else [])) for it in described},
        {it: tuple(own[it] + (below[it] if expand else [])) for it in described},
        [above[it] for it in ids],
    )


def _id_of(wanted: str, described: dict[str, str]) -> str:
    found = [it for it, name in described.items() if wanted in (it, name)]
    if not found:
        way_out = nearest(wanted, [*described.values()]) or "; give a name or an id such as /m/01g317"
        raise ValueError(f"classes names {wanted!r}, which the class descriptions have not{way_out}")
    if len(found) > 1:
        raise ValueError(f"classes names {wanted!r}, which is {' and '.join(found)}; give the id")
    return found[0]

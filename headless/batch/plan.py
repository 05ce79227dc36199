"""What varies from job to job: a table's lines, a grid's combinations, a folder's subjects.

A row is one combination, with the file and line it came from. Rows stream: a table of any length is never
held in memory.

    grid.json     {"Train DreamBooth.rank": [4, 8], "Train DreamBooth.learning_rate": [1e-4, 5e-4]}
    table.csv     Load Subject.folder,Load Subject.class_noun     (one job per line; an empty cell leaves
                  photos/rex,dog                                   the workflow's own value)
    table.jsonl   {"Load Subject.folder": "photos/rex", "Load Subject.class_noun": "dog"}
    subjects/     one job per subfolder or .zip; NAME.subject.json beside it holds Load Subject's other inputs
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import LikenessError

Settings = dict[str, Any]  # "node.input" -> value
LOAD_SUBJECT = "LikenessLoadSubject"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One combination. ``places`` says for every setting which file and line gave it."""

    settings: Settings
    places: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""  # from a folder of subjects
    method: str = ""  # from a sweep

    @property
    def place(self) -> str:
        return ", ".join(dict.fromkeys(self.places.values()))

    def __or__(self, other: Row) -> Row:
        return Row(
            settings=self.settings | other.settings,
            places={**self.places, **other.places},
            subject=self.subject or other.subject,
            method=self.method or other.method,
        )


def product(*axes: Iterable[Row]) -> Iterator[Row]:
    """Every combination. The first axis streams; the others are held, so the table comes first."""
    first, *others = axes
    held = [list(axis) for axis in others]
    for row in first:
        for rest in itertools.product(*held):
            combined = row
            for part in rest:
                combined = combined | part
            yield combined


# --- grid -----------------------------------------------------------------------------------------------


def read_grid(path: Path) -> list[Row]:
    """Every combination of a grid file's lists, in the file's order, the last varying fastest."""
    text, data = read_json_object(path, "a grid")
    return list(combinations(data, path.name, text))


def combinations(grid: Mapping[str, Any], name: str, text: str = "") -> Iterator[Row]:
    """The combinations of a grid; ``text`` is its file's, to find lines in."""
    places = {key: f"{name}, line {line_of(text, key)}" if text else name for key in grid}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise LikenessError(f"{places[key]}: {key} is {values!r}", expected="a list of values to try")
    for chosen in itertools.product(*grid.values()):
        yield Row(settings=dict(zip(grid, chosen, strict=True)), places=places)


def line_of(text: str, key: str) -> int:
    """The line on which a JSON file names a key."""
    match = re.search(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def read_json_object(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    text = _text(path)
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _unique(path, pairs))
    except json.JSONDecodeError as error:
        raise LikenessError(
            f"{path.name}, line {error.lineno}: this is not JSON ({error.msg})", expected=f"{what} as JSON"
        ) from error
    if not isinstance(data, dict) or not data:
        raise LikenessError(f"{path} is not {what}", expected='JSON like {"Train DreamBooth.rank": [4, 8]}')
    return text, data


def _unique(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LikenessError(f"{path.name} has {twice} twice", fix="Join the two lists")
    return seen


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LikenessError(f"{path} cannot be read: {error}") from error


# --- table ----------------------------------------------------------------------------------------------


def read_table(path: Path) -> Iterator[Row]:
    """The lines of a CSV or JSON Lines file, one at a time."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LikenessError(f"{path} is not a table", expected="a .csv or .jsonl file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from reader(file, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LikenessError(f"{path} cannot be read as a table: {error}") from error


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[Row]:
    lines = csv.reader(file)
    head = [name.strip() for name in next(lines, [])]
    if not head or len(set(head)) < len(head) or "" in head:
        raise LikenessError(
            f"{path.name}, line 1: {', '.join(head) or 'it is empty'}",
            expected="a head of different node.input names",
        )
    for cells in lines:
        place = f"{path.name}, line {lines.line_num}"
        if not cells:
            continue
        if len(cells) != len(head):
            raise LikenessError(f"{place} has {len(cells)} cells", expected=f"{len(head)}, as in the head")
        yield _row({name: cell for name, cell in zip(head, cells, strict=True) if cell != ""}, place)


def _jsonl_rows(file: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        place = f"{path.name}, line {number}"
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise LikenessError(f"{place}: this is not JSON ({error.msg})") from error
        if not isinstance(data, dict):
            raise LikenessError(f"{place}: {line.strip()[:60]}", expected='{"node.input": value, ...}')
        yield _row(data, place)


def _row(settings: Settings, place: str) -> Row:
    return Row(settings=settings, places=dict.fromkeys(settings, place) or {"": place})


# --- subjects -------------------------------------------------------------------------------------------


def read_subjects(folder: Path) -> list[Row]:
    """One row per subfolder or .zip, in order of name, for the workflow's Load Subject node."""
    if not folder.is_dir():
        raise LikenessError(f"There is no folder of subjects {folder}")
    found = sorted(p for p in folder.iterdir() if _is_subject(p))
    if not found:
        raise LikenessError(
            f"{folder} has no subjects", expected="a subfolder of photos, or a .zip, for each"
        )
    return [_subject(path) for path in found]


def _is_subject(path: Path) -> bool:
    return not path.name.startswith((".", "__")) and (path.is_dir() or path.suffix.lower() == ".zip")


def _subject(path: Path) -> Row:
    settings: Settings = {f"{LOAD_SUBJECT}.folder": str(path.absolute())}
    places = dict.fromkeys(settings, path.name)
    words = path.with_name(f"{path.stem}.subject.json")
    if words.is_file():
        text, data = read_json_object(words, "a subject's words")
        for name, value in data.items():
            settings[f"{LOAD_SUBJECT}.{name}"] = value
            places[f"{LOAD_SUBJECT}.{name}"] = f"{words.name}, line {line_of(text, name)}"
    return Row(settings=settings, places=places, subject=path.stem)

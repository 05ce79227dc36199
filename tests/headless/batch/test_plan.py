"""Rows from grids, tables and folders, each with the line that it came from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.headless.batch.plan import (
    Row,
    combinations,
    product,
    read_grid,
    read_subjects,
    read_table,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_grid_is_every_combination_the_last_varying_fastest(tmp_path: Path) -> None:
    grid = write(tmp_path / "g.json", '{\n "A.x": [1, 2],\n "B.y": ["p", "q"]\n}')
    rows = read_grid(grid)
    assert [row.settings for row in rows] == [
        {"A.x": 1, "B.y": "p"}, {"A.x": 1, "B.y": "q"}, {"A.x": 2, "B.y": "p"}, {"A.x": 2, "B.y": "q"},
    ]  # fmt: skip
    assert rows[0].places == {"A.x": "g.json, line 2", "B.y": "g.json, line 3"}


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text("ab.", min_size=1), st.lists(st.integers(), min_size=1, max_size=4), max_size=4)
)
def test_a_grid_has_as_many_rows_as_the_product_of_its_lists(grid: dict[str, list[int]]) -> None:
    rows = list(combinations(grid, "g"))
    assert len(rows) == math.prod(len(values) for values in grid.values())
    assert {name for row in rows for name in row.settings} == set(grid)


def test_a_csv_table_streams_and_leaves_empty_cells_out(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "A.x,A.text\n1,one\n\n2,\n")
    rows = list(read_table(table))
    assert [row.settings for row in rows] == [{"A.x": "1", "A.text": "one"}, {"A.x": "2"}]
    assert [row.place for row in rows] == ["t.csv, line 2", "t.csv, line 4"]


def test_a_jsonl_table_keeps_types(tmp_path: Path) -> None:
    table = write(tmp_path / "t.jsonl", '{"A.x": 1}\n\n{"A.x": 2.5, "A.on": true}\n')
    rows = list(read_table(table))
    assert [row.settings for row in rows] == [{"A.x": 1}, {"A.x": 2.5, "A.on": True}]
    assert rows[1].place == "t.jsonl, line 3"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("g.json", '{"A.x": 3}', r"g\.json, line 1: A\.x is 3.*a list of values"),
        ("g.json", '{"A.x": []}', r"g\.json, line 1: A\.x is \[\]"),
        ("g.json", '{"A.x": [1],\n "A.x": [2]}', r"has A\.x twice"),
        ("g.json", '{"A.x": [1],\n oops', r"g\.json, line 2: this is not JSON"),
        ("g.json", "[]", r"is not a grid"),
        ("t.csv", "A.x,A.x\n1,2\n", r"t\.csv, line 1.*different"),
        ("t.csv", "A.x,B.y\n1,2\n3\n", r"t\.csv, line 3 has 1 cells.*Expected: 2"),
        ("t.csv", "", r"t\.csv, line 1: it is empty"),
        ("t.jsonl", '{"A.x": 1}\n[2]\n', r"t\.jsonl, line 2"),
        ("t.jsonl", '{"A.x": 1}\n{\n', r"t\.jsonl, line 2: this is not JSON"),
        ("t.txt", "A.x\n", r"is not a table"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(LikenessError, match=problem):
        list(read_grid(path) if name == "g.json" else read_table(path))


def test_subjects_are_subfolders_and_zips_with_words_beside_them(tmp_path: Path) -> None:
    (tmp_path / "rex").mkdir()
    (tmp_path / "tom.zip").touch()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "rex.subject.json", json.dumps({"class_noun": "dog"}))
    rows = read_subjects(tmp_path)
    assert [row.subject for row in rows] == ["rex", "tom"]
    assert rows[0].settings == {
        "LikenessLoadSubject.folder": str(tmp_path / "rex"), "LikenessLoadSubject.class_noun": "dog",
    }  # fmt: skip
    with pytest.raises(LikenessError, match="has no subjects"):
        read_subjects(tmp_path / "rex")
    with pytest.raises(LikenessError, match="There is no folder"):
        read_subjects(tmp_path / "none")


def test_axes_multiply_and_the_first_may_be_endless() -> None:
    endless = (Row(settings={"A.x": n}) for n in iter(int, 1))
    rows = product(endless, [Row(settings={"B.y": 1}, subject="rex"), Row(settings={"B.y": 2})])
    first, second = next(rows), next(rows)
    assert first.settings == {"A.x": 0, "B.y": 1} and first.subject == "rex"
    assert second.settings == {"A.x": 0, "B.y": 2} and second.subject == ""

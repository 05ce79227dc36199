"""The example workflows as a newcomer finds them in the template browser: explained, grouped, and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WORKFLOWS = Path(__file__).parents[1] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
BLUEPRINTS = sorted((WORKFLOWS.parent / "subgraphs").glob("*.json"))
MAX_PICTURE_BYTES = 60_000
MODEL = "LikenessLoadBaseModel"
FULL_PATH = re.compile(r"(?<![\w:/.])(/\w[\w.-]*/|[A-Z]:\\)")  # of some machine


def graph(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_a_template_has_a_picture(name: str) -> None:
    path = WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size <= MAX_PICTURE_BYTES
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width >= 400


def test_there_is_no_picture_of_a_template_that_is_gone() -> None:
    assert sorted(path.stem for path in WORKFLOWS.glob("*.jpg")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_template_explains_itself(name: str) -> None:
    """A note that says what happens, groups, and, where a model learns, what a full-size one needs."""
    page = graph(name)
    notes = [node for node in page["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and len(page["groups"]) >= 2
    if any(node["type"] == MODEL for node in page["nodes"]):
        assert any("models/checkpoints" in note["widgets_values"][0] for note in notes)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_template_is_of_one_machine(name: str) -> None:
    text = (WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")
    assert not FULL_PATH.findall(text)


def test_a_full_path_is_told_from_a_relative_one() -> None:
    assert FULL_PATH.findall(r'"/srv/photos/cat" "C:\\photos"') == ["/srv/", "C:\\"]
    assert not FULL_PATH.findall('"models/checkpoints" "https://example.org/x/y" "and/or"')


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_of_ours(path: Path) -> None:
    """ComfyUI takes a graph of a single subgraph as a blueprint, and calls it by its file's name."""
    page = json.loads(path.read_text(encoding="utf-8"))
    (node,), (inside,) = page["nodes"], page["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == path.stem
    assert inside["inputs"] and inside["outputs"] and not page["links"]
    schemas = json.loads((Path(__file__).parent / "nodes" / "schemas.json").read_text(encoding="utf-8"))
    for one in inside["nodes"]:
        known = {spec["id"] for spec in schemas[one["type"]]["inputs"]}
        assert {spec["name"] for spec in one["inputs"]} <= known, one["type"]

"""Rows become jobs only when every setting is right; keys follow content; names do not collide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from likeness.core.errors import LikenessError
from likeness.headless import runner
from likeness.headless.batch.checking import Workflow
from likeness.headless.batch.plan import Row, read_grid, read_table
from likeness.headless.batch.targets import Catalogue
from likeness.headless.graph import Graph, Link, Node
from likeness.nodes import host
from likeness_stubs import CLASSES, SCHEMAS
from PIL import Image


def graph() -> Graph:
    values = {"value": 1, "seed": 0, "scale": 1.0, "mode": "one", "on": True, "text": "hi"}
    return {
        "1": Node("1", "Source", values),
        "2": Node("2", "Show", {"number": Link("1", 0)}),
        "3": Node("3", "Source", dict(values), "Idle"),
    }


@pytest.fixture
def workflow() -> Workflow:
    return Workflow(graph(), Catalogue(where="here", schemas=SCHEMAS, classes=CLASSES), "w.json")


def pictures() -> Workflow:
    classes = runner.known_classes()
    nodes = {
        "1": Node("1", "LoadImage", {"image": "a.png"}),
        "2": Node("2", "SaveImage", {"images": Link("1", 0), "filename_prefix": "x/y"}),
    }
    return Workflow(
        nodes, Catalogue(where="here", schemas=runner.schemas_of(classes), classes=classes), "w.json"
    )


def row(**settings: Any) -> Row:
    named = {f"1.{name}": value for name, value in settings.items()}
    return Row(settings=named, places=dict.fromkeys(named, "t.csv, line 2"))


def test_a_job_reaches_the_prompt_with_values_of_the_right_type(workflow: Workflow) -> None:
    (job,) = workflow.jobs([row(value="4", on="false")])
    prompt = workflow.prompt(job)
    assert prompt["1"]["inputs"]["value"] == 4 and prompt["1"]["inputs"]["on"] is False
    assert set(prompt) == {"1", "2"}  # nothing that no output needs
    assert graph()["1"].inputs == workflow.graph["1"].inputs  # the workflow itself is as it was


def test_equal_content_has_one_key_and_other_content_another(workflow: Workflow) -> None:
    text, number, default, other = workflow.jobs([row(value="1"), row(value=1.0), row(), row(value=2)])
    assert text.key == number.key == default.key != other.key


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"Sorce.value": [1]}, "g.json, line 3: no nodes are called 'Sorce'"),
        ({"1.vlaue": [1]}, "g.json, line 3: node 1 (Source) has no input vlaue"),
        ({"value": [1]}, "g.json, line 3: 'value' is not understood"),
        ({"1.value": [1, 11]}, "from 0 to 10"),
        ({"1.mode": ["three"]}, "one of one, two"),
        ({"Idle.value": [2]}, "g.json, line 3: Idle.value has no effect"),
        ({"2.number": [2]}, "g.json, line 3: 2.number comes from another node"),
    ],
)
def test_a_wrong_grid_is_told_with_its_line(
    workflow: Workflow, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "g.json"
    path.write_text('{\n "1.seed": [0],\n' + json.dumps(settings)[1:])
    with pytest.raises(LikenessError) as caught:
        list(workflow.jobs(read_grid(path)))
    assert problem in str(caught.value) and "g.json, line" in str(caught.value)
    assert "Nothing has been run" in str(caught.value)


def test_every_line_with_a_missing_file_is_told_at_once(plain: host.Plain, tmp_path: Path) -> None:
    plain.input.mkdir()
    Image.new("RGB", (2, 2)).save(plain.input / "a.png")
    table = tmp_path / "t.csv"
    table.write_text("LoadImage.image\na.png\nb.png\na.png\nc.png\n")
    with pytest.raises(LikenessError) as caught:
        list(pictures().jobs(read_table(table)))
    told = str(caught.value)
    assert "t.csv, line 3" in told and "b.png" in told and "t.csv, line 5" in told and "line 4" not in told


def test_files_are_named_apart_unless_the_job_names_them(plain: host.Plain) -> None:
    plain.input.mkdir()
    Image.new("RGB", (2, 2)).save(plain.input / "a.png")
    workflow = pictures()
    named = Row(settings={"2.filename_prefix": "{subject}/{job}"}, subject="rex")
    own, chosen = workflow.jobs([Row(settings={}, subject="rex"), named])
    assert workflow.prompt(own)["2"]["inputs"]["filename_prefix"] == f"x/y-{own.key[:12]}"
    assert workflow.prompt(chosen)["2"]["inputs"]["filename_prefix"] == f"rex/{chosen.key[:12]}"


def test_an_unknown_node_names_the_target() -> None:
    nodes = {"1": Node("1", "KSampler")}
    with pytest.raises(LikenessError, match=r"node 1 \(KSampler\) is not a node that http://a knows"):
        Workflow(nodes, Catalogue(where="http://a", schemas=SCHEMAS), "w.json")


def test_changed_photos_are_another_job(tmp_path: Path) -> None:
    classes = runner.known_classes()
    catalogue = Catalogue(where="here", schemas=runner.schemas_of(classes), classes=classes)
    photos = tmp_path / "rex"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    words = {"folder": str(photos), "class_noun": "dog", "identifier": "sks", "description": ""}
    nodes = {
        "1": Node("1", "LikenessLoadSubject", words),
        "2": Node("2", "LikenessReport", {"title": "x", "name": "x", "subject": Link("1", 0)}),
    }

    def key() -> str:
        (job,) = Workflow(nodes, catalogue, "w.json").jobs([Row(settings={})])
        return job.key

    before = key()
    assert key() == before
    Image.new("RGB", (9, 9)).save(photos / "b.png")
    assert key() != before

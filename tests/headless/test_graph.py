"""Both workflow formats become the same graph."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.headless import runner
from likeness.headless.graph import Link, load, parse, to_api
from likeness_stubs import CLASSES, SCHEMAS

SOURCE_VALUES = [3, 7, "randomize", 0.5, "two", False, "hi"]
NUMBER_OUT = {"name": "number", "type": "NUMBER"}


def page(nodes: list[dict[str, Any]], links: list[Any]) -> dict[str, Any]:
    return {"nodes": nodes, "links": links, "groups": [], "version": 0.4}


def source(id: int = 1, **more: Any) -> dict[str, Any]:
    outputs = [{**NUMBER_OUT, "links": [1]}, {"name": "said", "type": "STRING"}]
    return {"id": id, "type": "Source", "outputs": outputs, "widgets_values": SOURCE_VALUES, **more}


def show(id: int = 2, link: int | None = 1) -> dict[str, Any]:
    return {"id": id, "type": "Show", "inputs": [{"name": "number", "type": "NUMBER", "link": link}]}


def add(id: int, left: int | None, right: int | None, **more: Any) -> dict[str, Any]:
    inputs = [
        {"name": "left", "type": "NUMBER", "link": left},
        {"name": "right", "type": "NUMBER", "link": right},
    ]
    return {"id": id, "type": "Add", "inputs": inputs, "outputs": [{"name": "sum", "type": "NUMBER"}], **more}


def test_widget_values_are_named_by_the_schema() -> None:
    graph = parse(page([source(title="From here"), show()], [[1, 1, 0, 2, 0, "NUMBER"]]), SCHEMAS)
    assert graph["1"].inputs == {
        "value": 3, "seed": 7, "scale": 0.5, "mode": "two", "on": False, "text": "hi",
    }  # fmt: skip
    assert graph["1"].title == "From here"
    assert graph["2"].inputs == {"number": Link("1", 0)}


@pytest.mark.parametrize("link", [[1, 1, 0, 2, 0, "NUMBER"], {"id": 1, "origin_id": 1, "origin_slot": 0}])
def test_links_of_old_and_new_pages(link: Any) -> None:
    assert parse(page([source(), show()], [link]), SCHEMAS)["2"].inputs["number"] == Link("1", 0)


def test_values_by_name_and_values_that_are_missing() -> None:
    by_name = parse(page([source(widgets_values={"value": 4})], []), SCHEMAS)["1"].inputs
    short = parse(page([source(widgets_values=[4])], []), SCHEMAS)["1"].inputs
    assert by_name == short and by_name["value"] == 4 and by_name["text"] == "hello"


def test_a_linked_widget_takes_the_link() -> None:
    say = {
        "id": 2,
        "type": "Say",
        "inputs": [{"name": "text", "type": "STRING", "link": 1, "widget": {"name": "text"}}],
        "widgets_values": ["typed"],
    }
    assert parse(page([source(), say], [[1, 1, 1, 2, 0, "STRING"]]), SCHEMAS)["2"].inputs["text"] == Link(
        "1", 1
    )
    say["inputs"][0]["link"] = None  # type: ignore[index]
    assert parse(page([say], []), SCHEMAS)["2"].inputs["text"] == "typed"


def test_reroutes_primitives_and_notes_leave_only_their_meaning() -> None:
    reroute = {"id": 5, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}], "outputs": [{}]}
    primitive = {
        "id": 6,
        "type": "PrimitiveNode",
        "outputs": [{}],
        "widgets_values": ["from primitive", "fixed"],
    }
    say = {"id": 7, "type": "Say", "inputs": [{"name": "text", "link": 3, "widget": {"name": "text"}}]}
    notes = [{"id": 8, "type": "Note", "widgets_values": ["x"]}, {"id": 9, "type": "MarkdownNote"}]
    links = [[1, 1, 0, 5, 0, "*"], [2, 5, 0, 2, 0, "*"], [3, 6, 0, 7, 0, "STRING"]]
    graph = parse(page([source(), show(link=2), reroute, primitive, say, *notes], links), SCHEMAS)
    assert sorted(graph) == ["1", "2", "7"]
    assert graph["2"].inputs["number"] == Link("1", 0)
    assert graph["7"].inputs["text"] == "from primitive"


def test_a_bypassed_node_hands_on_and_a_muted_one_does_not() -> None:
    links = [[1, 1, 0, 3, 1, "NUMBER"], [2, 3, 0, 2, 0, "NUMBER"]]
    bypassed = parse(page([source(), add(3, None, 1, mode=4), show(link=2)], links), SCHEMAS)
    assert sorted(bypassed) == ["1", "2"]
    assert "number" not in bypassed["2"].inputs  # the input in the same place is open
    links = [[1, 1, 0, 3, 0, "NUMBER"], [2, 3, 0, 2, 0, "NUMBER"]]
    bypassed = parse(page([source(), add(3, 1, None, mode=4), show(link=2)], links), SCHEMAS)
    assert bypassed["2"].inputs["number"] == Link("1", 0)
    muted = parse(page([source(), add(3, 1, None, mode=2), show(link=2)], links), SCHEMAS)
    assert sorted(muted) == ["1", "2"] and "number" not in muted["2"].inputs


def test_the_api_form_reads_back_as_the_same_graph() -> None:
    graph = parse(page([source(), show()], [[1, 1, 0, 2, 0, "NUMBER"]]), SCHEMAS)
    api = to_api(graph)
    again = parse(json.loads(json.dumps(api)), SCHEMAS)
    assert to_api(again) == api
    assert {k: (n.class_type, n.inputs) for k, n in again.items()} == {
        k: (n.class_type, n.inputs) for k, n in graph.items()
    }
    assert parse({"prompt": api}, SCHEMAS).keys() == graph.keys()


def test_what_a_page_exports_beside_the_inputs_is_dropped() -> None:
    """After a run the page's API form has the text that Preview as Text has shown."""
    api = {
        "1": {"class_type": "PreviewAny", "inputs": {"preview": "a caption", "source": ["2", 0]}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "a.png", "upload": "image"}},
    }
    graph = parse(api, SCHEMAS)
    assert graph["1"].inputs == {"source": Link("2", 0)} and graph["2"].inputs == {"image": "a.png"}


def test_a_list_that_is_a_value_is_no_link() -> None:
    api = {"1": {"class_type": "Say", "inputs": {"text": {"__value__": ["a", 0]}}}}
    graph = parse(api, SCHEMAS)
    assert graph["1"].inputs["text"] == ["a", 0]
    assert to_api(graph)["1"]["inputs"]["text"] == {"__value__": ["a", 0]}


def test_a_group_node_is_named() -> None:
    with pytest.raises(LikenessError, match="node 4 is a group node"):
        parse(page([{"id": 4, "type": "workflow>old"}], []), SCHEMAS)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '"text"', '{"1": {"no_class": 1}}', "\udcff"),
        *('{"nodes": [{"type": "x"}], "links": []}', '{"nodes": [], "links": [[1]]}'),
    ],
)
def test_what_is_no_workflow_is_said_to_be_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(LikenessError, match=r"w\.json|workflow"):
        load(path, SCHEMAS)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="There is no workflow file"):
        load(tmp_path / "none.json", SCHEMAS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
node_like = st.fixed_dictionaries(
    {"id": st.integers(1, 3), "type": st.sampled_from([*CLASSES, "Reroute", "PrimitiveNode", "Nope"])},
    optional={"mode": st.sampled_from([0, 2, 4]), "inputs": json_values, "outputs": json_values,
              "widgets_values": json_values},
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(node_like, max_size=4), json_values)
def test_any_json_gives_a_graph_or_one_clear_error(nodes: Any, links: Any) -> None:
    with suppress(LikenessError):
        runner.check(parse({"nodes": nodes, "links": links}, SCHEMAS), CLASSES)


QUICKSTART = Path(__file__).parents[2] / "workflows"


def test_the_shipped_api_form_is_the_page_form_converted() -> None:
    """``likeness api workflows/quickstart.json > workflows/api/quickstart.json``."""
    schemas = runner.schemas_of(runner.known_classes())
    pages = sorted(QUICKSTART.glob("*.json"))
    assert pages
    for path in pages:
        shipped = json.loads((QUICKSTART / "api" / path.name).read_text(encoding="utf-8"))
        assert to_api(load(path, schemas)) == shipped


def test_the_shipped_workflows_pass_every_check() -> None:
    classes = runner.known_classes()
    for path in [*QUICKSTART.glob("*.json"), *QUICKSTART.glob("api/*.json")]:
        assert runner.check(load(path, runner.schemas_of(classes)), classes)


def test_nothing_in_a_shipped_page_overlaps() -> None:
    for path in QUICKSTART.glob("*.json"):
        boxes = [
            (*n["pos"], *n["size"], n["id"]) for n in json.loads(path.read_text(encoding="utf-8"))["nodes"]
        ]
        for i, (x, y, w, h, a) in enumerate(boxes):
            for x2, y2, w2, h2, b in boxes[i + 1 :]:
                apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 - 30 or y2 + h2 <= y - 30  # 30: the title
                assert apart, (a, b)

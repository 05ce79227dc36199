"""What is inside a subgraph runs as if it were outside, under the ids that ComfyUI gives it."""

from __future__ import annotations

from typing import Any

import pytest
from likeness.core.errors import LikenessError
from likeness.headless.graph import Link, parse
from likeness_stubs import SCHEMAS

SUM = {"name": "sum", "type": "NUMBER"}


def socket(name: str, link: int | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "NUMBER", "link": link, **more}


def link(number: int, start: int, slot: int, end: int, place: int) -> dict[str, Any]:
    ends = {"origin_id": start, "origin_slot": slot, "target_id": end, "target_slot": place}
    return {"id": number, **ends, "type": "NUMBER"}


# Adds its input to a number of its own: -10 -> 1, 2 -> 1, 1 -> -20.
INSIDE: dict[str, Any] = {
    "id": "plus",
    "inputs": [{"name": "in"}],
    "outputs": [{"name": "out"}],
    "nodes": [
        {"id": 1, "type": "Add", "inputs": [socket("left", 5), socket("right", 6)], "outputs": [SUM]},
        {"id": 2, "type": "Source", "inputs": [], "widgets_values": [4]},
    ],
    "links": [link(5, -10, 0, 1, 0), link(6, 2, 0, 1, 1), link(7, 1, 0, -20, 0)],
}


def workflow(nodes: list[dict[str, Any]], links: list[Any], *inside: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": nodes, "links": links, "definitions": {"subgraphs": list(inside)}}


def folded(number: int, came: int | None, **more: Any) -> dict[str, Any]:
    return {"id": number, "type": "plus", "inputs": [socket("in", came)], "outputs": [SUM], **more}


SOURCE = {"id": 8, "type": "Source", "inputs": [], "widgets_values": [1]}


def show(came: int) -> dict[str, Any]:
    return {"id": 9, "type": "Show", "inputs": [socket("number", came)]}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_one_after_the_other(order: tuple[int, ...]) -> None:
    nodes = [SOURCE, folded(20, 1), folded(30, 2), show(3)]
    links = [[1, 8, 0, 20, 0, "NUMBER"], [2, 20, 0, 30, 0, "NUMBER"], [3, 30, 0, 9, 0, "NUMBER"]]
    graph = parse(workflow([nodes[n] for n in order], links, INSIDE), SCHEMAS)
    assert set(graph) == {"8", "20:1", "20:2", "30:1", "30:2", "9"}
    assert graph["20:1"].inputs == {"left": Link("8", 0), "right": Link("20:2", 0)}
    assert graph["30:1"].inputs == {"left": Link("20:1", 0), "right": Link("30:2", 0)}
    assert graph["9"].inputs == {"number": Link("30:1", 0)}
    assert graph["20:2"].inputs["value"] == 4


def test_one_in_the_other() -> None:
    outer = {
        "id": "twice",
        "inputs": [{"name": "in"}],
        "nodes": [folded(3, 1), folded(4, 2)],
        "links": [link(1, -10, 0, 3, 0), link(2, 3, 0, 4, 0), link(3, 4, 0, -20, 0)],
    }
    nodes = [SOURCE, folded(7, 1, type="twice"), show(2)]
    links = [[1, 8, 0, 7, 0, "NUMBER"], [2, 7, 0, 9, 0, "NUMBER"]]
    graph = parse(workflow(nodes, links, INSIDE, outer), SCHEMAS)
    assert graph["7:3:1"].inputs["left"] == Link("8", 0)
    assert graph["7:4:1"].inputs["left"] == Link("7:3:1", 0)
    assert graph["9"].inputs == {"number": Link("7:4:1", 0)}


def test_what_nothing_feeds_and_what_is_muted() -> None:
    graph = parse(workflow([folded(20, None)], [], INSIDE), SCHEMAS)
    assert "left" not in graph["20:1"].inputs
    assert parse(workflow([folded(20, None, mode=2)], [], INSIDE), SCHEMAS) == {}


def test_a_bypassed_one_hands_its_input_on() -> None:
    nodes = [SOURCE, folded(20, 1, mode=4), show(2)]
    links = [[1, 8, 0, 20, 0, "NUMBER"], [2, 20, 0, 9, 0, "NUMBER"]]
    graph = parse(workflow(nodes, links, INSIDE), SCHEMAS)
    assert set(graph) == {"8", "9"} and graph["9"].inputs == {"number": Link("8", 0)}


def test_a_widget_on_its_edge_counts_inside() -> None:
    inside = {
        "id": "said",
        "inputs": [{"name": "value"}],
        "nodes": [
            {
                "id": 2,
                "type": "Source",
                "inputs": [socket("value", 1, widget={"name": "value"})],
                "widgets_values": [4],
            }
        ],
        "links": [link(1, -10, 0, 2, 0)],
    }
    node = {
        "id": 5,
        "type": "said",
        "inputs": [socket("value", None, widget={"name": "value"})],
        "widgets_values": [11],
    }
    assert parse(workflow([node], [], inside), SCHEMAS)["5:2"].inputs["value"] == 11


def test_one_that_holds_itself_is_told() -> None:
    inside = {**INSIDE, "nodes": [folded(3, None)], "links": []}
    with pytest.raises(LikenessError, match="holds itself"):
        parse(workflow([folded(20, None)], [], inside), SCHEMAS)


def test_one_that_grows_without_measure_is_told() -> None:
    levels = [
        {"id": f"level {n}", "nodes": [folded(m, None, type=f"level {n + 1}") for m in range(30)]}
        for n in range(4)
    ]
    with pytest.raises(LikenessError, match="unfolds to more than"):
        parse(workflow([folded(1, None, type="level 0")], [], *levels, INSIDE | {"id": "level 4"}), SCHEMAS)

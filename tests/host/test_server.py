"""The harness itself, on nodes of ComfyUI's own: a graph runs, a bad one is refused, a stop stops."""

from __future__ import annotations

from typing import Any

import pytest
from comfyui_server import ComfyServer, Rejected

Graph = dict[str, dict[str, Any]]


def blank(width: int = 16) -> Graph:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 16, "batch_size": 1, "color": 255},
        },
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_a_graph_runs_and_is_followed(server: ComfyServer) -> None:
    run = server.run(blank())
    assert run.ok
    assert [image["type"] for image in run.outputs["2"]["images"]] == ["temp"]
    assert run.of_type("execution_start")
    assert [e["node"] for e in run.of_type("executed")] == ["2"]


def test_a_bad_graph_is_refused_with_its_node(server: ComfyServer) -> None:
    with pytest.raises(Rejected) as refused:
        server.queue(blank(width=-5))
    assert set(refused.value.node_errors) == {"1"}
    assert refused.value.node_errors["1"]["errors"][0]["extra_info"]["input_name"] == "width"


def test_the_page_opens(page: Any) -> None:
    assert page.problems == []
    assert "ComfyUI" in page.title()

"""The harness itself, on nodes of ComfyUI's own: a graph runs, a bad one is refused, a stop stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.comfyui import ComfyServer, Rejected, comfy_run
from likeness.headless.comfyui import NoComfyUI

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


def test_a_silent_prompt_is_stopped(server: ComfyServer) -> None:
    endless = {"1": {"class_type": "TestSleep", "inputs": {"seconds": 60.0}}}
    with pytest.raises(TimeoutError):
        server.run(endless, quiet_s=0.5)
    assert server.run(blank()).ok


def test_comfy_run_runs_a_workflow_file(server: ComfyServer, tmp_path: Path) -> None:
    file = tmp_path / "blank.json"
    file.write_text(json.dumps(blank()))
    try:
        code, lines = comfy_run(server, file)
    except NoComfyUI as missing:
        pytest.skip(str(missing))
    assert code == 0
    assert lines[-1]["type"] == "envelope" and lines[-1]["ok"], lines[-1]


def test_the_page_opens(page: Any) -> None:
    assert page.problems == []
    assert "ComfyUI" in page.title()

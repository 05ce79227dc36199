"""A batch on a real ComfyUI: nodes that only ComfyUI has, checked by its own word for them, run once each."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.comfyui import ComfyServer
from likeness.headless import cli
from likeness.nodes import host


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = host.current
    blank = {"width": 16, "height": 16, "batch_size": 1, "color": 255}
    save = {"images": ["1", 0], "filename_prefix": "batch/blank"}
    path = tmp_path / "blank.json"
    path.write_text(
        json.dumps(
            {
                "1": {"class_type": "EmptyImage", "inputs": blank},
                "2": {"class_type": "SaveImage", "inputs": save},
            }
        )
    )
    yield path
    host.use(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def batch(workflow: Path, server: ComfyServer, grid: dict[str, Any]) -> int:
    (workflow.parent / "grid.json").write_text(json.dumps(grid))
    return cli.main(["batch", str(workflow), "--grid", "grid.json", "--server", server.url, "--json"])


def test_every_job_of_a_grid_runs_once(server: ComfyServer, workflow: Path) -> None:
    grid = {"EmptyImage.width": [16, 24, 32], "EmptyImage.color": [0, 255]}
    assert batch(workflow, server, grid) == 0
    results = json.loads((workflow.parent / "output/likeness/batches/blank/results.json").read_text())
    assert results["counts"]["done"] == 6
    made = [item["path"] for job in results["jobs"] for item in job["made"]]
    assert len(set(made)) == 6
    assert all((server.base / "output" / path).is_file() for path in made)
    files = sorted((server.base / "output" / "batch").iterdir())
    assert batch(workflow, server, grid) == 0
    assert sorted((server.base / "output" / "batch").iterdir()) == files


def test_a_value_that_the_server_would_refuse_runs_nothing(
    server: ComfyServer, workflow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(workflow, server, {"EmptyImage.width": [16, -5]}) == 1
    out = capsys.readouterr().out
    assert "from 1 to" in out and "grid.json, line 1" in out and "job_start" not in out

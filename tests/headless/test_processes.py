"""``accelerate launch`` with the command line: two processes, one result, and a stop that loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.headless import runner
from likeness.headless.graph import Graph, Link, Node, to_api
from PIL import Image

STEPS = 30
COMMAND = ["-m", "likeness.headless.cli", "run"]


@pytest.fixture
def workflow(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """Two photos, the tiny model, and a trainer whose other widgets stay as they are."""
    for n in range(2):
        pixels_HW3 = torch.rand(48, 48, 3, generator=torch.Generator().manual_seed(n)).mul(255).byte()
        (tmp_path / "finn").mkdir(exist_ok=True)
        Image.fromarray(pixels_HW3.numpy()).save(tmp_path / "finn" / f"{n}.png")
    photos = {"folder": str(tmp_path / "finn"), "class_noun": "fish"}
    trainer = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "sample_every": 0}
    graph: Graph = {
        "1": node("1", "LikenessLoadSubject", **photos),
        "2": node("2", "LikenessLoadBaseModel", path=str(tiny_pipeline)),
        "3": node("3", "LikenessTrainTextualInversion", **trainer, base=Link("2", 0), subject=Link("1", 0)),
    }
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(to_api(graph)))
    return path


def node(key: str, kind: str, **inputs: Any) -> Node:
    specs = runner.known_classes()[kind].GET_SCHEMA().inputs
    defaults = {s.id: s.default for s in specs if getattr(s, "default", None) is not None}
    return Node(key, kind, defaults | inputs)


def command(workflow: Path, output: Path, *launcher: str) -> list[str]:
    return [sys.executable, *launcher, *COMMAND, str(workflow), "--output", str(output), "--json"]


def losses(output: Path) -> list[float]:
    (history,) = output.glob("likeness/runs/textual_inversion-*/history.jsonl")
    return [json.loads(line)["loss"] for line in history.read_text().splitlines()]


def test_accelerate_launch_stops_goes_on_and_ends_as_one_process(workflow: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0"]
    together = command(workflow, tmp_path / "together", *launcher)
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}  # none of this user's own settings
    with subprocess.Popen(together, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"event": "step"' in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert '"event": "stopped"' in rest and '"exit_code": 130' in rest
    assert 0 < len(losses(tmp_path / "together")) < STEPS
    again = subprocess.run(together, capture_output=True, text=True, env=env, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    events = [json.loads(line) for line in again.stdout.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events].count("finished") == 1  # one of the two tells
    subprocess.run(command(workflow, tmp_path / "alone"), check=True, stdout=subprocess.DEVNULL, env=env)
    assert losses(tmp_path / "together") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)

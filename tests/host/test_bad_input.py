"""What the API may bring: each mistake is told on its node in plain words, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.comfyui import BOTH, ComfyServer, Run
from likeness.benchmarks.host_graphs import bad_prompts, node, pictures, training, write_foreign_lora
from likeness.benchmarks.host_soak import unclear_answer
from likeness.core.hashing import hash_file
from likeness.core.lock import run_lock
from likeness.headless.comfyui import Install

NAMES = tuple(bad_prompts(""))


@pytest.fixture(scope="module")
def foreign(server: ComfyServer) -> str:
    return write_foreign_lora(server.base / "models")


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_told_on_its_node(server: ComfyServer, foreign: str, name: str) -> None:
    before = everything(server.base)
    assert unclear_answer(server, bad_prompts(foreign)[name]) == ""
    written = {path for path in everything(server.base) - before if path.suffix != ".pyc"}
    assert not [path for path in written if not path.is_relative_to(server.base / "output" / "likeness")]
    assert not [path for path in written if "evil" in path.name]


def everything(base: Path) -> set[Path]:
    """Above the server's folder too, where a name that climbs would lead."""
    return {path for path in base.parent.rglob("*") if path.is_file() and ".db" not in path.name}


def test_the_same_graphs_without_the_mistake_run(server: ComfyServer, foreign: str) -> None:
    """Guards the tests above: what is wrong is the one thing that was changed."""
    for name in ("out of range", "a name that climbs"):
        run = server.run(bad_prompts(foreign)[name].graph)
        assert run.ok, run.error


def test_an_interrupted_download_is_told_where_the_model_is_chosen(
    server: ComfyServer, tiny_pipeline: Path
) -> None:
    folder = server.base / "models" / "diffusers" / "half-there"
    shutil.copytree(tiny_pipeline, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    try:
        graph = pictures()
        graph["base"] = node("LikenessLoadBaseModel", model="diffusers/half-there")
        run = server.run(graph)
    finally:
        shutil.rmtree(folder)
    assert run.error["node_id"] == "base"
    assert weights.name in run.error["exception_message"]
    assert run.error["exception_type"].endswith("LikenessError")


def test_two_cannot_train_one_run(server: ComfyServer) -> None:
    """Another process holds it, as a second server on the same folder would."""
    graph = training(seed=77)
    before = learned(server)
    assert server.run(graph).ok
    [name] = learned(server).keys() - before.keys()
    folder = server.base / "output" / "likeness" / "runs" / name.partition("/")[0]
    shutil.rmtree(folder)
    server.free()
    with run_lock(folder):
        run = server.run(graph)
    assert run.error["node_id"] == "train"
    assert "in use by process" in run.error["exception_message"]
    assert server.run(graph).ok


@pytest.fixture
def own_server(comfyui: Install, tmp_path: Path) -> Iterator[ComfyServer]:
    """One that may be killed."""
    running = ComfyServer(comfyui, tmp_path / "comfyui", packs=BOTH)
    running.start()
    yield running
    running.stop()


def test_a_server_that_dies_in_mid_run_loses_nothing(server: ComfyServer, own_server: ComfyServer) -> None:
    graph = training(seed=78, steps=40)
    assert server.run(graph).ok
    with own_server.listen() as listener:
        run = Run(own_server.queue(graph, listener.client_id))
        for event in listener.follow(run):
            if event["type"] == "progress_text" and event["data"]["text"].startswith("step"):
                own_server.kill()
                break
    assert not learned(own_server)
    own_server.start()
    assert own_server.run(graph).ok
    [name] = learned(own_server)
    assert learned(own_server)[name] == learned(server)[name]


def learned(server: ComfyServer) -> dict[str, Any]:
    runs = server.base / "output" / "likeness" / "runs"
    return {p.relative_to(runs).as_posix(): hash_file(p) for p in runs.glob("*/concept/*.safetensors")}

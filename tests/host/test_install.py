"""The registry's archive: it validates, holds what a user needs and no more, and works in a fresh ComfyUI."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.host_graphs import pictures
from likeness.benchmarks.host_install import comfy, packed, tracked
from likeness.core.errors import LikenessError
from likeness.headless import cli
from likeness.headless.comfyui import Install, NoComfyUI
from likeness.nodes import host

USED = {".git", "custom_nodes", "input", "output", "user", "temp"}  # what makes a ComfyUI somebody's


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return tracked(tmp_path_factory.mktemp("source") / "likeness")
    except LikenessError as missing:
        pytest.skip(f"NOT CHECKED. {missing}")


@pytest.fixture(scope="module")
def archive(comfyui: Install, source: Path) -> Path:
    return by_comfy_cli(packed, comfyui, source)


def by_comfy_cli(work: Callable[..., Any], *given: Any) -> Any:
    try:
        return work(*given)
    except NoComfyUI as missing:
        pytest.skip(str(missing))


def test_it_validates_without_a_word_of_warning(comfyui: Install, source: Path) -> None:
    said = by_comfy_cli(comfy, comfyui, source, "node", "validate")
    assert "passed" in said and "warning" not in said.lower()


def test_it_holds_what_a_user_needs_and_no_more(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {"__init__.py", "requirements.txt", "pyproject.toml", "LICENSE", "nodes", "workflows", "js"} < tops
    assert not tops & {"tests", "benchmarks", "docs", "Makefile", ".ci", ".gitignore"}
    assert "backbones/toybox/weights/unet/diffusion_pytorch_model.safetensors" in names
    assert archive.stat().st_size <= 42e6


def test_it_works_in_a_fresh_comfyui(
    comfyui: Install,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By ``likeness run --server local``, which starts it, checks by its schemas, queues and stops it."""
    fresh = tmp_path / "ComfyUI"
    shutil.copytree(comfyui.path, fresh, ignore=lambda at, _: USED if Path(at) == comfyui.path else set())
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(fresh / "custom_nodes" / "likeness")
    monkeypatch.setenv("COMFYUI_PATH", str(fresh))
    monkeypatch.setenv("COMFYUI_PYTHON", str(comfyui.python))
    workflow = tmp_path / "picture.json"
    graph = pictures()
    graph["show"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["draw", 0], "filename_prefix": "fresh"},
    }
    workflow.write_text(json.dumps(graph))
    assert likeness_run(workflow) == 0, capsys.readouterr().out
    assert [path.name for path in (fresh / "output").glob("fresh*.png")]
    assert "benchmarks" not in {path.name for path in (fresh / "custom_nodes" / "likeness").iterdir()}


def likeness_run(workflow: Path) -> int:
    import signal

    handlers: dict[Any, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    before = host.current
    try:
        return cli.main(["run", str(workflow), "--server", "local", "--json"])
    finally:
        host.use(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)

"""The same workflow file by three hosts: the embedded runner, ``comfy run`` on a real server, and the page.

Each on empty folders, with one thread: bits are promised equal only under equal threads. The page opens the
template as its own browser of templates does, turns it into a prompt and queues it. Three quickstarts: some
minutes each on a quiet machine; quick: the same graph with a few steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..core.hashing import hash_file
from ..headless.comfyui import Install
from ..headless.graph import AFTER_GENERATE, has_widget, in_page_order
from ..headless.runner import known_classes, schemas_of
from . import bar
from .comfyui import PACK, ComfyServer, comfy_run
from .study_browsers import CHROMIUM, FLAGS

WORKFLOW = PACK / "workflows" / "quickstart.json"
TIMEOUT_S = 4 * 3600.0
# The quick form, by node.
FEW: Mapping[str, Mapping[str, Any]] = {
    "LikenessPriorPreservation": {"num_images": 2, "steps": 2},
    "LikenessHeldOutMonitor": {"every": 100, "steps": 1},
    "LikenessTrainDreamBooth": {"steps": 3, "sample_every": 0},
    "LikenessTrainTextualInversion": {"steps": 3, "sample_every": 0},
    "LikenessGenerate": {"images_per_prompt": 1, "steps": 1},
}
OPEN = """async (given) => {
    const file = '/api/workflow_templates/likeness/quickstart.json';
    await app.loadGraphData(given ?? await (await fetch(file)).json());
    return app.graph._nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type);
}"""


def run(quick: bool) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process here
    install = Install.find()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        workflow = smaller(WORKFLOW, scratch / "quickstart.json", FEW) if quick else WORKFLOW
        found = {"embedded": embedded(install, scratch, workflow)}
        with ComfyServer(install, scratch / "server") as server:
            code, lines = comfy_run(server, workflow, "--timeout", "3600", timeout_s=TIMEOUT_S)
            if code:
                raise RuntimeError(f"comfy run ended with {code}: {lines[-1]}")
            found["comfy run"] = artifacts(server.base / "output")
        with ComfyServer(install, scratch / "page") as server:
            missing = by_page(server, workflow if quick else None)
            found["page"] = artifacts(server.base / "output")
    first = found["embedded"]
    same = {name: sum(other.get(k) == v for k, v in first.items()) for name, other in found.items()}
    return {
        "numbers": {"artifacts": first, "equal to the embedded runner's": same},
        "bars": [
            bar("artifacts of the embedded runner", value=len(first), op=">=", bar=2),
            bar("equal by comfy run", value=same["comfy run"], op="==", bar=len(first)),
            bar("equal by the page", value=same["page"], op="==", bar=len(first)),
            bar("nodes that the page misses", value=len(missing), op="==", bar=0),
        ],
        "seeds": [0],
    }


def artifacts(output: Path) -> dict[str, str]:
    """What was learned, by run and file: sha256."""
    runs = output / "likeness" / "runs"
    return {
        p.relative_to(runs).as_posix(): hash_file(p) for p in sorted(runs.glob("*/concept/*.safetensors"))
    }


def embedded(install: Install, scratch: Path, workflow: Path) -> dict[str, str]:
    """By ``likeness run`` in the server's own interpreter: bits are promised for one version of torch."""
    (scratch / "likeness").symlink_to(PACK, target_is_directory=True)
    program = [str(install.python), "-m", "likeness.headless.cli"]
    command = [*program, "run", str(workflow), "--output", str(scratch / "embedded")]
    environment = install.environment(PYTHONPATH=str(scratch))
    done = subprocess.run(
        command, env=environment, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"likeness run ended with {done.returncode}: {done.stderr[-2000:]}")
    return artifacts(scratch / "embedded")


def by_page(server: ComfyServer, workflow: Path | None) -> list[str]:
    """Open the template (or a file) in a browser, run it to its end; the nodes that it misses."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise LikenessError("There is no Chromium to open the page in", fix="apt-get install -y chromium")
    server.post("/api/settings", {"Comfy.TutorialCompleted": True})  # no welcome dialog
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(server.url, wait_until="commit")
        page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
        given = json.loads(workflow.read_text(encoding="utf-8")) if workflow else None
        missing: list[str] = page.evaluate(OPEN, given)
        page.evaluate("() => app.queuePrompt(0, 1)")
        _wait_for_the_end(server)
        browser.close()
    return missing


def _wait_for_the_end(server: ComfyServer) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for entry in dict(server.get("/history")).values():
            if entry["status"]["status_str"] != "success":
                raise RuntimeError(f"The page's prompt failed: {entry['status']}")
            return
        time.sleep(1)
    raise TimeoutError("The page's prompt did not end")


def smaller(source: Path, target: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """A copy of a workflow in the page's format with other values in the widgets of some nodes."""
    page = json.loads(source.read_text(encoding="utf-8"))
    schemas = schemas_of(known_classes())
    for node in page["nodes"]:
        if node["type"] in changes:
            _set_widgets(node, in_page_order(schemas[node["type"]]), changes[node["type"]])
    target.write_text(json.dumps(page), encoding="utf-8")
    return target


def _set_widgets(node: dict[str, Any], inputs: Sequence[Any], values: Mapping[str, Any]) -> None:
    place = 0
    for widget in filter(has_widget, inputs):
        given = node["widgets_values"]
        given[place] = values.get(widget.id, given[place])
        after = getattr(widget, "control_after_generate", None) and given[place + 1] in AFTER_GENERATE
        place += 2 if after else 1

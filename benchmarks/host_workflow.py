"""Every example workflow by the embedded runner, ``comfy run``, ``likeness run --server``, and the page.

Each begins on empty folders, with one thread: bits are promised equal only under equal threads. The page
opens the template, looks for missing nodes, queues it, and must show what it made; then again with the Vue
renderer, when only the trainings are found finished. Trainings are cut to a few steps: each road takes them
alike, and ten workflows four times would last some hours otherwise. ``host_quickstart`` runs one at its own
length. Half an hour on a quiet machine; quick: the quickstart alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.hashing import hash_bytes, hash_file
from ..headless.comfyui import Install
from ..headless.graph import AFTER_GENERATE, has_widget, in_page_order
from ..headless.runner import known_classes, schemas_of
from . import bar
from .comfyui import PACK, ComfyServer, comfy_run
from .page import Page, chromium

WORKFLOWS = PACK / "workflows"
QUICKSTART = WORKFLOWS / "quickstart.json"
TIMEOUT_S = 4 * 3600.0
SEEN_S = 120.0  # for pictures and curves to appear
EMBEDDED, PAGE = "embedded", "page"
OTHERS = ("comfy run", "likeness run --server", PAGE)
RENDERERS = ("LiteGraph", "Vue")
# What is cut, by node.
FEW: Mapping[str, Mapping[str, Any]] = {
    "LikenessPriorPreservation": {"num_images": 2, "steps": 2},
    "LikenessHeldOutMonitor": {"every": 100, "steps": 1},
    "LikenessTrainDreamBooth": {"steps": 3, "sample_every": 0},
    "LikenessTrainTextualInversion": {"steps": 3, "sample_every": 0},
    "LikenessTrainNeTI": {"steps": 3, "sample_every": 0},
    "LikenessTrainCustomDiffusion": {"steps": 3, "sample_every": 0},
    "LikenessViewAttractor": {"pictures": 1, "steps": 1},
    "LikenessIdentityGuard": {"every": 1, "images_per_prompt": 1, "steps": 1},
    "LikenessAlign": {
        **{"steps": 1, "denoising_steps": 2, "images_per_epoch": 2, "images_per_prompt": 2},
        **{"batch_size": 2, "rows_per_forward": 2},
    },
    "LikenessBuildSceneDataset": {"count": 4},
    "LikenessLoadDataset": {"most_subjects": 1},
    "LikenessLoadPromptBenchmark": {"most_subjects": 1},
    "LikenessBenchmarkMethod": {"train_steps": 2, "captions_per_photo": 1, "steps": 1},
    "LikenessBenchmarkPrompts": {"train_steps": 2, "align_steps": 1, "prompts_per_subject": 2, "steps": 1},
    "LikenessGenerate": {"images_per_prompt": 1, "steps": 1},
}

ABOUT = ("run.json", "workflow.json")

Artifacts = Counter[str]  # "name: hash"


def run(quick: bool) -> dict[str, Any]:
    names = [QUICKSTART.stem] if quick else sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    return measured(names, few=True)


def measured(names: Sequence[str], *, few: bool) -> dict[str, Any]:
    """Some workflows by every road. ``few``: with the few steps of ``FEW``."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process here
    install = Install.find()
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        ComfyServer(install, Path(folder) / "server") as server,
        Page.opened(browser, server) as page,
    ):
        hosts = Hosts(server, page, Path(folder))
        rows = {name: hosts.row(name, few=few) for name in names}
    num = len(names)
    equal = {other: sum(row["equal"][other] == row["artifacts"] for row in rows.values()) for other in OTHERS}
    return {
        "numbers": rows,
        "bars": [
            bar(
                "workflows of the embedded runner that made something",
                value=sum(row["artifacts"] > 0 for row in rows.values()),
                op="==",
                bar=num,
            ),
            *(
                bar(f"workflows with every artifact the same by {other}", value=count, op="==", bar=num)
                for other, count in equal.items()
            ),
            bar("nodes that the page misses", value=_count(rows, "missing"), op="==", bar=0),
            *(
                bar(f"outputs not seen, {name}", value=_count(rows, f"unseen, {name}"), op="==", bar=0)
                for name in RENDERERS
            ),
            bar("workflows that failed somewhere", value=_count(rows, "failed"), op="==", bar=0),
        ],
        "seeds": [0],
    }


def _count(rows: Mapping[str, Mapping[str, Any]], what: str) -> int:
    return sum(len(row[what]) for row in rows.values())


class Hosts:
    """One server with its page, and folders for the embedded runner."""

    def __init__(self, server: ComfyServer, page: Page, scratch: Path) -> None:
        self.server, self.page, self.scratch = server, page, scratch
        (scratch / "likeness").symlink_to(PACK, target_is_directory=True)

    def row(self, name: str, *, few: bool) -> dict[str, Any]:
        """One workflow by every host. A failure is written down, and the others go on."""
        file = WORKFLOWS / f"{name}.json"
        workflow = smaller(file, self.scratch / file.name, FEW) if few else file
        row: dict[str, Any] = {"missing": [], "failed": []} | {f"unseen, {r}": [] for r in RENDERERS}
        ways: dict[str, Callable[[], Artifacts]] = {
            EMBEDDED: lambda: self.embedded(workflow),
            OTHERS[0]: lambda: self.comfy_run(workflow),
            OTHERS[1]: lambda: self.likeness_run(workflow),
            OTHERS[2]: lambda: self.by_page(workflow, row),
        }
        found: dict[str, Artifacts] = {}
        for host, way in ways.items():
            try:
                found[host] = way()
            except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                found[host] = Counter()
                row["failed"].append(f"{host}: {error}"[-500:])
        first = found[EMBEDDED]
        equal = {other: (first & found[other]).total() for other in OTHERS}
        return {**row, "artifacts": first.total(), "equal": equal, "hashes": sorted(first)}

    # --- the hosts --------------------------------------------------------------------------------
    def embedded(self, workflow: Path) -> Artifacts:
        output = self.scratch / "embedded" / workflow.stem
        self._likeness(workflow, "--output", str(output))
        return artifacts(output, output / "previews", output / "models")

    def comfy_run(self, workflow: Path) -> Artifacts:
        self.server.forget()
        code, lines = comfy_run(self.server, workflow, "--timeout", "3600", timeout_s=TIMEOUT_S)
        if code:
            raise RuntimeError(f"comfy run ended with {code}: {lines[-1]}")
        return self._on_server()

    def likeness_run(self, workflow: Path) -> Artifacts:
        self.server.forget()
        self._likeness(workflow, "--server", self.server.url)
        return self._on_server()

    def by_page(self, workflow: Path, row: dict[str, Any]) -> Artifacts:
        """By both renderers. What the page misses, and what it does not show, goes into ``row``."""
        self.server.forget()
        made: Artifacts = Counter()
        for renderer in RENDERERS:
            self.page.open_template(workflow.stem)
            row["missing"] += self.page.missing()
            if workflow.parent != WORKFLOWS:  # the small copy
                self.page.open_graph(json.loads(workflow.read_text(encoding="utf-8")))
            with self.page.drawn_by_vue() if renderer == "Vue" else nullcontext():
                run = self.page.followed(self.page.press_run(), TIMEOUT_S)
                if not run.ok:
                    raise RuntimeError(f"{renderer}: {run.error}")
                row[f"unseen, {renderer}"] += self.page.unseen(run.outputs, SEEN_S)
            made = made or self._on_server()
            self.server.free()
        return made

    def _likeness(self, *arguments: str | Path) -> None:
        """``likeness run`` in the server's own interpreter: bits are promised for one version of torch."""
        install = self.server.install
        done = subprocess.run(
            [install.python, "-m", "likeness.headless.cli", "run", *arguments],
            env=install.environment(PYTHONPATH=str(self.scratch)),
            cwd=self.scratch,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"likeness run ended with {done.returncode}: {done.stderr[-300:]}")

    def _on_server(self) -> Artifacts:
        base = self.server.base
        return artifacts(base / "output", base / "temp", base / "models")


def artifacts(output: Path, temp: Path, models: Path) -> Artifacts:
    """Everything that a workflow made, by its name and the hash of its content; previews have no names.

    Pictures count as pixels: what ComfyUI writes into a file beside them differs from way to way. Left out is
    what tells how a run came about, and reports, which have dates.
    """
    made: Artifacts = Counter()
    for path in _files(output, "*"):
        told = path.name in ABOUT or path.suffix == ".html" or path.parent.name == "checkpoints"
        if not told and not {temp, models} & set(path.parents):
            made[f"{path.relative_to(output).as_posix()}: {_content(path)}"] += 1
    made.update(f"preview: {_content(path)}" for path in temp.glob("*.png"))
    models_made = _files(models, "*.safetensors")
    made.update(f"{path.relative_to(models).as_posix()}: {_content(path)}" for path in models_made)
    return made


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def _content(path: Path) -> str:
    if path.suffix not in (".png", ".jpg"):
        return hash_file(path)
    with Image.open(path) as picture:
        return hash_bytes(f"{picture.mode} {picture.size}".encode() + picture.tobytes())


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
        if place == len(given):  # widgets that are newer than the graph, at a node's end
            given.append(widget.default)
        given[place] = values.get(widget.id, given[place])
        after = getattr(widget, "control_after_generate", None) and given[place + 1] in AFTER_GENERATE
        place += 2 if after else 1

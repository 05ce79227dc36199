"""Draws the pictures that the pack ships, in a real ComfyUI and a real browser: thumbnails, help pages, docs.

    python tests/host/pictures.py                     every workflow's graph, as it opens
    python tests/host/pictures.py --run quickstart    run it first, so that its nodes show what they make
    python tests/host/pictures.py --docs              the whole page in the middle of a training

A thumbnail is the graph itself, workflows/NAME.jpg. A help picture is a few nodes of a workflow that has run,
beside the help pages. The docs' are of both renderers, with the sidebar open.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likeness.benchmarks.comfyui import PACK, ComfyServer
from likeness.benchmarks.page import OPEN_TEMPLATE, READY, chromium
from likeness.headless.comfyui import Install
from PIL import Image

SIZE_PX = (640, 400)
MAX_BYTES = 60_000
VIEW_PX = (2400, 1500)  # drawn large, so that LiteGraph writes its words, and shrunk
WORKFLOWS, HELP, DOCS = PACK / "workflows", PACK / "js" / "docs" / "images", PACK / "docs" / "images"
PAGE_PX, PAGE_BYTES, MID_RUN = (1920, 1200), 250_000, 150  # of the docs' pictures; the step that they show
HIDDEN = ["Comfy.Minimap.Visible", "Comfy.Graph.CanvasMenu", "Comfy.Graph.CanvasInfo"]

# Help pictures: file, workflow, and the nodes on it by id.
CUTTINGS = [
    ("layout-editor", "layout_editor_demo", [6, 8, 9]),
    ("cut-outs", "layout_editor_demo", [4, 5]),
    ("scene-dataset", "gen4gen_dataset", [12, 13]),
]

# Bounds [x, y, width, height] of some nodes, or of everything with its groups.
BOUNDS = """(ids) => {
    const { _nodes: nodes, _groups: groups } = app.graph;
    const some = ids ? ids.map((id) => app.graph.getNodeById(id)) : [...nodes, ...groups];
    const all = some.map((one) => one.boundingRect ?? one.getBounding?.() ?? [...one.pos, ...one.size]);
    const [left, top] = [0, 1].map((i) => Math.min(...all.map((b) => b[i])));
    const [right, foot] = [0, 1].map((i) => Math.max(...all.map((b) => b[i] + b[i + 2])));
    return [left, top, right - left, foot - top];
}"""
AIM = """([x, y, scale]) => {
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-x, -y];
    app.canvas.low_quality_zoom_threshold = 0;
    app.graph.setDirtyCanvas(true, true);
}"""
OPEN_RUNS = "() => app.extensionManager.sidebarTab.toggleSidebarTab('likeness.runs')"
TRAINING = """([title, step]) => {
    const node = app.graph._nodes.find((one) => one.type === title);
    return node.likenessView?.run?.step >= step && node.likenessView.run.samples.length > 1;
}"""
# The trainer in the middle of the page, so large that both renderers write their words.
LOOK_AT = """(title) => {
    const [x, y, width, height] = app.graph._nodes.find((one) => one.type === title).boundingRect;
    app.canvas.ds.scale = 0.9;
    app.canvas.ds.offset = [1300 - x - width / 2, 100 - y];
    app.graph.setDirtyCanvas(true, true);
}"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    parser.add_argument("names", nargs="*", metavar="WORKFLOW", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--run", action="store_true", help="run each first")
    parser.add_argument("--docs", action="store_true", help="the docs' pictures instead")
    chosen = parser.parse_args(arguments)
    if chosen.docs:
        for renderer in ("litegraph", "vue"):
            draw_page(renderer)
        return
    unknown = sorted(set(chosen.names) - set(known))
    if unknown:
        parser.error(f"there is no workflow {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Install.find(), Path(folder)) as server:
        draw(server, chosen.names or known, run=chosen.run)


def draw(server: ComfyServer, names: Sequence[str], *, run: bool) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport=dict(zip(("width", "height"), VIEW_PX, strict=True)))
        settings = dict.fromkeys(HIDDEN, False) | {"Comfy.TutorialCompleted": True}
        server.post("/api/settings", settings)
        page.goto(server.url)
        page.wait_for_function(READY, timeout=120_000)
        page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        for name in names:
            draw_one(page, server, name, run=run)


def draw_page(renderer: str) -> None:
    """The quickstart in mid-run, on a server of its own: each renderer shows a training from its start."""
    trainer = "LikenessTrainDreamBooth"
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Install.find(), Path(folder)) as server,
        chromium() as browser,
    ):
        page = browser.new_page(viewport=dict(zip(("width", "height"), PAGE_PX, strict=True)))
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        server.post("/api/settings", settings | {"Comfy.VueNodes.Enabled": renderer == "vue"})
        page.goto(server.url)
        page.wait_for_function(READY, timeout=120_000)
        page.evaluate(OPEN_TEMPLATE, "quickstart")
        page.evaluate(OPEN_RUNS)
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.evaluate(LOOK_AT, trainer)
        page.wait_for_function(TRAINING, arg=[trainer, MID_RUN], timeout=600_000)
        page.wait_for_timeout(2000)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        write_jpeg(picture, DOCS / f"page-{renderer}.jpg", PAGE_BYTES)


def draw_one(page: Any, server: ComfyServer, name: str, *, run: bool) -> None:
    page.evaluate(OPEN_TEMPLATE, name)
    page.wait_for_timeout(1000)
    if run:
        page.evaluate("() => app.queuePrompt(0, 1)")
        page.wait_for_timeout(2000)
        wait_until_idle(server)
        page.wait_for_timeout(2000)  # its last pictures arrive
    save(shot(page, None, most=1.0), WORKFLOWS / f"{name}.jpg", fill=SIZE_PX)
    for file, workflow, ids in CUTTINGS:
        if workflow == name and run:  # help shows what nodes make
            save(shot(page, ids, most=1.0), HELP / f"{file}.jpg")


def wait_until_idle(server: ComfyServer) -> None:
    while any(server.get("/queue").values()):
        time.sleep(2)


def shot(page: Any, ids: Sequence[int] | None, *, most: float) -> Image.Image:
    """Some nodes, or the graph, as large as the view allows, and at most at ``most`` of full size."""
    margin = 30
    x, y, width, height = page.evaluate(BOUNDS, ids)
    scale = min(VIEW_PX[0] / (width + 2 * margin), VIEW_PX[1] / (height + 2 * margin), most)
    page.evaluate(AIM, [x - margin, y - margin, scale])
    page.wait_for_timeout(1500)
    place = page.locator("#graph-canvas").bounding_box()
    sides = {"width": (width + 2 * margin) * scale, "height": (height + 2 * margin) * scale}
    clip = {"x": place["x"], "y": place["y"]} | sides
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def save(picture: Image.Image, path: Path, *, fill: tuple[int, int] | None = None) -> None:
    """As JPEG of at most MAX_BYTES; with ``fill`` in the middle of a canvas of that size."""
    if fill:
        canvas = Image.new("RGB", fill, picture.getpixel((2, 2)))
        picture.thumbnail((fill[0] - 16, fill[1] - 16), Image.Resampling.LANCZOS)
        canvas.paste(picture, ((fill[0] - picture.width) // 2, (fill[1] - picture.height) // 2))
        picture = canvas
    else:
        picture.thumbnail((900, 900), Image.Resampling.LANCZOS)
    write_jpeg(picture, path, MAX_BYTES)


def write_jpeg(picture: Image.Image, path: Path, most_bytes: int) -> None:
    """At the best quality that fits."""
    for quality in range(88, 30, -6):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= most_bytes:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


if __name__ == "__main__":
    main()

"""Draws the pictures that the pack ships, in a real ComfyUI and a real browser: thumbnails and help pages.

    python tests/host/pictures.py                     every workflow's graph, as it opens
    python tests/host/pictures.py --run quickstart    run it first, so that its nodes show what they make

A thumbnail is the graph itself, workflows/NAME.jpg. A help picture is a few nodes of a workflow that has run,
beside the help pages.
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
WORKFLOWS, HELP = PACK / "workflows", PACK / "js" / "docs" / "images"
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    parser.add_argument("names", nargs="*", metavar="WORKFLOW", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--run", action="store_true", help="run each first")
    chosen = parser.parse_args(arguments)
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
    for quality in range(88, 30, -6):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= MAX_BYTES:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


if __name__ == "__main__":
    main()

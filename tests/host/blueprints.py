"""Writes the pack's subgraph blueprints: parts of the example workflows, each as one node.

    python tests/host/blueprints.py

A newer ComfyUI lists a pack's subgraphs/*.json among its nodes. The page of a real one folds
the nodes here; the files are as it writes them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from likeness.benchmarks.comfyui import PACK, ComfyServer
from likeness.benchmarks.page import OPEN_TEMPLATE, READY, chromium
from likeness.headless.comfyui import Install

# Name: the workflow that it is a part of, the ids of the nodes inside, and of others whose links would become
# outputs that nobody needs.
BLUEPRINTS = {
    "Learn a Subject": ("quickstart", [2, 4, 5, 6, 9], [7]),
    "Learn a Word with an Attractor": ("attractor_textual_inversion", [2, 4, 5, 7, 9], [6]),
    "Compose a Scene": ("gen4gen_dataset", [4, 6, 8, 10], []),
    "Align with Rewards": ("instructbooth", [7, 8, 9, 10], []),
}
FOLD = """([ids, without, name]) => {
    const { graph } = app;
    for (const id of without) graph.remove(graph.getNodeById(id));
    const { subgraph, node } = graph.convertToSubgraph(new Set(ids.map((id) => graph.getNodeById(id))));
    [subgraph.name, node.title, node.pos] = [name, name, [0, 0]];
    for (const group of [...graph._groups]) graph.remove(group);
    for (const other of [...graph._nodes]) if (other !== node) graph.remove(other);
    return JSON.parse(JSON.stringify(graph.serialize()));
}"""


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Install.find(), Path(folder)) as server,
        chromium() as browser,
    ):
        page = browser.new_page()
        server.post("/api/settings", {"Comfy.TutorialCompleted": True})
        page.goto(server.url)
        page.wait_for_function(READY, timeout=120_000)
        for name, (workflow, ids, without) in BLUEPRINTS.items():
            page.evaluate(OPEN_TEMPLATE, workflow)
            page.wait_for_timeout(1000)
            graph = page.evaluate(FOLD, [ids, without, name])
            text = json.dumps(graph, indent=1, ensure_ascii=False)
            (PACK / "subgraphs" / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

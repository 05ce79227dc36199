"""The page: what a person sees of this pack before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = json.loads((Path(__file__).parents[1] / "nodes" / "schemas.json").read_text(encoding="utf-8"))


def test_every_node_can_be_put_on_the_canvas(page: Any) -> None:
    """Sockets and widgets are there in the schema's order, and the graph can be turned into a prompt."""
    drawn = page.evaluate(
        """(names) => names.map((name) => {
            const node = LiteGraph.createNode(name);
            app.graph.add(node);
            return { name, title: node.title, outputs: node.outputs.map((o) => o.type),
                     inputs: node.inputs.map((i) => i.name),
                     widgets: (node.widgets ?? []).map((w) => w.name) };
        })""",
        list(GOLDEN),
    )
    for node in drawn:
        schema = GOLDEN[node["name"]]
        assert node["title"] == schema["display_name"]
        assert node["outputs"] == [o["type"] for o in schema["outputs"]]
        assert {i["id"] for i in schema["inputs"]} <= {*node["inputs"], *node["widgets"]}
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert sorted(entry["class_type"] for entry in prompt.values()) == sorted(GOLDEN)
    assert page.problems == []


def test_every_node_has_a_help_page(page: Any, server: Any) -> None:
    for name in GOLDEN:
        answer = page.request.get(f"{server.url}/extensions/likeness/docs/{name}.md")
        assert answer.ok and GOLDEN[name]["display_name"] in answer.text()

"""A workflow file as a graph of nodes and links: from ComfyUI's page format or its API format.

Page format: nodes with widget values in a list, numbered links, reroutes, muted nodes, subgraphs. API format:
each node's inputs by name, a link being ``[node, output]``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import LikenessError
from ..nodes.host import io
from .subgraphs import unfolded

MUTED, BYPASSED = 2, 4  # LiteGraph's node modes
NOT_EXECUTED = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # drawn by the page, unknown to servers
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")
# What pages export as inputs and no server knows: an upload button, the text that a run has shown.
SHOWN = ("preview", "previewMode", "preview_text", "preview_markdown")
LEFTOVERS = {("LoadImage", "upload"), *(("PreviewAny", name) for name in SHOWN)}

Schemas = Mapping[str, io.Schema]


class Link(NamedTuple):
    """The output ``slot`` of the node ``node``."""

    node: str
    slot: int


@dataclass
class Node:
    """One step: its class, its title, and every input as a value or a Link."""

    id: str
    class_type: str
    inputs: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    def __str__(self) -> str:
        title = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        return f"node {self.id} ({self.class_type}{title})"


Graph = dict[str, Node]


def load(path: Path, schemas: Schemas) -> Graph:
    """Read a workflow file. LikenessError when it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LikenessError(f"There is no workflow file {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LikenessError(
            f"{path} cannot be read as a workflow: {error}", expected="a JSON file saved from ComfyUI"
        ) from error
    return parse(data, schemas, name=str(path))


def parse(data: Any, schemas: Schemas, *, name: str = "The workflow") -> Graph:
    """A graph from the decoded JSON of either format."""
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        try:
            return _Page(data, schemas, name).graph()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise LikenessError(
                f"{name} has a malformed node or link ({error!r})", fix="Save it again from ComfyUI"
            ) from error
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if isinstance(data, dict) and data and all(_is_api_node(node) for node in data.values()):
        return {str(key): _api_node(str(key), node) for key, node in data.items()}
    raise LikenessError(
        f"{name} is not a ComfyUI workflow",
        expected='the page format (with "nodes" and "links") or the API format (nodes with "class_type")',
    )


def to_api(graph: Graph) -> dict[str, Any]:
    """The API form, as ComfyUI's "Export (API)" writes it."""
    return {
        node.id: {
            "inputs": {name: _api_value(value) for name, value in node.inputs.items()},
            "class_type": node.class_type,
            "_meta": {"title": node.title or node.class_type},
        }
        for node in graph.values()
    }


def _is_api_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs", {}), dict)
    )


def _api_node(key: str, node: Mapping[str, Any]) -> Node:
    inputs = {
        name: _from_api(value)
        for name, value in node.get("inputs", {}).items()
        if (node["class_type"], name) not in LEFTOVERS
    }
    meta = node.get("_meta")
    title = str(meta.get("title", "")) if isinstance(meta, dict) else ""
    return Node(key, node["class_type"], inputs, title)


def _from_api(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]  # a list that is a value, not a link
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return Link(str(value[0]), value[1])
    return value


def _api_value(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value


class _Page:
    """The page format: what runs, with every link followed to the node that really makes the value."""

    def __init__(self, data: Mapping[str, Any], schemas: Schemas, name: str) -> None:
        self.schemas = schemas
        self.name = name
        nodes, self.links = unfolded(data, name)
        self.nodes = {str(node["id"]): node for node in nodes}

    def graph(self) -> Graph:
        runs = [n for n in self.nodes.values() if n.get("mode", 0) not in (MUTED, BYPASSED)]
        return {str(n["id"]): self.node(n) for n in runs if n.get("type") not in NOT_EXECUTED}

    def node(self, node: Mapping[str, Any]) -> Node:
        class_type = str(node.get("type", ""))
        if class_type.startswith("workflow>"):
            raise LikenessError(
                f"{self.name}: node {node['id']} is a group node, which only ComfyUI can run",
                fix="Open it in ComfyUI and convert the node to a subgraph",
            )
        inputs = self.widget_values(node, self.schemas.get(class_type))
        for socket in node.get("inputs") or []:
            if socket.get("link") is not None:
                found, value = self.follow(str(socket["link"]))
                if found:
                    inputs[socket["name"]] = value
                elif not socket.get("widget"):
                    inputs.pop(socket["name"], None)
        return Node(str(node["id"]), class_type, inputs, str(node.get("title") or ""))

    def widget_values(self, node: Mapping[str, Any], schema: io.Schema | None) -> dict[str, Any]:
        """The list of widget values by input name; widgets that the file does not have keep their default."""
        values = node.get("widgets_values") or []
        if schema is None:
            return {}
        widgets = [i for i in in_page_order(schema) if has_widget(i)]
        if isinstance(values, dict):
            return {w.id: values.get(w.id, w.default) for w in widgets}
        return dict(_in_turn(widgets, values))

    def follow(self, link: str, depth: int = 0) -> tuple[bool, Any]:
        """Whether something feeds this link, and what: a Link, or a primitive's value."""
        if link not in self.links or depth > len(self.nodes):
            return False, None
        origin, slot = self.links[link]
        node = self.nodes.get(origin)
        if node is None or node.get("mode") == MUTED:
            return False, None
        if node.get("type") == "PrimitiveNode":
            values = node.get("widgets_values") or [None]
            return True, values[0]
        if node.get("type") == "Reroute" or node.get("mode") == BYPASSED:
            behind = _passed_through(node, slot)
            return self.follow(behind, depth + 1) if behind is not None else (False, None)
        return True, Link(origin, slot)


def _passed_through(node: Mapping[str, Any], slot: int) -> str | None:
    """What a bypassed node hands on: its input in the same place if the type fits, else the first."""
    inputs = node.get("inputs") or []
    if node.get("type") == "Reroute":
        candidates = inputs[:1]
    else:
        wanted = node["outputs"][slot].get("type")
        candidates = [i for i in [*inputs[slot : slot + 1], *inputs] if i.get("type") == wanted]
    link = candidates[0].get("link") if candidates else None
    return None if link is None else str(link)


def in_page_order(schema: io.Schema) -> list[Any]:
    """The inputs as the page lists them: required ones first."""
    return sorted(schema.inputs, key=lambda i: bool(i.optional))


def has_widget(spec: Any) -> bool:
    return spec.get_io_type() in WIDGETS and not getattr(spec, "force_input", None)


def _in_turn(widgets: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    rest = list(values)
    for widget in widgets:
        yield widget.id, rest.pop(0) if rest else widget.default
        if getattr(widget, "control_after_generate", None) and rest and rest[0] in AFTER_GENERATE:
            rest.pop(0)  # the page's "control after generate" has no place in a prompt

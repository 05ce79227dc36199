"""Subgraphs of the page format, unfolded: every node inside becomes one of the workflow.

As in ComfyUI, node 4 inside node 17 is then node "17:4". What leads into a subgraph comes from its node -10,
and what leads out goes to its node -20; links are followed through both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..core.errors import LikenessError

INPUTS, OUTPUTS = "-10", "-20"
FOLDED = 0  # the mode of a node that runs; a muted or bypassed subgraph is none of its nodes
MAX_NODES = 10_000  # of an unfolded workflow; one that holds itself has no end


class Link(NamedTuple):
    """Output ``slot`` of the node ``origin`` leads to input ``place`` of the node ``target``."""

    origin: str
    slot: int
    target: str
    place: int


Links = dict[str, Link]


def unfolded(data: Mapping[str, Any], name: str) -> tuple[list[dict[str, Any]], dict[str, tuple[str, int]]]:
    """Nodes without subgraphs, and where each link comes from. LikenessError for one that holds itself."""
    definitions = {str(one["id"]): one for one in (data.get("definitions") or {}).get("subgraphs") or []}
    nodes, links = _Level(definitions, name, "").unfold(data)
    return nodes, {key: (link.origin, link.slot) for key, link in links.items()}


class _Level:
    """One subgraph, or the workflow itself. ``prefix`` comes before the ids of its nodes and links."""

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]], name: str, prefix: str) -> None:
        self.definitions, self.name, self.prefix = definitions, name, prefix

    def unfold(self, data: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Links]:
        links = dict(self.read(link) for link in data.get("links") or [])
        nodes: list[dict[str, Any]] = []
        for node in data["nodes"]:
            own = self.renamed(node)
            inside = self.definitions.get(str(node.get("type")))
            if inside is None or node.get("mode", FOLDED) != FOLDED:
                nodes.append(own)
            else:
                nodes += self.opened(own, inside, links)
            if len(nodes) > MAX_NODES:
                raise LikenessError(
                    f"{self.name}: node {node['id']} unfolds to more than {MAX_NODES} nodes",
                    expected="subgraphs that do not hold themselves",
                )
        return nodes, links

    def read(self, link: Any) -> tuple[str, Link]:
        if isinstance(link, dict):
            key = link["id"]
            ends = [link["origin_id"], link["origin_slot"], link.get("target_id"), link.get("target_slot", 0)]
        else:
            key, ends = link[0], list(link[1:5])
        return f"{self.prefix}{key}", Link(self.id(ends[0]), int(ends[1]), self.id(ends[2]), int(ends[3]))

    def id(self, number: Any) -> str:
        return str(number) if str(number) in (INPUTS, OUTPUTS) else f"{self.prefix}{number}"

    def renamed(self, node: Mapping[str, Any]) -> dict[str, Any]:
        inputs = [
            socket if socket.get("link") is None else {**socket, "link": f"{self.prefix}{socket['link']}"}
            for socket in node.get("inputs") or []
        ]
        return {**node, "id": self.id(node["id"]), "inputs": inputs}

    def opened(
        self, node: Mapping[str, Any], inside: Mapping[str, Any], links: Links
    ) -> list[dict[str, Any]]:
        """The nodes inside one; ``links`` get theirs, and lead past the subgraph's edge afterwards."""
        key = str(node["id"])
        if key.count(":") > len(self.definitions):
            raise LikenessError(
                f"{self.name}: node {key} is a subgraph that holds itself", fix="Save it again from ComfyUI"
            )
        nodes, within = _Level(self.definitions, self.name, f"{key}:").unfold(inside)
        sources = dict(self.sources(node, inside, links, nodes))
        leaving: dict[int, tuple[str, int]] = {}
        for number, link in within.items():
            start = sources.get(link.slot) if link.origin == INPUTS else (link.origin, link.slot)
            if start is None:
                continue  # nothing feeds this input
            if link.target == OUTPUTS:
                leaving[link.place] = start
            else:
                links[number] = Link(*start, link.target, link.place)
        for number, link in list(links.items()):
            if link.origin == key:
                if link.slot in leaving:
                    links[number] = Link(*leaving[link.slot], link.target, link.place)
                else:
                    del links[number]
        return nodes

    def sources(
        self,
        node: Mapping[str, Any],
        inside: Mapping[str, Any],
        links: Links,
        nodes: list[dict[str, Any]],
    ) -> Iterator[tuple[int, tuple[str, int]]]:
        """Of each input of a subgraph what feeds it: a link's origin, or the value on the node."""
        sockets = {socket["name"]: socket for socket in node["inputs"]}
        widgets = [name for name, socket in sockets.items() if socket.get("widget")]
        values = dict(zip(widgets, node.get("widgets_values") or [], strict=False))
        for place, told in enumerate(inside.get("inputs") or []):
            link = links.get(str(sockets.get(told["name"], {}).get("link")))
            if link is not None:
                yield place, (link.origin, link.slot)
            elif told["name"] in values:
                primitive = f"{node['id']}:{INPUTS}:{place}"
                nodes.append(
                    {"id": primitive, "type": "PrimitiveNode", "widgets_values": [values[told["name"]]]}
                )
                yield place, (primitive, 0)

"""Runs a graph in this process: everything checked first, then the nodes in topological order.

As in ComfyUI only output nodes and what they need are run, under inference mode. There is no queue and no
cache between calls: finished training runs are found again on disk by their content.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..core.errors import LikenessError
from ..nodes import core_nodes, host
from ..nodes.core_nodes import CORE_NODES
from ..nodes.host import io
from .graph import Graph, Link, Node, Schemas, to_api

Classes = Mapping[str, type[io.ComfyNode]]
Watcher = Callable[[Node, str], None]  # "start" and "end" of every node


def known_classes() -> dict[str, type[io.ComfyNode]]:
    """Every node that this runner can run, by its id."""
    from ..nodes import NODES

    return {cls.GET_SCHEMA().node_id: cls for cls in [*NODES, *CORE_NODES]}


def schemas_of(classes: Classes) -> dict[str, io.Schema]:
    return {name: cls.GET_SCHEMA() for name, cls in classes.items()}


def run(graph: Graph, classes: Classes, watch: Watcher = lambda node, what: None) -> dict[str, io.NodeOutput]:
    """Run every output node. Returns each executed node's output by node id.

    Raises LikenessError before anything runs when the graph or an input is wrong.
    """
    import torch

    order = check(graph, classes)
    core_nodes.written_into_pictures = {"prompt": json.dumps(to_api(graph))}
    results: dict[str, io.NodeOutput] = {}
    with torch.inference_mode():
        for key in order:
            node = graph[key]
            host.current.check()
            watch(node, "start")
            inputs = {name: _resolved(value, results) for name, value in node.inputs.items()}
            results[key] = classes[node.class_type].execute(**inputs)
            watch(node, "end")
    return results


def _resolved(value: Any, results: Mapping[str, io.NodeOutput]) -> Any:
    return results[value.node].args[value.slot] if isinstance(value, Link) else value


# --- checks ---------------------------------------------------------------------------------------------


def check(graph: Graph, classes: Classes) -> list[str]:
    """The order to run in. Widget values are converted in place to the types that the schemas ask for.

    Raises LikenessError naming node and input: unknown class or input, missing input, wrong type, out of
    range, not an option, a link to nowhere, a cycle, or what the node's own ``validate_inputs`` says.
    """
    order = check_graph(graph, schemas_of(classes))
    for key in order:
        ask_node(graph[key], classes[graph[key].class_type])
    return order


def check_graph(graph: Graph, schemas: Schemas) -> list[str]:
    """As ``check``, by the schemas alone: without asking the nodes themselves."""
    order = execution_order(graph, schemas)
    for key in order:
        check_node(graph[key], graph, schemas)
    return order


def execution_order(graph: Graph, schemas: Schemas) -> list[str]:
    """The output nodes and what they need, in the order to run them."""
    for node in graph.values():
        if node.class_type not in schemas:
            raise LikenessError(
                f"{node} is not a node that this runner knows",
                fix="It runs Likeness nodes and a few core ones (pictures, primitives). "
                "Run the workflow in ComfyUI, or take the node out.",
            )
    outputs = [key for key, node in graph.items() if schemas[node.class_type].is_output_node]
    if not outputs:
        raise LikenessError("The workflow has no output node", expected="a trainer, a report or a save node")
    return _order(graph, outputs)


def _order(graph: Graph, targets: list[str]) -> list[str]:
    """The targets and what they need: every node after what it needs itself, else as the file has them."""
    needs: dict[str, list[str]] = {}
    pending = list(reversed(targets))
    while pending:
        key = pending.pop()
        if key not in needs:
            needs[key] = list(_needed(graph[key], graph))
            pending += needs[key]
    place = {key: number for number, key in enumerate(graph)}
    sorter = TopologicalSorter(needs)
    order: list[str] = []
    ready: list[str] = []
    try:
        sorter.prepare()
    except CycleError as error:
        loop = error.args[1]
        raise LikenessError(
            f"{graph[loop[0]]} needs its own output: {' -> '.join(loop)}", fix="Take one link out"
        ) from error
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


def _needed(node: Node, graph: Graph) -> Iterator[str]:
    for name, value in node.inputs.items():
        if isinstance(value, Link):
            if value.node not in graph:
                raise LikenessError(f"{node}: {name} is linked to node {value.node}, which is not there")
            yield value.node


def check_node(node: Node, graph: Graph, schemas: Schemas) -> None:
    specs = {spec.id: spec for spec in schemas[node.class_type].inputs}
    for name, spec in specs.items():
        if not spec.optional and name not in node.inputs:
            raise LikenessError(f"{node}: the input {name} is missing", expected=spec.get_io_type())
    for name, value in node.inputs.items():
        if name not in specs:
            raise LikenessError(f"{node} has no input {name}", expected=f"one of {', '.join(specs)}")
        if isinstance(value, Link):
            _check_link(node, name, specs[name], graph[value.node], value.slot, schemas)
        else:
            node.inputs[name] = _checked_value(f"{node}: {name}", specs[name], value)


def _check_link(node: Node, name: str, spec: Any, origin: Node, slot: int, schemas: Schemas) -> None:
    outputs = schemas[origin.class_type].outputs
    if not 0 <= slot < len(outputs):
        raise LikenessError(
            f"{node}: {name} is linked to output {slot} of {origin}, which has {len(outputs)}"
        )
    given, wanted = set(outputs[slot].io_type.split(",")), set(spec.get_io_type().split(","))
    if not (given & wanted or "*" in given | wanted):
        raise LikenessError(
            f"{node}: {name} is linked to {origin}, which gives {outputs[slot].io_type}",
            expected=spec.get_io_type(),
        )


def _checked_value(place: str, spec: Any, value: Any) -> Any:
    kind = spec.get_io_type()
    if kind not in CONVERT:
        raise LikenessError(f"{place} is {value!r}", expected=f"a link that brings {kind}")
    try:
        converted = CONVERT[kind](value)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise LikenessError(f"{place} is {value!r}", expected=WORDS[kind]) from None
    if kind == "COMBO" and converted not in spec.options:
        raise LikenessError(f"{place} is {value!r}", expected=f"one of {', '.join(map(str, spec.options))}")
    low, high = getattr(spec, "min", None), getattr(spec, "max", None)
    if (low is not None and converted < low) or (high is not None and converted > high):
        raise LikenessError(f"{place} is {value!r}", expected=f"from {low} to {high}")
    return converted


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _yes_or_no(value: Any) -> bool:
    named = {"true": True, "false": False, "1": True, "0": False}
    return value if isinstance(value, bool) else named[str(value).lower()] if _scalar(value) else _refuse()


def _text(value: Any) -> str:
    return str(value) if _scalar(value) else _refuse()


def _scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _refuse() -> Any:
    raise TypeError


CONVERT: dict[str, Callable[[Any], Any]] = {
    "INT": _whole,
    "FLOAT": _finite,
    "STRING": _text,
    "BOOLEAN": _yes_or_no,
    "COMBO": _text,
}
WORDS = {
    "INT": "one whole number",
    "FLOAT": "one number",
    "STRING": "one text",
    "BOOLEAN": "true or false",
    "COMBO": "one of the options",
}


def ask_node(node: Node, cls: type[io.ComfyNode]) -> None:
    """The node's own ``validate_inputs``, which gets the inputs that it names; linked ones are None."""
    ask = getattr(cls, "validate_inputs", None)
    if ask is None:
        return
    named = [name for name in inspect.signature(ask).parameters if name in node.inputs]
    values = {name: node.inputs[name] for name in named}
    answer = ask(**{name: None if isinstance(value, Link) else value for name, value in values.items()})
    if answer is not True:
        raise LikenessError(f"{node}: {answer}")


# --- --set ----------------------------------------------------------------------------------------------


def set_input(graph: Graph, classes: Classes, assignment: str) -> None:
    """Apply ``node.input=value``: the node by its id, title, class, or class without ``Likeness``."""
    target, equals, value = assignment.partition("=")
    if not equals or "." not in target:
        raise LikenessError(f"--set {assignment} is not understood", expected="node.input=value")
    node, name = find_input(graph, schemas_of(classes), target, f"--set {assignment}")
    node.inputs[name] = value


def find_input(graph: Graph, schemas: Schemas, target: str, place: str) -> tuple[Node, str]:
    """The node and the input that ``node.input`` means; ``place`` begins the error when it means none."""
    name, dot, input_name = (part.strip() for part in target.rpartition("."))
    if not dot or not name or not input_name:
        raise LikenessError(f"{place}: {target!r} is not understood", expected="node.input")
    matches = list(_named(graph, name))
    if len(matches) != 1:
        known = ", ".join(f"{n.id} ({n.title or n.class_type})" for n in matches or graph.values())
        raise LikenessError(
            f"{place}: {len(matches) or 'no'} nodes are called {name!r}", expected=f"one of {known}"
        )
    node = matches[0]
    inputs = [spec.id for spec in schemas[node.class_type].inputs] if node.class_type in schemas else []
    if input_name not in inputs:
        raise LikenessError(
            f"{place}: {node} has no input {input_name}", expected=f"one of {', '.join(inputs)}"
        )
    return node, input_name


def _named(graph: Graph, name: str) -> Iterator[Node]:
    if name in graph:
        yield graph[name]
        return
    short = name.lower().replace(" ", "")
    for node in graph.values():
        names = {node.title, node.class_type, node.class_type.removeprefix("Likeness")}
        if short in {n.lower().replace(" ", "") for n in names}:
            yield node

"""Small nodes for graph tests: numbers in, numbers out, and a trainer that only counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from likeness.concepts.concept import Concept
from likeness.nodes import host
from likeness.nodes.core_nodes import CORE_NODES
from likeness.nodes.host import io
from likeness.trainers.events import Checkpoint, Done, Event, HeldOutScore, Phase, Step

Number = io.Custom("NUMBER")


def node(
    name: str, inputs: list[Any], outputs: list[Any], run: Any, *, output: bool = False
) -> type[io.ComfyNode]:
    class Stub(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(node_id=name, inputs=inputs, outputs=list(outputs), is_output_node=output)

        @classmethod
        def execute(cls, **values: Any) -> io.NodeOutput:
            return io.NodeOutput(*run(**values))

    return Stub


Source = node(
    "Source",
    [
        io.Int.Input("value", default=1, min=0, max=10),
        io.Int.Input("seed", default=0, min=0, max=99, control_after_generate=True),
        io.Float.Input("scale", default=1.0, min=0.0, max=2.0),
        io.Combo.Input("mode", options=["one", "two"], default="one"),
        io.Boolean.Input("on", default=True),
        io.String.Input("text", default="hello"),
    ],
    [Number.Output("number"), io.String.Output("said")],
    lambda value, seed, scale, mode, on, text: (value * scale + seed, text),
)
Add = node(
    "Add",
    [Number.Input("left"), Number.Input("right", optional=True)],
    [Number.Output("sum")],
    lambda left, right=0: (left + right,),
)
Show = node("Show", [Number.Input("number")], [Number.Output("shown")], lambda number: (number,), output=True)
Say = node("Say", [io.String.Input("text", default="")], [], lambda text: (), output=True)


def events(saved: list[str], folder: Path) -> Iterator[Event]:
    """A training of 1000 steps that says in ``saved`` how it ended."""
    try:
        yield Phase("caching", 0, 2)
        yield Phase("caching", 2, 2)
        for step in range(1, 1001):
            yield Step(step, 1000, 1 / step, {}, 1e-4, 0.1, 0.01)
            if step == 500:
                yield HeldOutScore(step, 0.8, 0.6, 0.3, "best so far")
                yield Checkpoint(step, folder / "step.safetensors")
        concept = Concept(
            kind="lora", path=folder / "x.safetensors", sha256="", trigger="sks dog", class_noun="dog",
            family="sd1", base_hash="", metadata={},
        )  # fmt: skip
        yield Done(concept, 500, folder, reused=False)
    finally:
        saved.append("saved")


class Train(io.ComfyNode):
    saved: list[str] = []  # noqa: RUF012 - what a test looks at

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="Train", outputs=[io.Custom("RUN").Output("run")], is_output_node=True)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(host.consume(events(cls.saved, Path("run"))))


CLASSES: dict[str, type[io.ComfyNode]] = {
    cls.GET_SCHEMA().node_id: cls for cls in [Source, Add, Show, Say, Train, *CORE_NODES]
}
SCHEMAS = {name: cls.GET_SCHEMA() for name, cls in CLASSES.items()}

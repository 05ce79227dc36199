"""The part of ComfyUI's node schema that this pack uses, for machines that have no ComfyUI.

The names, arguments and meanings are those of ``comfy_api.v0_0_2.io``; a test builds every node with
both and compares what comes out. Nothing here is used inside ComfyUI.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar


class Hidden(str, Enum):
    """Values that a host passes beside the inputs."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(kw_only=True)
class Input:
    """A socket. ``as_dict`` is what the browser receives."""

    io_type: ClassVar[str] = "*"

    id: str = field(kw_only=False)
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None

    def get_io_type(self) -> str:
        return self.io_type

    def as_dict(self) -> dict[str, Any]:
        return _given(
            display_name=self.display_name, optional=self.optional, tooltip=self.tooltip, lazy=self.lazy
        )


@dataclass(kw_only=True)
class WidgetInput(Input):
    """A socket that also has a widget."""

    default: Any = None
    socketless: bool | None = None
    force_input: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        own = _given(default=self.default, socketless=self.socketless, forceInput=self.force_input)
        return super().as_dict() | own


@dataclass(kw_only=True)
class Output:
    """What a node gives."""

    io_type: ClassVar[str] = "*"

    id: str | None = field(default=None, kw_only=False)
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False


class Boolean:
    io_type = "BOOLEAN"

    @dataclass(kw_only=True)
    class Input(WidgetInput):
        io_type: ClassVar[str] = "BOOLEAN"
        label_on: str | None = None
        label_off: str | None = None

        def as_dict(self) -> dict[str, Any]:
            return super().as_dict() | _given(label_on=self.label_on, label_off=self.label_off)

    class Output(Output):
        io_type: ClassVar[str] = "BOOLEAN"


@dataclass(kw_only=True)
class _NumberInput(WidgetInput):
    min: float | None = None
    max: float | None = None
    step: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | _given(min=self.min, max=self.max, step=self.step)


class Int:
    io_type = "INT"

    @dataclass(kw_only=True)
    class Input(_NumberInput):
        io_type: ClassVar[str] = "INT"
        control_after_generate: bool | None = None

        def as_dict(self) -> dict[str, Any]:
            return super().as_dict() | _given(control_after_generate=self.control_after_generate)

    class Output(Output):
        io_type: ClassVar[str] = "INT"


class Float:
    io_type = "FLOAT"

    @dataclass(kw_only=True)
    class Input(_NumberInput):
        io_type: ClassVar[str] = "FLOAT"
        round: float | None = None

        def as_dict(self) -> dict[str, Any]:
            return super().as_dict() | _given(round=self.round)

    class Output(Output):
        io_type: ClassVar[str] = "FLOAT"


class String:
    io_type = "STRING"

    @dataclass(kw_only=True)
    class Input(WidgetInput):
        io_type: ClassVar[str] = "STRING"
        multiline: bool = False
        placeholder: str | None = None
        dynamic_prompts: bool | None = None

        def as_dict(self) -> dict[str, Any]:
            own = _given(
                multiline=self.multiline, placeholder=self.placeholder, dynamicPrompts=self.dynamic_prompts
            )
            return super().as_dict() | own

    class Output(Output):
        io_type: ClassVar[str] = "STRING"


class Combo:
    io_type = "COMBO"

    @dataclass(kw_only=True)
    class Input(WidgetInput):
        io_type: ClassVar[str] = "COMBO"
        options: Sequence[str] = ()

        def as_dict(self) -> dict[str, Any]:
            return super().as_dict() | {"multiselect": False, "options": list(self.options)}


def Custom(io_type: str) -> Any:  # noqa: N802 - ComfyUI's name
    """A socket type of one's own, with ``.Input`` and ``.Output``."""
    kind = {"io_type": io_type}
    return type(
        "Custom",
        (),
        kind | {"Input": type("Input", (Input,), kind), "Output": type("Output", (Output,), kind)},
    )


Image = Custom("IMAGE")
Mask = Custom("MASK")
LoraModel = Custom("LORA_MODEL")
LossMap = Custom("LOSS_MAP")


@dataclass(kw_only=True)
class Schema:
    """What a node is called, takes and gives."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False

    def finalize(self) -> None:
        """Give outputs without an id ComfyUI's default one."""
        for place, output in enumerate(self.outputs):
            output.id = output.id or f"_{place}_{output.io_type}_"

    def validate(self) -> None:
        """Ids are unique among the inputs and outputs together, as ComfyUI 0.3.64 demands."""
        counts = Counter([i.id for i in self.inputs] + [o.id for o in self.outputs])
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"Ids must be unique, but {twice} are not.")


class NodeOutput:
    """A node's results in the order of its schema, and what the page shows."""

    def __init__(self, *args: Any, ui: dict[str, list[Any]] | None = None) -> None:
        self.args = args
        self.ui = ui


class ComfyNode:
    """Base of every node. Hosts call ``execute`` with the inputs by their ids."""

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    execute: ClassVar[Any]  # a classmethod; each node's own inputs

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802 - ComfyUI's name
        schema = cls.define_schema()
        schema.finalize()
        schema.validate()
        return schema


class ComfyExtension:
    """What ``comfy_entrypoint`` returns."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        raise NotImplementedError

"""Mapper files that NeTI's authors released (``mapper-steps-N.pt``), read without running anything in them.

Such a file is a pickle: a program that builds objects. This reader never runs it. It takes the program apart
(``pickletools``), and follows the few instructions that plain values and tensors need; what would call
anything else becomes an inert record. The frequencies of the encoding sit in such a record.
"""
# Shapes: S layers, D text width, W random frequencies.

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.mapper import mapper_from_tensors
from ..core.errors import LikenessError
from .concept import Artifact

NUM_LAYERS = 16  # of Stable Diffusion 1, the only model that they released for
MAX_BYTES = 64 * 1024**2  # a mapper is some 5 MB
STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
            "LongStorage": torch.int64, "BFloat16Storage": torch.bfloat16}  # fmt: skip
REBUILD = {"_rebuild_tensor", "_rebuild_tensor_v2"}


def read_released(path: Path, *, allow_pickle_format: bool) -> Artifact:
    """A released mapper as an artifact of kind ``neti``, to be saved with ``save_concept`` for family "sd1".

    Raises LikenessError without the opt-in, and for whatever is not such a file.
    """
    if not allow_pickle_format:
        raise LikenessError(
            f"{path} is in a format that can carry programs. It is read without running them, but only when "
            "that is asked for.",
            fix="Allow it for this file, if you know where it comes from",
        )
    try:
        return _artifact(path, _read(path))
    except LikenessError:
        raise
    except Exception as error:  # a hostile file breaks anywhere
        raise LikenessError(
            f"{path} is no mapper that NeTI released: {error or type(error).__name__}",
            expected="mapper-steps-N.pt as NeTI's own code writes it",
        ) from error


def _artifact(path: Path, saved: Any) -> Artifact:
    state, config, encoder = saved["state_dict"], saved["cfg"], saved["encoder"]
    tensors = {_renamed(name): tensor.float() for name, tensor in state.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name}
    tensors["encoder.w"] = _frequencies(encoder)
    width = tensors["output_layer.weight"].shape[0] // (2 if config["model"]["output_bypass"] else 1)
    tensors["target_norm"] = torch.tensor(float(config["model"]["target_norm"]))
    tensors["layers"], tensors["text_width"] = torch.tensor(NUM_LAYERS), torch.tensor(width)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise LikenessError(f"{path} holds values that are not finite")
    mapper_from_tensors(tensors)
    data = config.get("data", {})
    return Artifact(
        kind="neti",
        tensors={name: tensor.contiguous() for name, tensor in tensors.items()},
        trigger=str(data.get("placeholder_token", f"<{path.stem}>")),
        class_noun=str(data.get("super_category_token", "object")),
        metadata={"method": "neti", "source": "released by NeTI's authors"},
    )


def _renamed(name: str) -> str:
    """Their module names as ours. Their net's first layer is the input layer once more."""
    head, _, rest = name.partition(".")
    if head == "net":
        number, _, leaf = rest.partition(".")
        return "" if number == "0" else f"net.{int(number) - 1}.{leaf}"
    return name.replace("output_layer.0.", "output_layer.")


def _frequencies(encoder: Any) -> Tensor:
    w_W2 = encoder.state["w"] if "w" in encoder.state else encoder.state["_parameters"]["w"]
    assert isinstance(w_W2, Tensor) and w_W2.shape[1] == 2
    return w_W2.float()


# --- the reader ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """Something that the program would import."""

    module: str
    name: str


@dataclass
class Record:
    """What an object of a foreign class was to be made of; nothing was made."""

    of: Any
    arguments: Any
    state: dict[str, Any] = field(default_factory=dict)


class Mark:
    """The start of a run of values on the stack."""


def _read(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if sum(info.file_size for info in infos.values()) > MAX_BYTES:
            raise LikenessError(
                f"{path} is larger than a mapper can be", expected=f"at most {MAX_BYTES} bytes"
            )
        parts = {name: archive.read(info) for name, info in infos.items()}
    return Reader(parts).follow(parts["data.pkl"])


class Reader:
    """Follows a pickle's instructions as far as data go. Every step that would call something else stops at a
    ``Record``, and an instruction that is not in the table ends the reading."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self.parts = parts
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def follow(self, program: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(io.BytesIO(program)):
            if operation.name == "STOP":
                return self.stack.pop()
            if operation.name in CONSTANTS:
                self.stack.append(CONSTANTS[operation.name]())
            elif operation.name in LITERALS:
                self.stack.append(argument)
            elif operation.name in STEPS:
                STEPS[operation.name](self, argument)
            else:
                raise ValueError(f"it holds the instruction {operation.name}")
        raise ValueError("it ends early")

    def run_of_values(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), Mark):
            values.append(value)
        return values[::-1]

    def put(self, number: Any) -> None:
        self.memo[len(self.memo) if number is None else int(number)] = self.stack[-1]

    def get(self, number: Any) -> None:
        self.stack.append(self.memo[int(number)])

    def name(self, argument: Any) -> None:
        if argument is None:  # STACK_GLOBAL
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, name = argument.split(" ")
        self.stack.append(Name(str(module), str(name)))

    def call(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.stack.append(self.made(what, arguments))

    def made(self, what: Any, arguments: Any) -> Any:
        known = isinstance(what, Name)
        if known and (what.module, what.name) == ("collections", "OrderedDict"):
            return {}
        if known and what.module == "torch._utils" and what.name in REBUILD:
            return self.tensor(*arguments[:4])
        if known and what.module == "torch._utils" and what.name == "_rebuild_parameter":
            return arguments[0]
        return Record(what, arguments)

    def storage(self, _: Any) -> None:
        """A persistent id: ("storage", type, key, place, number of values)."""
        kind, dtype, key, _, count = self.stack.pop()
        if kind != "storage" or not isinstance(dtype, Name) or dtype.name not in STORAGES:
            raise ValueError("it refers to something that is no tensor's storage")
        data = self.parts[f"data/{key}"]
        flat = torch.frombuffer(bytearray(data), dtype=STORAGES[dtype.name])
        if len(flat) < count:
            raise ValueError(f"the storage {key} is too short")
        self.stack.append(flat)

    def tensor(self, flat: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if min((*shape, *stride, offset), default=0) < 0 or (0 not in shape and last >= len(flat)):
            raise ValueError("a tensor reaches beyond its storage")
        return torch.as_strided(flat, tuple(shape), tuple(stride), offset).clone()

    def build(self, _: Any) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Record) and isinstance(state, dict):
            made.state.update(state)

    def items(self, _: Any) -> None:
        values = self.run_of_values()
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][key] = value

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)

    def extend(self, _: Any) -> None:
        values = self.run_of_values()
        self.stack[-1].extend(values)

    def tuple_of(self, number: int) -> None:
        values = [self.stack.pop() for _ in range(number)][::-1]
        self.stack.append(tuple(values))


CONSTANTS: Mapping[str, Any] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list, "MARK": Mark,
}  # fmt: skip
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "INT", "LONG", "FLOAT", "UNICODE",
}  # fmt: skip
STEPS: Mapping[str, Any] = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    "GLOBAL": Reader.name,
    "STACK_GLOBAL": Reader.name,
    "REDUCE": Reader.call,
    "NEWOBJ": Reader.call,
    "BUILD": Reader.build,
    "BINPERSID": Reader.storage,
    "BINPUT": Reader.put,
    "LONG_BINPUT": Reader.put,
    "MEMOIZE": Reader.put,
    "BINGET": Reader.get,
    "LONG_BINGET": Reader.get,
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.run_of_values())),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "SETITEMS": Reader.items,
    "SETITEM": Reader.item,
    "ADDITEMS": Reader.extend,
    "APPEND": Reader.append,
    "APPENDS": Reader.extend,
}

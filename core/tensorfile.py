"""Tensors in a safetensors file: the same tensors give the same bytes in every process.

The safetensors package writes metadata in a random order, so the header is written here; the package reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import paths
from .errors import LikenessError

_CODES = {  # the format's names, https://github.com/huggingface/safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_MAX_HEADER_BYTES = 100_000_000  # the package's own limit
_NOT_SAFETENSORS = {
    b"PK\x03\x04": "it is a zip archive (a PyTorch pickle, .pt or .ckpt)",
    b"\x80\x02": "it is a Python pickle",
    b"\x80\x03": "it is a Python pickle",
    b"\x80\x04": "it is a Python pickle",
    b"\x80\x05": "it is a Python pickle",
    b"version ": "it is a git-lfs pointer, not the file itself",
    b"<!DOCTYPE": "it is a web page",
    b"<html": "it is a web page",
    b"GGUF": "it is a GGUF file",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically (``paths.atomic_writer``): tensors of any device and stride, shared ones as copies.

    Raises LikenessError for a tensor or text that the format cannot hold, and when the disk refuses.
    """
    header, names = _header(path, tensors, metadata)
    num_bytes = len(header) + sum(_num_bytes(tensors[name]) for name in names)
    with paths.atomic_writer(path, verify=_header_check(path, header, num_bytes)) as file:
        file.write(header)
        paths.save_point("writing")
        for name in names:
            file.write(tensor_bytes(tensors[name]))
            paths.save_point("writing")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, copied to CPU memory so that the file stays free to be replaced, and the metadata.

    Raises LikenessError naming the file when it is missing, torn, malformed or a pickle.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
        return tensors, dict(file.metadata() or {})


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone; the header of the file is checked against its size."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def dtype_code(name: str, tensor: Tensor) -> str:
    """The format's name of the tensor's type; LikenessError for what a file cannot hold."""
    if tensor.dtype not in _CODES or tensor.layout != torch.strided or tensor.is_meta:
        kind = "without data" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
        raise LikenessError(
            f"The tensor {name} ({kind}) cannot be saved", expected=f"one of {', '.join(_CODES.values())}"
        )
    return _CODES[tensor.dtype]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Row-major little-endian bytes; a view where the tensor lies so already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _header(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """The header's bytes, and the names in file order: wide types first, which keeps them aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    table: dict[str, Any] = {}
    if metadata:
        table["__metadata__"] = {key: _text(path, key, metadata[key]) for key in sorted(metadata)}
    start = 0
    for name in names:
        if name == "__metadata__":
            raise LikenessError(f"{path}: no tensor may be named __metadata__")
        end = start + _num_bytes(tensors[name])
        code = dtype_code(_text(path, "name", name), tensors[name])
        table[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise LikenessError(f"{path}: names and metadata take {len(text)} bytes, more than a header can hold")
    return len(text).to_bytes(8, "little") + text, names


def _text(path: Path, key: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"metadata {key} is a {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{path}: {key} has half a character (a lone surrogate): {value[:80]!r}"
        raise LikenessError(problem) from error
    return value


def _header_check(path: Path, header: bytes, num_bytes: int) -> Callable[[Path], None]:
    def check(partial: Path) -> None:
        with partial.open("rb") as file:
            if file.read(len(header)) != header or partial.stat().st_size != num_bytes:
                raise LikenessError(
                    f"Could not write {path}: the disk gave back other bytes than were written",
                    fix="Check the disk, or choose a folder on another one",
                )

    return check


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The package's reader, with its errors named after the file."""
    try:
        if not path.is_file():
            raise LikenessError(f"There is no file {path}", expected="a safetensors file")
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LikenessError(
            f"{path} is not a complete safetensors file: {_why(path) or error}",
            expected="a .safetensors file",
            fix="Copy or download it again, or convert it to safetensors",
        ) from error


def _why(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except (OSError, ValueError):
        return ""
    if len(start) < 8:
        return f"it has {len(start)} bytes"
    return next((why for magic, why in _NOT_SAFETENSORS.items() if start.startswith(magic)), "")

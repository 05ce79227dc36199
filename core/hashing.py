"""Content hashes, all sha256 in hex: equal for equal content in every process, whatever the hash seed."""
# A run's key is made of these, so a change here makes every finished run a stranger: see the golden tests.

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from .errors import LikenessError
from .tensorfile import dtype_code, tensor_bytes

_CHUNK_BYTES = 1 << 20
_files: dict[tuple[str, int, int], str] = {}


def hash_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Of a file's bytes; remembered while its path, size and modification time stay the same.

    Raises LikenessError naming the file when it cannot be read.
    """
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        if key not in _files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
            _files[key] = digest.hexdigest()
        return _files[key]
    except OSError as error:
        raise LikenessError(f"Could not read {path}: {error.strerror or error}") from error


def hash_json(value: Any) -> str:
    """Of plain values, dataclasses (by class name and compared fields), enums, paths, tuples and sets.

    Values that Python calls equal hash equally: 1 and 1.0, a list and a tuple, any order of keys. Raises
    TypeError for anything whose content is not plain, ValueError for NaN.
    """
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hash_bytes(text.encode("ascii"))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes; not of order, device or strides."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, dtype_code(name, tensor), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def canonical(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, enum.Enum):
        return canonical(value.value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float, str)):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {_key(k): canonical(v) for k, v in value.items()}
    if isinstance(value, Set):
        return sorted((canonical(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    raise TypeError(f"a {type(value).__name__} has no canonical form to hash")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a mapping's keys must be text to be hashed, not {type(key).__name__}")
    return key

"""Checkpoints: one safetensors file each, weights, optimizer tensors and state, so that nothing can tear.

Written beside, synced, read back, renamed (``paths.atomic_writer``); found newest first, by number and by
proof of content, never by a pointer file that could disagree.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import paths
from .errors import LikenessError, NonFiniteLoss
from .hashing import hash_json, hash_tensors
from .tensorfile import read_tensors, write_tensors

log = logging.getLogger(__name__)

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
FORMAT = "likeness-checkpoint-1"
_NAME = re.compile(r"step_(\d+)\.safetensors")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` finished steps lies."""
    return folder / f"step_{step:08d}.safetensors"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, JSON]) -> None:
    """Write tensors and JSON state as one file, whole or not at all.

    Floats in ``state`` come back bit for bit. Raises NonFiniteLoss, with nothing written, when a tensor or
    the state holds NaN or infinity; LikenessError when the disk refuses.
    """
    require_finite(tensors, what=f"the checkpoint {path.name}")
    metadata = {
        "format": FORMAT,
        "state": _to_text(path, state),
        "torch": str(torch.__version__),
    }
    metadata["sha256"] = _digest(tensors, metadata)
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (CPU) and state, after every byte was checked against the digest in the file.

    Raises LikenessError naming the file when it is missing, torn, changed or no checkpoint of ours.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise LikenessError(f"{path} is no checkpoint of Likeness", expected=f"format {FORMAT}")
    digest = metadata.pop("sha256", "")
    if _digest(tensors, metadata) != digest:
        raise LikenessError(f"{path} is damaged: its content is not what was saved")
    state = json.loads(metadata["state"])
    return tensors, state


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step that loads; damaged ones are passed over with a warning.

    Also removes what killed writers left behind. None when there is no checkpoint to go on from.
    """
    try:
        if not folder.is_dir():
            return None
        paths.remove_partials(folder)
        found = list_checkpoints(folder)
    except OSError as error:
        raise LikenessError(f"Could not read {folder}: {error.strerror or error}") from error
    for path in found:
        try:
            load_checkpoint(path)
        except LikenessError as error:
            log.warning("Falling back to an older checkpoint: %s", error)
            continue
        return path
    return None


def prune_checkpoints(folder: Path, keep: int, protect: Collection[Path] = ()) -> list[Path]:
    """Remove all but the ``keep`` newest and the protected ones, oldest first; what was removed.

    Call it after ``save_checkpoint`` has returned: only then is there a newer one to fall back on.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint must be kept")
    protected = {path.resolve() for path in protect}
    removed = [path for path in list_checkpoints(folder)[keep:] if path.resolve() not in protected][::-1]
    for path in removed:
        paths.save_point("pruning")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise paths.write_error(path, error) from error
        paths.save_point("pruned")
    return removed


def list_checkpoints(folder: Path) -> list[Path]:
    """All files with a checkpoint's name, the highest step first; not opened."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def require_finite(tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Raise NonFiniteLoss, naming the tensor, when one holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteLoss(
                f"{name} is no longer finite, so {what} was not written",
                fix="Lower the learning rate, or use bf16 or fp32",
            )


def _to_text(path: Path, state: Mapping[str, JSON]) -> str:
    try:
        return json.dumps(dict(state), sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise NonFiniteLoss(
            f"The state holds NaN or infinity, so the checkpoint {path.name} was not written",
            fix="Lower the learning rate, or use bf16 or fp32",
        ) from error


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return hash_json([hash_tensors(tensors), metadata])

"""Where segmenters' weights are on this machine. Nothing is ever downloaded, and no pickle is trusted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import LikenessError


def find_folder(kind: str, roots: Sequence[Path], *, such_as: str) -> Path:
    """A model in transformers' layout: ``ROOT/kind`` itself or the first folder in it, by name.

    Looks in ``roots``, then in the folder that ``LIKENESS_MODELS`` names. LikenessError says where it
    looked and what to put there.
    """
    for place in _places(kind, roots):
        candidates = [place, *sorted(p for p in place.glob("*") if p.is_dir())]
        found = next((p for p in candidates if (p / "config.json").is_file()), None)
        if found is not None:
            return found
    raise _absent(kind, roots, f"a folder with config.json and model.safetensors, such as {such_as}")


def find_file(kind: str, roots: Sequence[Path], suffixes: Sequence[str], *, such_as: str) -> Path:
    """The first weights file below ``ROOT/kind`` with one of the suffixes, by suffix and then by name."""
    for place in _places(kind, roots):
        for suffix in suffixes:
            for path in sorted(place.glob(f"*{suffix}")):
                return path
    raise _absent(kind, roots, f"a file such as {such_as}")


def has_folder(kind: str, roots: Sequence[Path]) -> bool:
    """Whether ``find_folder`` would find one."""
    try:
        find_folder(kind, roots, such_as="")
    except LikenessError:
        return False
    return True


def read_weights(path: Path) -> dict[str, Any]:
    """A state dict from .safetensors, or from a .pth that holds tensors and nothing else."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a pickle that holds code is refused with UnpicklingError
        raise LikenessError(
            f"{path} cannot be read as weights: {error}", expected="a file of tensors and nothing else"
        ) from error


def _places(kind: str, roots: Sequence[Path]) -> list[Path]:
    named = os.getenv("LIKENESS_MODELS")
    return [root / kind for root in (*roots, *([Path(named)] if named else []))]


def _absent(kind: str, roots: Sequence[Path], expected: str) -> LikenessError:
    places = " or ".join(str(place) for place in _places(kind, roots)) or f"a models folder with {kind}"
    return LikenessError(
        f"There is no {kind} model in {places}",
        expected=expected,
        fix="Put one there; Likeness never downloads by itself. grabcut needs no weights",
    )

"""Whether a base model's files are all there, by their headers alone: cheap enough for every look at it.

So what an interrupted download or copy leaves is told where the model is chosen, not minutes later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import LikenessError
from ..core.tensorfile import read_metadata
from .base import BaseModel
from .loading import source_path

INDEX = "model_index.json"
CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
# Parts of a pipeline that nothing here opens.
UNUSED = {"feature_extractor", "safety_checker", "image_encoder"}
PARTIAL = (".incomplete", ".part", ".aria2", ".crdownload")  # what downloaders call an unfinished file


def check_complete(base: BaseModel) -> None:
    """Raise LikenessError naming what lacks or is torn of a checkpoint file or a diffusers folder."""
    path = source_path(base)
    problem = _folder_problem(path) if path.is_dir() else _file_problem(path)
    if problem:
        raise LikenessError(
            f"The model {path} is not complete: {problem}", fix="Download or copy it again, to the end"
        )


def _file_problem(path: Path) -> str:
    """Of a .safetensors file; other endings are refused by name where they are opened."""
    if path.suffix != ".safetensors":
        return ""
    try:
        read_metadata(path)
    except LikenessError as error:
        return str(error)
    return ""


def _folder_problem(folder: Path) -> str:
    partial = sorted(p for p in folder.rglob("*") if p.name.endswith(PARTIAL))
    if partial:
        return f"{partial[0].relative_to(folder)} is an unfinished download"
    for part in _parts(folder):
        if not (folder / part / CONFIGS.get(part, "config.json")).is_file():
            return f"{part}/{CONFIGS.get(part, 'config.json')} is missing"
        if part not in CONFIGS and (problem := _weights_problem(folder / part)):
            return problem
    return ""


def _parts(folder: Path) -> Iterator[str]:
    """The subfolders that the pipeline's index names: ``"unet": ["diffusers", "UNet2DConditionModel"]``."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        named = dict(index)
    except (OSError, ValueError, TypeError) as error:
        raise LikenessError(
            f"{folder / INDEX} cannot be read ({error})", expected="a complete diffusers folder"
        ) from error
    for part, made_of in named.items():
        if isinstance(made_of, list) and made_of and made_of[0] and part not in UNUSED:
            yield part


def _weights_problem(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):  # pickles are refused by name where they are opened
        return f"{folder.name} has no weights"
    return next(filter(None, map(_file_problem, files)), "")

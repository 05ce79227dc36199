"""A model that is not all there is told by its headers, and a whole one passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from likeness.backbones.base import BaseModel
from likeness.backbones.complete import check_complete
from likeness.core.errors import LikenessError
from likeness.core.tensorfile import write_tensors

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an unfinished file": (lambda f: (f / WEIGHTS).rename(f / f"{WEIGHTS}.incomplete"), "unfinished"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "unet has no weights"),
    "half a file": (cut, "diffusion_pytorch_model"),
    "no folder": (lambda f: shutil.rmtree(f / "vae"), "vae/config.json is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer/tokenizer_config.json is missing"),
    "no index": (lambda f: (f / "model_index.json").unlink(), r"model_index\.json cannot be read"),
    "half an index": (lambda f: (f / "model_index.json").write_text('{"unet":'), r"model_index\.json cannot"),
    "a list for an index": (
        lambda f: (f / "model_index.json").write_text("[1]"),
        r"model_index\.json cannot",
    ),
}


@pytest.mark.parametrize("how", BREAKS)
def test_what_lacks_is_named(how: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline, folder)
    base = BaseModel(source=str(folder), device="cpu")
    check_complete(base)  # whole
    breaks, words = BREAKS[how]
    breaks(folder)
    with pytest.raises(LikenessError, match=words) as error:
        check_complete(base)
    assert str(folder) in str(error.value)


def test_a_checkpoint_that_is_half_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.zeros(100)}, {})
    check_complete(BaseModel(source=str(path)))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LikenessError, match=r"model\.safetensors is not complete"):
        check_complete(BaseModel(source=str(path)))


def test_toybox_is_whole() -> None:
    check_complete(BaseModel(source="toybox"))

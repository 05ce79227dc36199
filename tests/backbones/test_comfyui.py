"""ComfyUI's own UNet gives the same noise prediction with the same weights."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from likeness.backbones.base import BaseModel, TextStates
from likeness.backbones.loading import load_backbone
from likeness.core.randomness import normal
from likeness.core.tensorfile import read_tensors, write_tensors
from likeness.headless.comfyui import Install
from torch import nn


def test_comfyui_predicts_the_same_noise(
    comfyui: Install,
    tmp_path: Path,
    single_file_models: Callable[[str], dict[str, nn.Module]],
    write_single_file: Callable[..., Path],
) -> None:
    families = ("sd1", "sd2")
    paths = [tmp_path / f"{family}.safetensors" for family in families]
    for path, family in zip(paths, families, strict=True):
        write_single_file(path, family, single_file_models(family))
    given = {
        "noisy": normal((2, 4, 8, 8), 0, "noisy"),
        "t": torch.tensor([10, 900]),
        "context": normal((2, 77, 32), 0, "context"),
    }
    inputs, output = tmp_path / "inputs.safetensors", tmp_path / "output.safetensors"
    write_tensors(inputs, given, {})
    child = Path(__file__).with_name("comfyui_child.py")
    command = [comfyui.python, child, comfyui.path, inputs, output, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = read_tensors(output)[0]
    for number, path in enumerate(paths):
        model = load_backbone(BaseModel(source=str(path), device="cpu"))
        ours = model.predict(given["noisy"], given["t"], TextStates(given["context"]))
        assert float((ours - theirs[str(number)]).norm() / ours.norm()) < 1e-5

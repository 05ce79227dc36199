"""A diffusers folder, opened from its own configs and safetensors files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import LikenessError
from . import recognise
from .ldm import Shapes
from .parts import Parts, fill, opened, text_module, unet_module, vae_module
from .schedule import schedule_from_config
from .tokens import tokens_from_folder

# Diffusers' first names of a VAE's attention layers, which the official SD 1.x folders still have.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def read_folder(folder: Path, dtype: torch.dtype) -> Parts:
    """The parts of an SD 1.x, 2.x or XL pipeline, the UNet in ``dtype``, all else in fp32.

    Raises LikenessError naming what is missing, damaged, or of another kind of model.
    """
    encoders = recognise.text_encoders(folder, _json(folder / "model_index.json"))
    words = [name.replace("text_encoder", "tokenizer") for name in encoders]
    configs = [f"{part}/config.json" for part in ("unet", "vae", *encoders)]
    needed = (*configs, *words, "scheduler/scheduler_config.json")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise LikenessError(
            f"The folder {folder} lacks {', '.join(missing)}", expected="a complete diffusers pipeline"
        )
    unet_config, vae_config, *text_configs = [_json(folder / config) for config in configs]
    recognise.check_unet(folder, unet_config.get("in_channels", 4), vae_config.get("latent_channels", 4))
    cell = 2 ** (len(vae_config["block_out_channels"]) - 1)
    return Parts(
        family=_family(unet_config, encoders),
        unet=_read_part(folder / "unet", lambda: unet_module(unet_config), dtype),
        vae=_read_part(folder / "vae", lambda: vae_module(vae_config), torch.float32),
        text_encoders=tuple(
            _read_part(
                folder / name, partial(text_module, config, projects=name == "text_encoder_2"), torch.float32
            )
            for name, config in zip(encoders, text_configs, strict=True)
        ),
        tokens=tuple(tokens_from_folder(folder / name) for name in words),
        schedule=schedule_from_config(_json(folder / "scheduler/scheduler_config.json")),
        image_size=int(unet_config.get("sample_size", 64)) * cell,
    )


def folder_family(folder: Path) -> str:
    """ "sd1", "sd2" or "sdxl", from the configs alone. Raises LikenessError for another kind of pipeline."""
    encoders = recognise.text_encoders(folder, _json(folder / "model_index.json"))
    return _family(_json(folder / "unet" / "config.json"), encoders)


def _family(unet_config: dict[str, Any], encoders: tuple[str, ...]) -> str:
    if len(encoders) == 2:
        return "sdxl"
    return "sd2" if unet_config.get("use_linear_projection") else "sd1"


def _read_part(folder: Path, make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    files = weight_files(folder)
    if len(files) != 1:
        pickles = sorted(folder.glob("*.bin"))
        if pickles:
            recognise.refuse_pickle(pickles[0])
        found = ", ".join(file.name for file in files) or "none"
        raise LikenessError(
            f"The folder {folder} has {len(files)} weight files ({found})",
            expected="one .safetensors file, not split",
        )
    with opened(files[0]) as (shapes, read):
        return fill(str(files[0]), make, shapes, lambda name: _stored_name(name, shapes), read, dtype)


def _stored_name(name: str, shapes: Shapes) -> str | None:
    """``name`` as the file has it: files outlive the names of the libraries that wrote them."""
    bare = name.removeprefix("text_model.")
    old = name
    for new_name, old_name in _OLD_NAMES.items():
        old = old.replace(f".{new_name}.", f".{old_name}.")
    return next((n for n in (name, bare, f"text_model.{bare}", old) if n in shapes), None)


def weight_files(folder: Path) -> list[Path]:
    """A part's weights: those of full precision where there are several variants."""
    for pattern in ("diffusion_pytorch_model.safetensors", "model.safetensors", "*.safetensors"):
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LikenessError(
            f"{path} cannot be read as JSON ({error})", expected="a complete diffusers folder"
        ) from error
    if not isinstance(data, dict):
        raise LikenessError(f"{path} holds no settings", expected="a JSON object")
    return data

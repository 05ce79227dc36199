"""What a weights file is, told from its key names, so that a wrong one is named in the error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from . import ldm

_WANTED = "a Stable Diffusion 1.x or 2.x checkpoint (.safetensors), or a diffusers folder of one"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

# Words in a key, first match wins, and what a file with such keys is.
_OTHERS = (
    ("lora_", "a LoRA, which is applied to a base model"),
    (".lora", "a LoRA, which is applied to a base model"),
    ("hada_w1", "a LoHa, which is applied to a base model"),
    ("emb_params", "a textual inversion embedding"),
    ("string_to_param", "a textual inversion embedding"),
    ("control_model.", "a ControlNet"),
    ("conditioner.embedders.1.", "a Stable Diffusion XL checkpoint"),
    ("conditioner.embedders.0.", "a Stable Diffusion XL refiner"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("double_stream_modulation", "a Flux 2 checkpoint"),
    ("transformer_blocks.0.attn.", "a diffusion transformer in diffusers' layout"),
    ("down_blocks.0.", "one part of a diffusers folder; give the folder that holds model_index.json"),
    ("text_model.", "a text encoder alone"),
    (ldm.UNET, "a UNet without its VAE and text encoder"),
    ("first_stage_model.", "a VAE alone"),
    ("encoder.down.", "a VAE alone"),
)
# Classes in a diffusers folder's model_index.json, by a word in their name; first match wins.
_OTHER_PIPELINES = (
    ("XL", "Stable Diffusion XL"),
    ("Diffusion3", "Stable Diffusion 3"),
    ("Flux", "Flux"),
    ("Inpaint", "an inpainting model"),
    ("InstructPix2Pix", "InstructPix2Pix"),
    ("Upscale", "an upscaler"),
    ("ControlNet", "a ControlNet pipeline"),
)


def refuse_pickle(path: Path) -> None:
    """Raise LikenessError for a file type that can run code when opened."""
    if path.suffix.lower() in _PICKLES:
        raise LikenessError(
            f"{path} is a pickle, which can run any program when it is opened",
            expected=_WANTED,
            fix="Convert it to safetensors with a tool that you trust, or download the .safetensors file",
        )


def check_keys(path: Path, keys: Collection[str]) -> None:
    """Raise LikenessError unless the keys are those of a whole SD 1.x or 2.x checkpoint."""
    heads = (ldm.UNET + "input_blocks.0.0.", ldm.VAE, "cond_stage_model.")
    if all(any(key.startswith(head) for key in keys) for head in heads):
        return
    found = next((what for mark, what in _OTHERS if any(mark in key for key in keys)), "")
    raise LikenessError(
        f"{path} is {found}" if found else f"{path} is not a checkpoint of a known kind",
        expected=_WANTED,
    )


def check_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise LikenessError unless model_index.json describes an SD 1.x or 2.x pipeline."""
    name = str(index.get("_class_name", ""))
    found = next((what for mark, what in _OTHER_PIPELINES if mark in name), "")
    if "text_encoder_2" in index or "transformer" in index:
        found = found or "a model of another family"
    if found:
        raise LikenessError(f"The folder {folder} holds {found} ({name})", expected=_WANTED)


def check_unet(path: Path, in_channels: int, latent_channels: int) -> None:
    """Raise LikenessError for a UNet that reads more than the noisy latents (inpainting, depth, edits)."""
    if in_channels != latent_channels:
        raise LikenessError(
            f"The UNet of {path} reads {in_channels} channels: it is an inpainting, depth or editing model",
            expected=f"a text-to-image model, which reads {latent_channels}",
        )

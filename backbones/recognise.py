"""What a weights file is, told from its key names, so that a wrong one is named in the error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from . import ldm

_WANTED = "a Stable Diffusion 1.x, 2.x or XL checkpoint (.safetensors), or a diffusers folder of one"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

# Words in a key, first match wins, and what a file with such keys is.
_OTHERS = (
    ("lora_", "a LoRA, which is applied to a base model"),
    (".lora", "a LoRA, which is applied to a base model"),
    ("hada_w1", "a LoHa, which is applied to a base model"),
    ("emb_params", "a textual inversion embedding"),
    ("string_to_param", "a textual inversion embedding"),
    ("control_model.", "a ControlNet"),
    ("conditioner.embedders.0.model.", "a Stable Diffusion XL refiner"),
    ("conditioner.embedders.", "a Stable Diffusion XL checkpoint that is not whole"),
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
    ("Diffusion3", "Stable Diffusion 3"),
    ("Flux", "Flux"),
    ("Inpaint", "an inpainting model"),
    ("InstructPix2Pix", "InstructPix2Pix"),
    ("Upscale", "an upscaler"),
    ("ControlNet", "a ControlNet pipeline"),
    ("XLImg2Img", "a Stable Diffusion XL refiner"),
)
# Marker tensors of models whose noise has another parameterisation (ComfyUI's comfy/supported_models.py).
_EDM = ("edm_mean", "edm_vpred.sigma_max")
# What every key of a text encoder begins with, by family.
_TEXT_ENCODERS = {
    "sdxl": (ldm.XL_CLIP, ldm.XL_OPEN_CLIP),
    "sd2": (ldm.OPEN_CLIP,),
    "sd1": (ldm.CLIP,),
}


def refuse_pickle(path: Path) -> None:
    """Raise LikenessError for a file type that can run code when opened."""
    if path.suffix.lower() in _PICKLES:
        raise LikenessError(
            f"{path} is a pickle, which can run any program when it is opened",
            expected=_WANTED,
            fix="Convert it to safetensors with a tool that you trust, or download the .safetensors file",
        )


def family_of_keys(path: Path, keys: Collection[str]) -> str:
    """ "sd1", "sd2" or "sdxl". Raises LikenessError unless the keys are those of a whole checkpoint."""
    for family, encoders in _TEXT_ENCODERS.items():
        heads = (f"{ldm.UNET}input_blocks.0.0.", ldm.VAE, *encoders)
        if all(any(key.startswith(head) for key in keys) for head in heads):
            _refuse_edm(path, keys)
            return family
    found = next((what for mark, what in _OTHERS if any(mark in key for key in keys)), "")
    raise LikenessError(
        f"{path} is {found}" if found else f"{path} is not a checkpoint of a known kind",
        expected=_WANTED,
    )


def _refuse_edm(path: Path, keys: Collection[str]) -> None:
    if any(mark in keys for mark in _EDM):
        raise LikenessError(
            f"{path} is an EDM model (as Playground 2.5), whose noise schedule is not known here",
            expected=_WANTED,
        )


def text_encoders(folder: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The text encoders of the pipeline that model_index.json describes: one, or SDXL's two.

    Raises LikenessError unless it is an SD 1.x, 2.x or XL pipeline.
    """
    name = str(index.get("_class_name", ""))
    found = next((what for mark, what in _OTHER_PIPELINES if mark in name), "")
    if "transformer" in index or ("text_encoder_2" in index and "XL" not in name):
        found = found or "a model of another family"
    if found:
        raise LikenessError(f"The folder {folder} holds {found} ({name})", expected=_WANTED)
    return ("text_encoder", "text_encoder_2") if "XL" in name else ("text_encoder",)


def check_unet(path: Path, in_channels: int, latent_channels: int) -> None:
    """Raise LikenessError for a UNet that reads more than the noisy latents (inpainting, depth, edits)."""
    if in_channels != latent_channels:
        raise LikenessError(
            f"The UNet of {path} reads {in_channels} channels: it is an inpainting, depth or editing model",
            expected=f"a text-to-image model, which reads {latent_channels}",
        )

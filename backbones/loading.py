"""Opening a base model from files alone: a single-file checkpoint, a diffusers folder, or Toybox.

Nothing here can reach a network: configs come from the files or their shapes, modules are built empty and
filled tensor by tensor, and no library's own loader is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from ..core.errors import LikenessError
from ..core.hashing import hash_file, hash_json
from .base import BaseModel
from .device import device_name
from .folder import folder_family, read_folder, weight_files
from .inference import normal_tensors
from .sd import SDBackbone
from .sdxl import SDXLBackbone
from .single_file import file_family, read_single_file

TOYBOX = Path(__file__).parent / "toybox" / "weights"
SMALL_PX = 128  # up to here plain attention, whose memory grows with the square of the pixels, costs nothing
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@normal_tensors
def load_backbone(base: BaseModel) -> SDBackbone:
    """Open ``base.source`` and place it. Raises LikenessError for what is not an SD 1.x, 2.x or XL model."""
    device, dtype = _device(base), _dtype(base)
    path = source_path(base)
    parts = read_folder(path, dtype) if path.is_dir() else read_single_file(path, dtype)
    unet = parts.unet.to(device)
    resting = torch.device("cpu") if base.offload else device
    vae, encoders = parts.vae.to(resting), [encoder.to(resting) for encoder in parts.text_encoders]
    if dtype == torch.bfloat16 and device.type == "cpu" and parts.image_size <= SMALL_PX:
        # torch's fused attention goes back 10 times slower there
        unet.set_attn_processor(AttnProcessor())  # type: ignore[operator]
    if base.channels_last:
        unet, vae = unet.to(memory_format=torch.channels_last), vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if base.gradient_checkpointing:
        unet.train()  # older diffusers checkpoint in training mode only; the UNet has no dropout
        unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if base.compile:
        unet.compile()
    fields: dict[str, Any] = {
        "base": base,
        "family": "toybox" if base.source == "toybox" else parts.family,
        "content_hash": content_hash(base),
        "unet": unet,
        "vae": vae,
        "text_encoder": encoders[0],
        "tokens": parts.tokens[0],
        "schedule": parts.schedule,
        "image_size": parts.image_size,
        "device": device,
        "dtype": dtype,
    }
    if parts.family == "sdxl":
        return SDXLBackbone(**fields, text_encoder_2=encoders[1], tokens_2=parts.tokens[1])
    return SDBackbone(**fields)


def source_path(base: BaseModel) -> Path:
    """The file or folder behind ``base.source``. Raises LikenessError when there is none."""
    if base.source == "toybox":
        if not (TOYBOX / "model_index.json").is_file():
            raise LikenessError(
                "Toybox's weights are not in this installation",
                expected=f"a diffusers folder in {TOYBOX}",
                fix="Install the package again, or train them with: likeness toybox train",
            )
        return TOYBOX
    path = Path(base.source).expanduser()
    if not path.exists():
        raise LikenessError(
            f"There is no file or folder {path}",
            expected='a .safetensors checkpoint, a diffusers folder, or "toybox"',
        )
    return path


def family_of(base: BaseModel) -> str:
    """ "toybox", "sd1", "sd2" or "sdxl", without opening the weights. LikenessError for anything else."""
    if base.source == "toybox":
        return "toybox"
    path = source_path(base)
    return folder_family(path) if path.is_dir() else file_family(path)


def source_files(base: BaseModel) -> list[Path]:
    """The files that opening ``base`` reads, in a fixed order."""
    path = source_path(base)
    if path.is_file():
        return [path]
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    weights = [file for part in parts for file in weight_files(path / part)]
    configs = [path / part / "config.json" for part in parts if (path / part).is_dir()]
    scheduler = path / "scheduler" / "scheduler_config.json"
    words = [file for part in ("tokenizer", "tokenizer_2") for file in sorted((path / part).glob("*"))]
    return [*weights, *configs, scheduler, *words]


def content_hash(base: BaseModel) -> str:
    """Of the files' contents and their names inside the folder; the folder's place does not matter."""
    path = source_path(base)
    if path.is_file():
        digest: str = hash_file(path)
    else:
        files = [file for file in source_files(base) if file.is_file()]
        digest = hash_json({file.relative_to(path).as_posix(): hash_file(file) for file in files})
    return digest


# --- device and precision --------------------------------------------------------------------------


def _device(base: BaseModel) -> torch.device:
    name = device_name(base.device)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LikenessError(
            f"The device {name!r} cannot be used ({str(error).splitlines()[0]})",
            expected="auto, cpu, cuda, cuda:0 or mps",
        ) from error
    return device


def _dtype(base: BaseModel) -> torch.dtype:
    """ "auto" is half precision where the device is fast at it: bf16, or fp16 before NVIDIA's Ampere."""
    if base.dtype in _DTYPES:
        return _DTYPES[base.dtype]
    if _device(base).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16

"""Tiny single-file checkpoints in the layouts of SD 1.x, 2.x and XL, with CLIP's real vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from likeness.backbones import ldm
from likeness.core.tensorfile import write_tensors
from torch import Tensor, nn


def make_models(family: str) -> dict[str, nn.Module]:
    """The modules of "sd1", "sd2" or "sdxl", seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        models = {
            "unet": _unet(family),
            "vae": _vae(0.13025 if family == "sdxl" else 0.18215),
            "text_encoder": _text_encoder("gelu" if family == "sd2" else "quick_gelu", width=32),
        }
        if family == "sdxl":  # core takes no fewer than three layers
            models["text_encoder"] = _text_encoder("quick_gelu", width=32, layers=3)
            models["text_encoder_2"] = _text_encoder("gelu", width=64, layers=3, projects=True)
        for model in models.values():
            for p in model.parameters():
                if p.ndim == 1:
                    p.data.add_(0.05 * torch.randn_like(p))
    return {name: model.eval() for name, model in models.items()}


def write_checkpoint(
    path: Path, family: str, models: Mapping[str, nn.Module], metadata: Mapping[str, str] | None = None
) -> Path:
    """The modules' tensors under the names of the original code."""
    tensors = {
        **_renamed(models["unet"], ldm.UNET, ldm.unet_table(models["unet"].config)),
        **_renamed(models["vae"], ldm.VAE, ldm.vae_table(models["vae"].config)),
        "alphas_cumprod": torch.ones(1000),  # as in the published files, unread
    }
    clip = models["text_encoder"]
    if family == "sd2":
        tensors |= _with_unused_layer(_open_clip_tensors(clip, ldm.OPEN_CLIP), 2)
    else:
        start = ldm.XL_CLIP if family == "sdxl" else ldm.CLIP
        named = {name.removeprefix("text_model."): t for name, t in clip.state_dict().items()}
        tensors |= {f"{start}text_model.{name}": t for name, t in named.items()}
    if family == "sdxl":
        tensors |= _open_clip_tensors(models["text_encoder_2"], ldm.XL_OPEN_CLIP)
    write_tensors(path, tensors, metadata or {})
    return path


def _renamed(module: nn.Module, prefix: str, table: Mapping[str, str]) -> dict[str, Tensor]:
    """A module's tensors under the names of the original code."""
    out = {}
    for name, tensor in module.state_dict().items():
        key = ldm.rename(name, table)
        assert key is not None, name
        is_vae_attention = ".attn_1." in key and tensor.ndim == 2
        out[prefix + key] = tensor[:, :, None, None] if is_vae_attention else tensor
    return out


def _open_clip_tensors(text_encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A text encoder in open_clip's layout."""
    state = {name.removeprefix("text_model."): t for name, t in text_encoder.state_dict().items()}
    out: dict[str, Tensor] = {}
    layers = text_encoder.config.num_hidden_layers
    table = ldm.open_clip_table(layers)
    for name, tensor in state.items():
        if name == "embeddings.position_embedding.weight":
            out["positional_embedding"] = tensor
        elif name == "text_projection.weight":
            out["text_projection"] = tensor.T
        elif ".self_attn." not in name or ".out_proj." in name:
            key = ldm.rename(name, table)
            assert key is not None, name
            out[key] = tensor
    for n in range(layers):
        for side in ("weight", "bias"):
            parts = [state[f"encoder.layers.{n}.self_attn.{p}_proj.{side}"] for p in "qkv"]
            out[f"transformer.resblocks.{n}.attn.in_proj_{side}"] = torch.cat(parts)
    return {prefix + k: v for k, v in out.items()}


def _with_unused_layer(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """And with the last layer that SD 2.x never uses."""
    last = {k: v for k, v in tensors.items() if f"resblocks.{layers - 1}." in k}
    zeros = {k.replace(f".{layers - 1}.", f".{layers}.", 1): torch.zeros_like(v) for k, v in last.items()}
    return {**tensors, **zeros}


def _unet(family: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    attends, plain = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
    levels = [plain, attends] if family == "sdxl" else [attends, plain]
    settings: dict[str, Any] = {
        "sd1": {"block_out_channels": (32, 64), "attention_head_dim": 8},
        "sd2": {"block_out_channels": (64, 128), "attention_head_dim": (1, 2), "use_linear_projection": True},
        "sdxl": {
            "block_out_channels": (32, 64),
            "attention_head_dim": (1, 1),
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 2],
            "cross_attention_dim": 32 + 64,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 64 + 6 * 256,
        },
    }[family]
    return UNet2DConditionModel(
        layers_per_block=2,
        down_block_types=tuple(down for down, _ in levels),
        up_block_types=tuple(up for _, up in reversed(levels)),
        **{"cross_attention_dim": 32, **settings},
    )


def _vae(scaling_factor: float) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=scaling_factor,
    )


def _text_encoder(act: str, *, width: int, layers: int = 2, projects: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    model: nn.Module = CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)
    return model

"""Backbones to test on, opened once, and a writer of single-file checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import ldm
from likeness.backbones.base import BaseModel
from likeness.backbones.loading import load_backbone
from likeness.backbones.sd import SDBackbone
from likeness.backbones.sdxl import SDXLBackbone
from likeness.core.tensorfile import write_tensors
from torch import Tensor, nn

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def v_pipeline(tmp_path_factory: pytest.TempPathFactory, make_tiny_pipeline: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny_v"
    return make_tiny_pipeline(folder, prediction_type="v_prediction", seed=1)


@pytest.fixture(scope="session")
def backbone(tiny_pipeline: Path) -> SDBackbone:
    return load_backbone(BaseModel(source=str(tiny_pipeline), device="cpu"))


@pytest.fixture(scope="session")
def v_backbone(v_pipeline: Path) -> SDBackbone:
    return load_backbone(BaseModel(source=str(v_pipeline), device="cpu"))


@pytest.fixture(scope="session")
def sdxl(tiny_sdxl: Path) -> SDXLBackbone:
    model = load_backbone(BaseModel(source=str(tiny_sdxl), device="cpu"))
    assert isinstance(model, SDXLBackbone)
    return model


@pytest.fixture(params=["backbone", "v_backbone"])
def either(request: pytest.FixtureRequest) -> SDBackbone:
    """An epsilon and a v model in turn."""
    found: SDBackbone = request.getfixturevalue(request.param)
    return found


def renamed(module: nn.Module, prefix: str, table: Mapping[str, str]) -> dict[str, Tensor]:
    """A module's tensors under the names of the original code."""
    out = {}
    for name, tensor in module.state_dict().items():
        key = ldm.rename(name, table)
        assert key is not None, name
        is_vae_attention = ".attn_1." in key and tensor.ndim == 2
        out[prefix + key] = tensor[:, :, None, None] if is_vae_attention else tensor
    return out


def open_clip_tensors(text_encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
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


def with_unused_layer(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """And with the last layer that SD 2.x never uses."""
    last = {k: v for k, v in tensors.items() if f"resblocks.{layers - 1}." in k}
    zeros = {k.replace(f".{layers - 1}.", f".{layers}.", 1): torch.zeros_like(v) for k, v in last.items()}
    return {**tensors, **zeros}


@pytest.fixture(scope="session")
def single_file_models() -> Callable[[str], dict[str, nn.Module]]:
    """The modules of a tiny checkpoint with CLIP's real vocabulary, for "sd1", "sd2" or "sdxl"."""

    def make(family: str) -> dict[str, nn.Module]:
        torch.manual_seed(3)
        models = {
            "unet": _unet(family),
            "vae": _vae(),
            "text_encoder": _text_encoder("gelu" if family == "sd2" else "quick_gelu", width=32),
        }
        if family == "sdxl":
            models["text_encoder_2"] = _text_encoder("gelu", width=64, projects=True)
        for model in models.values():
            for p in model.parameters():
                if p.ndim == 1:
                    p.data.add_(0.05 * torch.randn_like(p))
        return {name: model.eval() for name, model in models.items()}

    return make


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


def _vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


def _text_encoder(act: str, *, width: int, projects: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    model: nn.Module = CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)
    return model


@pytest.fixture(scope="session")
def write_single_file() -> Writer:
    def write(
        path: Path, family: str, models: Mapping[str, nn.Module], metadata: Mapping[str, str] | None = None
    ) -> Path:
        tensors = {
            **renamed(models["unet"], ldm.UNET, ldm.unet_table(models["unet"].config)),
            **renamed(models["vae"], ldm.VAE, ldm.vae_table(models["vae"].config)),
            "alphas_cumprod": torch.ones(1000),  # as in the published files, unread
        }
        clip = models["text_encoder"]
        if family == "sd2":
            tensors |= with_unused_layer(open_clip_tensors(clip, ldm.OPEN_CLIP), 2)
        else:
            start = ldm.XL_CLIP if family == "sdxl" else ldm.CLIP
            named = {name.removeprefix("text_model."): t for name, t in clip.state_dict().items()}
            tensors |= {f"{start}text_model.{name}": t for name, t in named.items()}
        if family == "sdxl":
            tensors |= open_clip_tensors(models["text_encoder_2"], ldm.XL_OPEN_CLIP)
        write_tensors(path, tensors, metadata or {})
        return path

    return write

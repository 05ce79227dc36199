"""Backbones to test on, opened once, and a writer of single-file checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from likeness.backbones import ldm
from likeness.backbones.base import BaseModel
from likeness.backbones.loading import load_backbone
from likeness.backbones.sd import SDBackbone
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


def open_clip_tensors(text_encoder: nn.Module) -> dict[str, Tensor]:
    """A text encoder in open_clip's layout, with the last layer that SD 2.x never uses."""
    state, out = text_encoder.state_dict(), {}
    layers = text_encoder.config.num_hidden_layers
    table = ldm.open_clip_table(layers)
    for name, tensor in state.items():
        if name == "embeddings.position_embedding.weight":
            out["positional_embedding"] = tensor
        elif ".self_attn." not in name or ".out_proj." in name:
            key = ldm.rename(name, table)
            assert key is not None, name
            out[key] = tensor
    for n in range(layers):
        for side in ("weight", "bias"):
            parts = [state[f"encoder.layers.{n}.self_attn.{p}_proj.{side}"] for p in "qkv"]
            out[f"transformer.resblocks.{n}.attn.in_proj_{side}"] = torch.cat(parts)
    last = {k: v for k, v in out.items() if k.startswith(f"transformer.resblocks.{layers - 1}.")}
    out |= {k.replace(f".{layers - 1}.", f".{layers}.", 1): torch.zeros_like(v) for k, v in last.items()}
    return {ldm.OPEN_CLIP + k: v for k, v in out.items()}


@pytest.fixture(scope="session")
def single_file_models() -> Callable[[str], dict[str, nn.Module]]:
    """The modules of a tiny checkpoint with CLIP's real vocabulary, for "sd1" or "sd2"."""

    def make(family: str) -> dict[str, nn.Module]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        sd2 = family == "sd2"
        torch.manual_seed(3)
        unet = UNet2DConditionModel(
            block_out_channels=(64, 128) if sd2 else (32, 64),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(1, 2) if sd2 else 8,
            use_linear_projection=sd2,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=1,
                hidden_act="gelu" if sd2 else "quick_gelu",
                bos_token_id=49406,
                eos_token_id=49407,
            )
        )
        models: dict[str, nn.Module] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
        for model in models.values():
            for p in model.parameters():
                if p.ndim == 1:
                    p.data.add_(0.05 * torch.randn_like(p))
        return {name: model.eval() for name, model in models.items()}

    return make


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
        if family == "sd2":
            tensors |= open_clip_tensors(models["text_encoder"])
        else:
            text = models["text_encoder"].state_dict().items()
            tensors |= {f"{ldm.CLIP}text_model.{name.removeprefix('text_model.')}": t for name, t in text}
        write_tensors(path, tensors, metadata or {})
        return path

    return write

"""Pictures from the toy diffusion model with DDIM and classifier-free guidance: what the card judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pipeline:
    """The parts of the diffusers folder, float32, in eval mode."""

    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler: Any


def load_pipeline(folder: Path) -> Pipeline:
    """Open the weights with the classes that any diffusers folder is opened with, offline."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return Pipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval(),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval(),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
    )


@torch.no_grad()
def text_states(pipeline: Pipeline, prompts: list[str]) -> Tensor:
    """Last hidden states (B, L, D)."""
    tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    return pipeline.text_encoder(tokens["input_ids"]).last_hidden_state  # type: ignore[no-any-return]


@torch.no_grad()
def draw(
    pipeline: Pipeline, prompts: list[str], *, seed: int = 0, steps: int = 30, guidance: float = 4.0
) -> Tensor:
    """One picture per prompt, (B, 3, 64, 64) in [0, 1]; the noise of prompt i depends on (seed, i) alone."""
    text = torch.cat([text_states(pipeline, [""] * len(prompts)), text_states(pipeline, prompts)])
    channels = pipeline.unet.config.in_channels
    z_BCHW = torch.stack(
        [
            torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(seed * 100_003 + i))
            for i in range(len(prompts))
        ]
    )
    pipeline.scheduler.set_timesteps(steps)
    for t in pipeline.scheduler.timesteps:
        free, told = pipeline.unet(torch.cat([z_BCHW] * 2), t, text).sample.chunk(2)
        z_BCHW = pipeline.scheduler.step(free + guidance * (told - free), t, z_BCHW).prev_sample
    pixels = pipeline.vae.decode(z_BCHW / pipeline.vae.config.scaling_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]

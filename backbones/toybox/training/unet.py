"""The denoiser: diffusers' UNet2DConditionModel on 8 x 8 x 32 latents, conditioned on the CLIP text tower.

    L = w(t) |eps - eps_theta(z_t, t, c)|^2,   w(t) = min(SNR(t), 5) / SNR(t)

(DDPM's loss, Ho et al. 2020, with the min-SNR weight of Hang et al. 2023, arXiv:2303.09556, gamma = 5.) One
caption in ten is empty, for classifier-free guidance; one picture in ten is an empty scene. Latents and text
states are computed once and cached: the autoencoder's encoder and the text tower must not change afterwards.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .. import captions, render, world
from . import data
from .loop import Schedule, device, short_floats
from .tokenizer import MAX_LENGTH
from .vae import LATENT_CHANNELS

# 7.0 M parameters; all models together have to fit in 36 MB. Wide at the finest level: through 64 channels
# the 32 of the latents hardly pass (after 100 steps the error at t = 300 is 0.42, with 128 channels 0.26).
CHANNELS, LAYERS = (128, 128), 1
TEXT_WIDTH = 192
NUM_PICTURES = 64_000  # more is better: a cached text state is 18 kB, a latent 4 kB
SCENE_SHARE = 0.1  # of a batch: scenes with nothing in them, so that a word can mean a place alone
EMPTY_SHARE = 0.1
MIN_SNR_GAMMA = 5.0
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.32.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
log = logging.getLogger(__name__)


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def new_unet() -> UNet2DConditionModel:
    """The architecture: two levels of one layer, cross attention at both, 32 groups in every norm."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=CHANNELS,
        layers_per_block=LAYERS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )


@dataclass
class UnetPart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=20_000,
            batch=64,
            lr=1e-3,
            muon_lr=2e-3,
            warmup=100,
            decay=0.25,
            weight_decay=0.01,
            ema=0.998,
            save_every=100,
        )
    )
    name: str = "unet"
    exported: str = "unet/diffusion_pytorch_model.safetensors"
    num_pictures: int = NUM_PICTURES

    def build(self) -> nn.Module:
        self.latents = torch.from_numpy(np.array(cached_latents(self.state_dir, self.num_pictures)))
        self.states, self.rows, self.empty = cached_text(self.state_dir, self.num_pictures)
        self.scene_latents, self.scene_states = scenes(self.state_dir)
        self.alphas = new_scheduler().alphas_cumprod.to(device())
        unet = new_unet()
        unet.set_attn_processor(AttnProcessor())  # torch's fused one goes back 10 times slower in bfloat16
        return unet

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 2, step, self.schedule.batch, len(self.latents))
        z_BCHW = self.latents[picks].float().to(device())
        text_BLD = torch.from_numpy(self.states[self.rows[picks]]).float().to(device())
        rows = torch.randperm(len(picks))[: round(SCENE_SHARE * len(picks))]  # timesteps rise with the row
        places = torch.randint(len(self.scene_latents), (len(rows),))
        z_BCHW[rows] = self.scene_latents[places].to(device())
        text_BLD[rows] = self.scene_states[places].to(device())
        text_BLD[torch.rand(len(picks)) < EMPTY_SHARE] = self.empty.float().to(device())
        with short_floats():
            return diffusion_loss(model, z_BCHW, text_BLD, self.alphas)

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        model.half().save_pretrained(weights_dir / "unet", safe_serialization=True)
        model.float()
        new_scheduler().save_pretrained(weights_dir / "scheduler")
        index = json.dumps(MODEL_INDEX, indent=2) + "\n"
        (weights_dir / "model_index.json").write_text(index, encoding="ascii")


def diffusion_loss(model: nn.Module, z_BCHW: Tensor, text_BLD: Tensor, alphas: Tensor) -> dict[str, Tensor]:
    """The weighted loss above; ``mse`` is the plain one."""
    t_B = stratified_timesteps(len(z_BCHW), len(alphas)).to(z_BCHW.device)
    noise = torch.randn(z_BCHW.shape).to(z_BCHW.device)
    a_B = alphas[t_B]
    noisy = a_B.sqrt().view(-1, 1, 1, 1) * z_BCHW + (1 - a_B).sqrt().view(-1, 1, 1, 1) * noise
    squared_B = (model(noisy, t_B, text_BLD).sample - noise).square().mean(dim=(1, 2, 3))
    snr_B = a_B / (1 - a_B)
    return {
        "loss": (snr_B.clamp(max=MIN_SNR_GAMMA) / snr_B * squared_B).mean(),
        "mse": squared_B.detach().mean(),
    }


def stratified_timesteps(count: int, num_timesteps: int) -> Tensor:
    """(count,) timesteps, one from each of ``count`` equal stretches: every batch sees all levels of noise.
    Its loss varies less than with independent draws (Kingma et al. 2021, arXiv:2107.00630, appendix I.1)."""
    places = (torch.arange(count) + torch.rand(1)) / count
    return (places * num_timesteps).long()


def cached_latents(state_dir: Path, count: int) -> NDArray[np.float16]:
    """Latents of pictures 0..count-1 times the scaling factor, fp16 (count, 32, 8, 8)."""
    path = state_dir / f"latents-{count}.npy"
    if not path.exists():
        vae = _trained_vae(state_dir)
        pictures, rows = data.images(state_dir), []
        for start in range(0, count, 16):
            rows.append(
                encode(vae, data.to_tensor(pictures[start : min(start + 16, count)])).half().cpu().numpy()
            )
            if start % 4000 == 0:
                log.info("latents %d of %d", start, count)
        np.save(path.with_suffix(".part.npy"), np.concatenate(rows))
        path.with_suffix(".part.npy").replace(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def scenes(state_dir: Path) -> tuple[Tensor, Tensor]:
    """Latents and text states of every empty scene."""
    pictures, (tokenizer, tower) = world.empty_scenes(), _trained_text_tower(state_dir)
    pixels = data.to_tensor(np.stack([render.image(picture) for picture in pictures]))
    vae = _trained_vae(state_dir)
    latents = torch.cat([encode(vae, some).cpu() for some in pixels.split(16)])
    states = encode_text(tower, tokenizer, [captions.caption(picture) for picture in pictures])
    return latents, states.cpu()


def _trained_vae(state_dir: Path) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(state_dir / "weights" / "vae", torch_dtype=torch.float32)
    return vae.to(device()).eval()


def _trained_text_tower(state_dir: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    weights = state_dir / "weights"
    tower = CLIPTextModel.from_pretrained(weights / "text_encoder", torch_dtype=torch.float32)
    return CLIPTokenizer.from_pretrained(weights / "tokenizer"), tower.to(device()).eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, images_BCHW: Tensor) -> Tensor:
    """Pictures in [0, 1] to scaled latents: the mean of the posterior."""
    return vae.encode(images_BCHW.to(device()) * 2 - 1).latent_dist.mean * vae.config.scaling_factor


def cached_text(state_dir: Path, count: int) -> tuple[NDArray[np.float16], NDArray[np.int64], Tensor]:
    """Text states of the training captions: one row per distinct caption, fp16 (M, L, D); the row of each
    picture; the state of the empty caption."""
    path = state_dir / f"text-{count}.npy"
    words = [captions.caption(world.sample_picture(i)) for i in range(count)]
    distinct, rows = np.unique(np.array(["", *words]), return_inverse=True)
    if not path.exists():
        tokenizer, tower = _trained_text_tower(state_dir)
        part = path.with_suffix(".part.npy")
        out = np.lib.format.open_memmap(part, "w+", np.float16, (len(distinct), MAX_LENGTH, TEXT_WIDTH))
        for start in range(0, len(distinct), 256):
            out[start : start + 256] = (
                encode_text(tower, tokenizer, list(distinct[start : start + 256])).half().cpu().numpy()
            )
        part.replace(path)
    states = np.load(path, mmap_mode="r")
    return states, rows[1:], torch.from_numpy(np.array(states[rows[0]]))


@torch.no_grad()
def encode_text(tower: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Last hidden states (B, L, D), as Stable Diffusion 1.x takes them."""
    texts = [str(p) for p in prompts]
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    )
    return tower(tokens["input_ids"].to(device())).last_hidden_state

"""The autoencoder: diffusers' AutoencoderKL, 64 x 64 x 3 to 8 x 8 x 32, for pixels in [-1, 1].

    L = |x - x'|^2 + 0.2 |x - x'| + 1e-4 KL

No perceptual or adversarial term: the world is flat colour, and the bar is PSNR. Whole pictures, not crops:
the norms with one channel a group see a picture's own statistics, and those of a crop are others (2 dB).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from . import data, phase
from .loop import Schedule, device

CHANNELS = (32, 32, 64, 128)  # multiples of the first, as ComfyUI's encoder wants them
LATENT_CHANNELS = 32  # 16 of a linear map keep 22.9 dB of these pictures, 32 keep 25.9
KL_WEIGHT = 1e-4


@dataclass
class VaePart:
    state_dir: Path
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=2600,
            batch=12,
            lr=2e-3,
            muon_lr=3e-3,
            warmup=30,
            decay=1.0,
            weight_decay=0.0,
            ema=0.998,
            save_every=100,
        )
    )
    name: str = "vae"
    exported: str = "vae/diffusion_pytorch_model.safetensors"
    num_pictures: int = data.NUM_PICTURES

    def build(self) -> nn.Module:
        self.images = data.images(self.state_dir, self.num_pictures)
        return new_vae()

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed, step, self.schedule.batch, len(self.images))
        x_BCHW = (data.to_tensor(self.images[picks]) * 2 - 1).to(device())
        return vae_loss(model, x_BCHW)

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        sample = data.to_tensor(self.images[:128]).to(device()) * 2 - 1
        with torch.no_grad():
            spread = model.encode(sample).latent_dist.mean.std().item()
        model.register_to_config(scaling_factor=round(1 / spread, 4))
        model.half().save_pretrained(weights_dir / "vae")
        model.float()


@dataclass
class DecoderPart(VaePart):
    """The decoder on alone: the latents stay as they are, and so does whatever was trained on them."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1200,
            batch=16,
            lr=1e-3,
            muon_lr=1e-3,
            warmup=30,
            weight_decay=0.0,
            ema=0.995,
            save_every=100,
        )
    )
    name: str = "decoder"

    def build(self) -> nn.Module:
        self.images = data.images(self.state_dir, self.num_pictures)
        trained = AutoencoderKL.from_pretrained(self.state_dir / "weights" / "vae", torch_dtype=torch.float32)
        vae = new_vae()  # a loaded model's config names the folder that it came from
        vae.load_state_dict(trained.state_dict())
        vae.register_to_config(scaling_factor=trained.config.scaling_factor)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        return vae

    def loss(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        picks = data.batch_indices(self.schedule.seed + 1, step, self.schedule.batch, len(self.images))
        x_BCHW = (data.to_tensor(self.images[picks]) * 2 - 1).to(device())
        with torch.no_grad():
            z_BCHW = model.encode(x_BCHW).latent_dist.mean
        return pixel_loss(model.decode(z_BCHW).sample, x_BCHW)

    def export(self, model: nn.Module, weights_dir: Path) -> None:
        model.half().save_pretrained(weights_dir / "vae")
        model.float()


def new_vae() -> AutoencoderKL:
    """The architecture; every norm has 32 groups and the middle has attention, as Stable Diffusion's."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        _near_linear(vae)
    return vae


def _near_linear(vae: AutoencoderKL) -> None:
    """Start as a nearly linear map that knows where in its cells a pixel lies (``phase``): as far as PCA
    gets within minutes. Residual branches start at zero, and the posterior starts narrow, or its noise
    drowns the first thousand steps."""
    for name, parameter in vae.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias", "to_out.0.weight")):
            nn.init.zeros_(parameter)
        elif name.endswith(
            ("samplers.0.conv.weight", "conv_in.weight", "conv_shortcut.weight", "quant_conv.weight")
        ):
            parameter.mul_(3**0.5)
    phase.plant(vae.decoder)
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias[LATENT_CHANNELS:] = -6


def vae_loss(model: AutoencoderKL, x_BCHW: Tensor) -> dict[str, Tensor]:
    """The loss above and the PSNR (dB, of pixels in [0, 1]) of the batch."""
    posterior = model.encode(x_BCHW).latent_dist
    terms = pixel_loss(model.decode(posterior.sample()).sample, x_BCHW)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return {**terms, "loss": terms["loss"] + KL_WEIGHT * kl, "kl": kl.detach()}


def pixel_loss(y_BCHW: Tensor, x_BCHW: Tensor) -> dict[str, Tensor]:
    """|x - x'|^2 + 0.2 |x - x'|, and the PSNR."""
    squared = (y_BCHW - x_BCHW).square().mean()
    loss = squared + 0.2 * (y_BCHW - x_BCHW).abs().mean()
    return {"loss": loss, "psnr": -10 * torch.log10(squared.detach() / 4)}

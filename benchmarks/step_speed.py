"""A DreamBooth LoRA step against what diffusers' ``train_dreambooth_lora.py`` does per step.

Same model, photos, batch, rank, precision and optimizer; the two alternate within one process, so that both
meet the same machine. Theirs is transcribed from examples/dreambooth/train_dreambooth_lora.py (diffusers
0.42) with its defaults: every step opens and crops photos, and runs the VAE and the text encoder on them.
"""
# Shapes: B batch (instance rows, then class rows), C latent channels, H W size.

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import open_backbone
from ..backbones.base import BaseModel
from ..backbones.tokens import splice
from ..subjects import from_images
from ..trainers.dreambooth import DreamBooth, DreamBoothConfig
from ..trainers.loop import Loop
from ..trainers.prior import PriorPreservation
from ..trainers.run import Run, Settings
from . import bar

BATCH = 4  # instance rows, and as many class rows: the script's default
RANK = 4  # the script's default
BAR = 1.3


class TheirPhotos(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The script's DreamBoothDataset: photos from disk, cropped, and prompts tokenised, each time."""

    def __init__(self, photos: Sequence[Path], classes: Sequence[Path], tokens: Any, size: int) -> None:
        self.photos, self.classes, self.tokens, self.size = photos, classes, tokens, size

    def __len__(self) -> int:
        return max(len(self.photos), len(self.classes))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "instance": self.picture(self.photos[index % len(self.photos)]),
            "class": self.picture(self.classes[index % len(self.classes)]),
            "instance_ids": self.ids("a photo of sks fish"),
            "class_ids": self.ids("a photo of a fish"),
        }

    def picture(self, path: Path) -> Tensor:
        """Upright, RGB, short side to size, random crop, [-1, 1]."""
        import numpy as np
        from PIL import Image, ImageOps

        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        short = min(image.size)
        width, height = (round(edge * self.size / short) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left = int(torch.randint(width - self.size + 1, (1,)))
        top = int(torch.randint(height - self.size + 1, (1,)))
        pixels = np.array(image.crop((left, top, left + self.size, top + self.size)))
        return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)

    def ids(self, prompt: str) -> Tensor:
        return splice(self.tokens, [prompt], {}).ids[0]


def collate(rows: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The script's collate_fn: class rows behind instance rows."""
    pixels = [row["instance"] for row in rows] + [row["class"] for row in rows]
    ids = [row["instance_ids"] for row in rows] + [row["class_ids"] for row in rows]
    return torch.stack(pixels), torch.stack(ids)


def their_steps(backbone: Any, photos: Sequence[Path], classes: Sequence[Path]) -> Iterator[float]:
    """Seconds per step of the script's inner loop."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig

    unet, vae, text_encoder = (
        copy.deepcopy(module) for module in (backbone.unet, backbone.vae, backbone.text_encoder)
    )
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets)
    )
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    rate = get_scheduler("constant", optimizer=optimizer)
    noising = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=backbone.prediction
    )
    dataset = TheirPhotos(photos, classes, backbone.tokens, backbone.image_size)
    unet.train()
    while True:
        loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, collate_fn=collate, drop_last=True)
        batches = iter(loader)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            pixels, ids = (part.to(backbone.device) for part in batch)
            latents_BCHW = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise_BCHW = torch.randn_like(latents_BCHW)
            t_B = torch.randint(0, noising.config.num_train_timesteps, (len(latents_BCHW),))
            t_B = t_B.to(backbone.device).long()
            noisy_BCHW = noising.add_noise(latents_BCHW, noise_BCHW, t_B)
            states = text_encoder(ids, return_dict=False)[0]
            pred_BCHW = unet(noisy_BCHW, t_B, states, return_dict=False)[0]
            target_BCHW = noise_BCHW
            if backbone.prediction == "v_prediction":
                target_BCHW = noising.get_velocity(latents_BCHW, noise_BCHW, t_B)
            pred, pred_prior = torch.chunk(pred_BCHW, 2, dim=0)
            target, target_prior = torch.chunk(target_BCHW, 2, dim=0)
            loss = F.mse_loss(pred.float(), target.float(), reduction="mean")
            loss = loss + F.mse_loss(pred_prior.float(), target_prior.float(), reduction="mean")
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            loss.detach().item()  # for its progress bar
            yield time.perf_counter() - started


def our_steps(backbone: Any, base: BaseModel, subject: Any, scratch: Path) -> Generator[float, None, None]:
    """Seconds per step of our loop, its log included."""
    config = DreamBoothConfig(
        steps=10**6, batch_size=BATCH, rank=RANK, alpha=RANK, use_captions=False, checkpoint_every=10**6
    )
    prior = PriorPreservation(num_images=8, steps=2)
    method = DreamBooth(backbone, subject, config, seed=0, prior=prior, base=base, runs_root=scratch)
    settings = Settings(
        method="dreambooth",
        subject="fish",
        subject_hash="",
        base_hash="",
        dtype=base.dtype,
        config=config,
        seed=0,
    )
    run = Run(scratch, settings)
    run.start({})
    for _ in method.prepare():
        pass
    loop = Loop(method, run, config, seed=0, judge=None)
    try:
        while True:
            yield loop.advance().seconds
    finally:
        method.close()


def run(quick: bool, source: str = "toybox") -> dict[str, Any]:
    """Median seconds of both, and their ratio; the first steps of each do not count."""
    base = BaseModel(source=source, dtype="fp32")
    backbone: Any = open_backbone(base)
    warmup, counted = (2, 10) if quick else (5, 60)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        size = backbone.image_size
        images_BHWC = torch.rand(5, size, size, 3, generator=torch.Generator().manual_seed(0))
        subject = from_images(images_BHWC, scratch / "photos", class_noun="fish")
        ours = our_steps(backbone, base, subject, scratch)
        next(ours)  # draws the class images
        classes = sorted((scratch / "class-images").glob("*/*.png"))
        ours_s, theirs_s = [], []
        theirs = their_steps(backbone, [photo.path for photo in subject.photos], classes)
        for _ in range(warmup + counted):
            theirs_s.append(next(theirs))
            ours_s.append(next(ours))
        ours.close()
    ours_median, theirs_median = (statistics.median(times[warmup:]) for times in (ours_s, theirs_s))
    ratio = theirs_median / ours_median
    return {
        "numbers": {
            "our step, s": ours_median,
            "their step, s": theirs_median,
            "steps of each": counted,
            "instance and class rows": [BATCH, BATCH],
            "rank": RANK,
            "device": str(backbone.device),
        },
        "bars": [bar("times faster than diffusers' step", value=ratio, op=">=", bar=BAR)],
        "seeds": [0],
    }

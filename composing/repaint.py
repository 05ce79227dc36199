"""Repaint Background: an inpainting model paints anew all that is not a subject.

Gen4Gen (Yeh et al. 2024), its background stage: SDXL inpainting at strength 0.9, then a refiner for the last
quarter. Here any ``Inpainter`` does it, and the subjects are put back on top, so that their identity is
exact.
"""
# Shapes: B pictures (1), C latent channels, H W latent size.

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..backbones.base import Backbone, TextStates
from ..core.errors import LikenessError
from ..core.randomness import generator, normal
from ..scoring.encoders import Encoders, to_tensor
from ..scoring.metrics import paired
from .compose import Composition, on_background
from .defaults import NEGATIVE, PROMPT

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Work of one kind, so far."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class RepaintConfig:
    """How a background is painted anew."""

    prompt: str = PROMPT
    negative: str = NEGATIVE
    steps: int = 60  # the reference
    guidance: float = 6.0  # the reference
    strength: float = (
        0.9  # the reference: a tenth of the steps is left out, which keeps the start's structure
    )
    mask_blur_px: float = 5.0  # the reference's box blur, on a canvas of 1024
    put_back: bool = True  # Differs: the reference leaves what the model made of the subjects
    retries: int = 2  # more draws for a picture that the gate rejects
    min_identity: float = 0.97  # of 1: how far subject pixels may drift
    max_seam: float = 6.0  # edges at the outline beside edges elsewhere
    min_agreement: float = 0.8  # of the start picture's CLIP similarity with the caption

    def __post_init__(self) -> None:
        if not (0 < self.strength <= 1 and self.steps >= 1 and self.guidance >= 1 and self.retries >= 0):
            raise LikenessError(
                f"Repainting with strength {self.strength}, {self.steps} steps, guidance {self.guidance} and "
                f"{self.retries} retries is not possible",
                expected="a strength above 0 and at most 1, at least one step, guidance of 1 or more",
            )

    def prompt_for(self, scene: str) -> str:
        return self.prompt.replace("{}", scene) if "{}" in self.prompt else f"{self.prompt} {scene}".strip()


class Inpainter(Protocol):
    """Paints where ``keep`` is black. ``name`` goes into a scene's provenance."""

    @property
    def name(self) -> str: ...

    def paint(
        self, start: Image.Image, keep: Image.Image, config: RepaintConfig, scene: str, *, seed: int
    ) -> Generator[Progress, None, Image.Image]: ...


def keep_mask(foreground: Image.Image, blur_px: float) -> Image.Image:
    """White where the subjects stay: blurred by a box, then 127.5..255 stretched to 0..255, so that only the
    inner half of the blurred edge is kept."""
    blurred = foreground.filter(ImageFilter.BoxBlur(blur_px)) if blur_px > 0 else foreground
    return blurred.point([round(max(0.0, (v - 127.5) * 2)) for v in range(256)])


# --- the work -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate saw. ``reasons`` are empty for a picture that may stay."""

    identity: float
    seam: float
    agreement: float  # NaN where nobody judged it
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Repainted:
    """A scene on its new background."""

    composition: Composition
    verdict: Verdict
    tries: int
    rejected: Mapping[str, int] = field(default_factory=dict)


def repaint(
    composition: Composition,
    inpainter: Inpainter,
    config: RepaintConfig,
    *,
    seed: int = 0,
    encoders: Encoders | None = None,
    caption: str = "",
) -> Generator[Progress, None, Repainted]:
    """Paint until the gate lets a picture through, at most ``retries`` times more; then the best of them,
    with a warning. With ``encoders`` (CLIP) the picture must also still agree with ``caption``."""
    width, height = composition.image.size
    keep = keep_mask(composition.foreground, config.mask_blur_px * max(width, height) / 1024)
    best: tuple[Composition, Verdict] | None = None
    rejected: Counter[str] = Counter()
    for attempt in range(config.retries + 1):
        painted = yield from inpainter.paint(
            composition.image, keep, config, composition.layout.scene, seed=_seed(seed, attempt)
        )
        image = painted.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        image = on_background(composition, image) if config.put_back else image
        verdict = judge(image, composition, config, encoders=encoders, caption=caption)
        if best is None or (len(verdict.reasons), verdict.seam) < (len(best[1].reasons), best[1].seam):
            best = (replace(composition, image=image), verdict)
        if not verdict.reasons:
            break
        rejected.update(verdict.reasons)
    assert best is not None
    if best[1].reasons:
        log.warning("No repainted background passed the gate: %s", ", ".join(best[1].reasons))
    origin = {"repainted by": inpainter.name, "start": dict(composition.background)}
    return Repainted(
        composition=replace(best[0], background=origin),
        verdict=best[1],
        tries=attempt + 1,
        rejected=dict(rejected),
    )


def _seed(seed: int, attempt: int) -> int:
    return int(torch.randint(0, 2**31, (1,), generator=generator(seed, "repaint", attempt)).item())


def judge(
    image: Image.Image,
    composition: Composition,
    config: RepaintConfig,
    *,
    encoders: Encoders | None = None,
    caption: str = "",
) -> Verdict:
    """The quality gate: subject pixels kept, no visible seam, the caption still true."""
    identity, seam = identity_kept(image, composition), seam_energy(image, composition.foreground)
    agreement = math.nan
    if encoders is not None and caption:
        text_BD = encoders.clip.encode_text([caption] * 2)
        images_BD = encoders.clip.encode([to_tensor(image), to_tensor(composition.image)])
        now, before = paired(images_BD, text_BD).tolist()
        agreement = now / before if before > 0 else math.nan
    reasons = [
        *(["identity"] if identity < config.min_identity else []),
        *(["seam"] if seam > config.max_seam else []),
        *(["caption"] if agreement < config.min_agreement else []),
    ]
    return Verdict(identity=identity, seam=seam, agreement=agreement, reasons=tuple(reasons))


def identity_kept(image: Image.Image, composition: Composition) -> float:
    """1 less the mean absolute difference of the pixels where a subject is opaque, of 1."""
    solid_HW = np.asarray(composition.foreground) > 250
    if not solid_HW.any():
        return 1.0
    now, before = np.asarray(image)[solid_HW], np.asarray(composition.image)[solid_HW]
    return 1.0 - float(np.abs(now.astype(np.int16) - before).mean()) / 255


def seam_energy(image: Image.Image, foreground: Image.Image) -> float:
    """Mean brightness step just outside the subjects' outline, beside that of the rest of the background.

    A background that was painted as one piece has no edge there; one that was pasted around them has.
    """
    grey_HW = np.asarray(image.convert("L"), dtype=np.float32)
    step_HW = np.abs(np.diff(grey_HW, axis=1, append=grey_HW[:, -1:]))
    step_HW += np.abs(np.diff(grey_HW, axis=0, append=grey_HW[-1:]))
    reach = max(7, min(image.size) // 64) | 1
    near = np.asarray(foreground.filter(ImageFilter.MaxFilter(reach))) > 8
    touching = np.asarray(foreground.filter(ImageFilter.MaxFilter(3))) > 8
    ring, rest = near & ~touching, ~near
    if not ring.any() or not rest.any():
        return 0.0
    return float(step_HW[ring].mean() / max(step_HW[rest].mean(), 0.5))


# --- through our own backbones ------------------------------------------------------------------------


@dataclass(frozen=True)
class BackboneInpainter:
    """Any text-to-image model, Toybox too: what is kept is noised along and put in at every step.

    Blended latent diffusion (Avrahami et al. 2022, arXiv:2206.02779), with DDIM (Song et al. 2020).
    """

    backbone: Backbone

    @property
    def name(self) -> str:
        return f"{self.backbone.family} {self.backbone.content_hash[:12]}"

    def paint(
        self, start: Image.Image, keep: Image.Image, config: RepaintConfig, scene: str, *, seed: int
    ) -> Generator[Progress, None, Image.Image]:
        model = self.backbone
        size = (self._edge(start.width), self._edge(start.height))
        with torch.no_grad():
            image_13HW = to_tensor(start.resize(size, Image.Resampling.LANCZOS))[None] * 2 - 1
            clean = model.encode_images(image_13HW).mean
            text = model.encode_prompts([config.prompt_for(scene)])
            negative = model.encode_prompts([config.negative])
        kept = _latent_mask(keep, clean)
        noise = normal(clean.shape, seed, "repaint noise").to(clean)
        times = timesteps(model.num_train_timesteps, config.steps, config.strength)
        x = model.add_noise(clean, noise, torch.tensor([times[0]], device=clean.device))
        yield Progress("repainting", 0, len(times))
        for n, t in enumerate(times):
            following = times[n + 1] if n + 1 < len(times) else -1
            with torch.no_grad():
                x = self._step(x, t, following, text, negative, config.guidance)
                known = (
                    clean
                    if following < 0
                    else model.add_noise(clean, noise, torch.tensor([following], device=clean.device))
                )
                x = kept * known + (1 - kept) * x
            yield Progress("repainting", n + 1, len(times))
        with torch.no_grad():
            pixels_3HW = model.decode(x)[0].cpu()
        pixels_HW3 = (pixels_3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        return Image.fromarray(pixels_HW3.numpy())

    def _edge(self, pixels: int) -> int:
        """The nearest edge that the model can hold, at most twice its own."""
        cell = self.backbone.latent_scale
        most = 2 * self.backbone.image_size
        return max(cell, min(round(pixels / cell) * cell, most))

    def _step(
        self, x: Tensor, t: int, following: int, text: TextStates, negative: TextStates, guidance: float
    ) -> Tensor:
        """One guided DDIM step from ``t`` to ``following`` (-1: to the clean latents)."""
        model = self.backbone
        t_B = torch.tensor([t], device=x.device)
        out = model.predict(x, t_B, text)
        if guidance != 1:
            out_negative = model.predict(x, t_B, negative)
            out = out_negative + guidance * (out - out_negative)
        alpha, sigma = _levels(model, t)
        clean, noise = _split(x, out, alpha, sigma, model.prediction)
        if following < 0:
            return clean
        alpha_next, sigma_next = _levels(model, following)
        return alpha_next * clean + sigma_next * noise


def timesteps(total: int, steps: int, strength: float) -> list[int]:
    """Falling timesteps: ``steps`` of them evenly over the whole, less the first that strength leaves out."""
    steps = min(steps, total)
    whole = [round(total * (steps - n) / steps) - 1 for n in range(steps)]
    return whole[steps - max(1, int(steps * strength)) :]


def _levels(model: Backbone, t: int) -> tuple[float, float]:
    """sqrt(alpha-bar) and sqrt(1 - alpha-bar) at ``t``, from the signal-to-noise ratio."""
    snr = float(model.snr(torch.tensor([t])).double())
    return math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))


def _split(x: Tensor, out: Tensor, alpha: float, sigma: float, prediction: str) -> tuple[Tensor, Tensor]:
    """The clean latents and the noise that a network's output means."""
    if prediction == "epsilon":
        return (x - sigma * out) / max(alpha, 1e-6), out
    if prediction == "v_prediction":
        return alpha * x - sigma * out, sigma * x + alpha * out
    raise LikenessError(f"Repainting with a {prediction} model is not possible yet", expected="epsilon or v")


def _latent_mask(keep: Image.Image, clean: Tensor) -> Tensor:
    """1 where a latent cell is kept: cells that are wholly the subject's."""
    height, width = clean.shape[-2:]
    cells = np.asarray(keep.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    return torch.from_numpy(np.clip((cells - 0.5) * 2, 0, 1)).to(clean)[None, None]


# --- through diffusers --------------------------------------------------------------------------------


class DiffusersInpainter:
    """An inpainting pipeline in a diffusers folder, and a refiner for its last quarter, as the paper's SDXL
    pair. Opens only what is on this machine."""

    def __init__(
        self, folder: Path, *, refiner: Path | None = None, device: str = "cpu", dtype: Any = None
    ) -> None:
        from diffusers import AutoPipelineForInpainting

        def load(path: Path) -> Any:
            if not (path / "model_index.json").is_file():
                raise LikenessError(
                    f"There is no inpainting pipeline in {path}",
                    expected="a diffusers folder with model_index.json, such as "
                    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
                )
            pipeline = AutoPipelineForInpainting.from_pretrained(
                str(path), local_files_only=True, use_safetensors=True, torch_dtype=dtype or torch.float32
            ).to(device)
            pipeline.set_progress_bar_config(disable=True)
            return pipeline

        self.pipeline, self.refiner = load(folder), load(refiner) if refiner else None
        self.name = folder.name + (f" and {refiner.name}" if refiner else "")

    def paint(
        self, start: Image.Image, keep: Image.Image, config: RepaintConfig, scene: str, *, seed: int
    ) -> Generator[Progress, None, Image.Image]:
        stages = 2 if self.refiner else 1
        yield Progress("repainting", 0, stages)
        common = {
            "prompt": config.prompt_for(scene),
            "negative_prompt": config.negative,
            "mask_image": keep.point([255 - v for v in range(256)]),
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance,
            "width": start.width,
            "height": start.height,
        }
        with torch.no_grad():
            noise = torch.Generator().manual_seed(seed)
            image: Image.Image = self.pipeline(
                image=start, strength=config.strength, generator=noise, **common
            ).images[0]
        yield Progress("repainting", 1, stages)
        if self.refiner is not None:
            with torch.no_grad():  # 0.75: the reference's last 15 of 60 steps
                noise = torch.Generator().manual_seed(seed)
                image = self.refiner(image=image, denoising_start=0.75, generator=noise, **common).images[0]
            yield Progress("repainting", 2, stages)
        return image

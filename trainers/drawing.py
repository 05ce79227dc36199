"""Pictures drawn while training: one denoising step at a time, so that it can be interrupted."""
# Shapes: B pictures, C latent channels, H W size.

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..core.paths import write_atomic
from ..core.randomness import generator
from .events import Phase


def picture_seed(seed: int, *stream: int | str) -> int:
    """A seed of 31 bits for one picture, from the run's seed and what the picture is for."""
    return int(torch.randint(0, 2**31, (1,), generator=generator(seed, "picture", *stream)).item())


def draw(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    batch_size: int,
    phase: str,
    before: int = 0,
    total: int | None = None,
) -> Generator[Phase, None, Tensor]:
    """Pictures in [0, 1], (B, 3, H, W), on the CPU. Yields a Phase after every denoising step.

    ``before`` and ``total`` place these steps within a longer piece of work.
    """
    total = steps * -(-len(prompts) // batch_size) if total is None else total
    pictures: list[Tensor] = []
    done = before
    yield Phase(phase, done, total)
    for start in range(0, len(prompts), batch_size):
        chunk = slice(start, start + batch_size)
        with torch.no_grad():
            text = backbone.encode_prompts(prompts[chunk])
            negative = backbone.encode_prompts([""])
        latents = backbone.denoise(text, negative, seeds=seeds[chunk], steps=steps, guidance=guidance)
        latents_BCHW = None
        for _ in range(steps):
            with torch.no_grad():
                latents_BCHW = next(latents)
            done += 1
            yield Phase(phase, done, total)
        assert latents_BCHW is not None
        with torch.no_grad():
            pictures.append(backbone.decode(latents_BCHW).cpu())
    return torch.cat(pictures)


def save_png(image_3HW: Tensor, path: Path) -> None:
    """A picture in [0, 1] to a PNG, atomically."""
    import io

    from PIL import Image

    pixels = (image_3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())

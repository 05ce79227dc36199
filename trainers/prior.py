"""Class images for prior preservation, drawn by the untouched model and kept on disk.

DreamBooth (Ruiz et al. 2022, arXiv:2208.12242, section 3.2): the model is held to its own idea of the class.
"""
# Shapes: H W picture size.

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..core.errors import LikenessError
from ..core.hashing import hash_json
from .drawing import draw, picture_seed, save_png
from .events import Phase

log = logging.getLogger(__name__)

FOLDER = "class-images"


@dataclass(frozen=True, kw_only=True)
class PriorPreservation:
    """How many class images, and how they are drawn and weighed."""

    num_images: int = 200  # the paper draws about 200 per photo; diffusers' README and InstructBooth 200
    weight: float = 1.0  # lambda of eq. 2
    prompt: str | None = None  # None: "a photo of a <class noun>"
    steps: int = 50  # denoising steps, diffusers' default
    guidance: float = 7.5  # diffusers' default
    batch_size: int = 8  # pictures at once
    seed: int = 0  # of the pictures: runs with other seeds share them

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.steps < 1 or self.batch_size < 1 or self.weight < 0:
            raise LikenessError(
                f"Prior preservation with {self.num_images} images, {self.steps} steps, batches of "
                f"{self.batch_size} and weight {self.weight} is not possible.",
                expected="at least one image, step and row, and a weight of 0 or more",
            )

    def class_prompt(self, class_noun: str) -> str:
        return self.prompt or f"a photo of {article(class_noun)} {class_noun}"


def article(noun: str) -> str:
    """ "a" or "an", by the noun's first letter."""
    return "an" if noun[:1].lower() in tuple("aeiou") else "a"


def class_images(
    prior: PriorPreservation, backbone: Backbone, class_noun: str, *, runs_root: Path, dtype: str
) -> Generator[Phase, None, list[Path]]:
    """Paths of ``num_images`` pictures. What is on disk from before is used, what is missing is drawn.

    The folder's name is a hash of all that decides picture number i, so a run that wants more of them tops
    the set up. Pictures are always drawn in the same whole batches, since a picture's last bits depend on
    its batch. Yields a Phase per denoising step.
    """
    prompt, size = prior.class_prompt(class_noun), prior.batch_size
    content = {
        "prompt": prompt,
        "base": backbone.content_hash,
        "dtype": dtype,
        "seed": prior.seed,
        "steps": prior.steps,
        "guidance": prior.guidance,
        "batch_size": size,
    }
    folder = Path(runs_root) / FOLDER / hash_json(content)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(prior.num_images)]
    batches = sorted({i // size for i, path in enumerate(paths) if not _present(path)})
    for done, batch in enumerate(batches):
        numbers = range(batch * size, (batch + 1) * size)
        pictures = yield from draw(
            backbone,
            [prompt] * size,
            [picture_seed(prior.seed, "class image", i) for i in numbers],
            steps=prior.steps,
            guidance=prior.guidance,
            batch_size=size,
            phase="class images",
            before=done * prior.steps,
            total=len(batches) * prior.steps,
        )
        for i, picture in zip(numbers, pictures, strict=True):
            if i < len(paths) and not paths[i].exists():
                save_png(picture, paths[i])
    return paths


def load_class_images(
    paths: Sequence[Path], sizes: Sequence[tuple[int, int]], cell: int
) -> list[tuple[int, Tensor]]:
    """(number, picture (3, H, W) in [-1, 1]), as ``data.cache_latents`` takes them: in each of ``sizes``
    (height, width, in latent cells of ``cell`` px), cut around the middle where its shape is another."""
    from PIL import Image, ImageOps

    pictures = []
    for height, width in sizes:
        size = (width * cell, height * cell)
        for number, path in enumerate(paths):
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
            pixels_HW3 = torch.from_numpy(np.array(fitted))
            pictures.append((number, pixels_HW3.permute(2, 0, 1).float() / 127.5 - 1.0))
    return pictures


def _present(path: Path) -> bool:
    """Whether a whole picture is there; a damaged one is removed, to be drawn again."""
    from PIL import Image, UnidentifiedImageError

    if not path.exists():
        return False
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, UnidentifiedImageError) as error:
        log.warning("The class image %s is damaged (%s) and is drawn again.", path, error)
        path.unlink()
        return False
    return True

"""Pictures between files, PIL and ComfyUI: IMAGE is float (B, H, W, 3) in [0, 1], MASK float (B, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError

if TYPE_CHECKING:
    from PIL.Image import Image


def tensor_of(picture: Image) -> Any:
    """Its channels as they are, (H, W) or (H, W, C), in [0, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def images_of(pictures: Sequence[Image]) -> Any:
    """One IMAGE of one or more pictures; those of other sizes are fitted into the first one's."""
    import torch
    from PIL import ImageOps

    size = pictures[0].size
    fitted = [p if p.size == size else ImageOps.pad(p, size, color=(128, 128, 128)) for p in pictures]
    return torch.stack([tensor_of(picture.convert("RGB")) for picture in fitted])


def mask_of(mask: Image) -> Any:
    """A MASK of one."""
    return tensor_of(mask)[None]


def fitted(images_BHW3: Any, size: tuple[int, int]) -> Image:
    """The first of an IMAGE at ``size`` (width, height), cut where its shape is another."""
    from PIL import Image as Pictures
    from PIL import ImageOps

    from ..scoring.encoders import to_pil

    picture = to_pil(images_BHW3[0].permute(2, 0, 1))
    return ImageOps.fit(picture, size, Pictures.Resampling.LANCZOS)


def read_pictures(paths: Sequence[Path]) -> Any:
    """An IMAGE of the files; a single black one when there are none."""
    import torch
    from PIL import Image

    return images_of([Image.open(path) for path in paths]) if paths else torch.zeros(1, 64, 64, 3)


def prompts_of(prompts: str, num: int, *, node: str) -> list[str]:
    """Each of ``num`` pictures' prompt: one for all, or as many pictures for each line, prompt after prompt.

    LikenessError, which names the ``node``, where they do not divide.
    """
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    each, rest = divmod(num, max(len(lines), 1))
    if not lines or rest or not each:
        raise LikenessError(
            f"{node} got {num} pictures and {len(lines)} prompts",
            expected="as many pictures for each prompt",
            fix="Link prompts from the Generate node that drew the pictures",
        )
    return [lines[n // each] for n in range(num)]

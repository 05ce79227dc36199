"""What stands behind the subjects: photos of a folder, drawn landscapes, or noise."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter

from ..core.errors import LikenessError
from ..core.hashing import hash_file
from ..core.randomness import generator
from ..subjects.images import SUFFIXES, open_picture

log = logging.getLogger(__name__)

Origin = Mapping[str, object]


class Backgrounds(Protocol):
    """A source of backgrounds. ``name`` says what it is, for a scene's provenance and a build's key."""

    @property
    def name(self) -> str: ...

    def picture(self, scene: str, width: int, height: int, *, seed: int) -> tuple[Image.Image, Origin]:
        """RGB of exactly that size, and where it comes from. A function of its arguments."""
        ...


@dataclass(frozen=True)
class FolderBackgrounds:
    """Photos below a folder. Files or subfolders that are named like the scene ("beach", "garden") are taken
    for it; any, when none is."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.files():
            raise LikenessError(
                f"There are no background pictures in {self.folder}",
                expected="a folder with JPEG, PNG or WebP files",
                fix="Put some there, or choose drawn backgrounds",
            )

    @property
    def name(self) -> str:
        return f"folder {self.folder.name}"

    def files(self) -> list[Path]:
        return _pictures_below(self.folder)

    def picture(self, scene: str, width: int, height: int, *, seed: int) -> tuple[Image.Image, Origin]:
        dice = random.Random(f"background {seed}")
        words = {word for word in scene.lower().split() if len(word) > 3}
        files = self.files()
        named = [f for f in files if words & set(_words(f.relative_to(self.folder)))]
        path = dice.choice(named or files)
        image = _covering(open_picture(path), width, height, dice, path)
        return image, {
            "kind": "photo",
            "file": path.relative_to(self.folder).as_posix(),
            "sha256": hash_file(path),
        }


@lru_cache(maxsize=4)
def _pictures_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _words(path: Path) -> list[str]:
    return (
        path.as_posix()
        .lower()
        .replace("/", " ")
        .replace("_", " ")
        .replace("-", " ")
        .replace(".", " ")
        .split()
    )


def _covering(image: Image.Image, width: int, height: int, dice: random.Random, path: Path) -> Image.Image:
    """The picture scaled to cover the canvas, cut at a random place along its longer side."""
    scale = max(width / image.width, height / image.height)
    if scale > 1:
        log.warning(
            "%s (%d x %d) is smaller than the canvas: it is enlarged", path, image.width, image.height
        )
    crop_width, crop_height = width / scale, height / scale
    left, top = dice.random() * (image.width - crop_width), dice.random() * (image.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


# Upper and lower colours of a scene, by a word in its phrase. Our own.
_PALETTES: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "garden": ((168, 200, 226), (92, 134, 66)),
    "park": ((176, 206, 230), (104, 146, 76)),
    "meadow": ((150, 196, 236), (128, 164, 72)),
    "forest": ((112, 140, 104), (84, 92, 56)),
    "snow": ((186, 202, 220), (232, 238, 244)),
    "beach": ((146, 202, 232), (222, 202, 158)),
    "street": ((184, 190, 198), (120, 120, 124)),
    "square": ((190, 200, 212), (160, 152, 144)),
    "farm": ((168, 198, 224), (158, 132, 84)),
    "lake": ((160, 196, 224), (96, 120, 88)),
    "water": ((60, 130, 180), (30, 80, 120)),
    "desert": ((188, 210, 230), (214, 180, 124)),
    "city": ((182, 190, 204), (132, 130, 132)),
    "space": ((16, 16, 40), (60, 56, 70)),
    "kitchen": ((226, 220, 208), (176, 146, 112)),
    "room": ((222, 212, 198), (158, 118, 84)),
    "floor": ((214, 208, 200), (164, 122, 82)),
    "studio": ((216, 216, 220), (188, 188, 192)),
}
_PLAIN = ((200, 206, 214), (150, 148, 142))


@dataclass(frozen=True)
class DrawnBackgrounds:
    """Wall or sky above, ground below, with soft clouds and grain: no files needed."""

    name: str = "drawn"

    def picture(self, scene: str, width: int, height: int, *, seed: int) -> tuple[Image.Image, Origin]:
        dice = np.random.default_rng(int.from_bytes(random.Random(f"drawn {seed} {scene}").randbytes(8)))
        upper, lower = next((c for word, c in _PALETTES.items() if word in scene), _PLAIN)
        tint = dice.normal(0, 5, 3)
        horizon = float(dice.uniform(0.4, 0.52))
        rows_H = np.linspace(0, 1, height)[:, None]
        share_H = 1 / (1 + np.exp(-(rows_H - horizon) * float(dice.uniform(60, 160))))
        depth_H = np.where(rows_H < horizon, 0.88 + 0.24 * rows_H / horizon, 0.8 + 0.35 * rows_H)
        column_H3 = (np.array(upper) * (1 - share_H) + np.array(lower) * share_H + tint) * depth_H
        canvas_HW3 = np.repeat(column_H3[:, None], width, 1)
        canvas_HW3 += _grain(dice, width, height)[..., None] * (6 + 16 * share_H)[:, None]
        image = Image.fromarray(canvas_HW3.clip(0, 255).astype(np.uint8))
        return image, {"kind": "drawn", "scene": scene, "seed": seed}


def _grain(dice: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth noise of three sizes, about -1 to 1."""
    total_HW = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((5, 0.6), (24, 0.3), (120, 0.25)):
        small = dice.normal(size=(max(2, cells * height // max(width, 1)), cells)).astype(np.float32)
        total_HW += weight * np.asarray(
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        )
    return total_HW


@dataclass(frozen=True)
class NoiseBackgrounds:
    """Uniform noise: what the reference starts from where it has no picture. Only for repainting."""

    name: str = "noise"

    def picture(self, scene: str, width: int, height: int, *, seed: int) -> tuple[Image.Image, Origin]:
        import torch

        noise = torch.randint(0, 255, (height, width, 3), generator=generator(seed, "noise background"))
        return Image.fromarray(noise.to(torch.uint8).numpy()), {"kind": "noise", "seed": seed}


def softened(image: Image.Image, radius: float = 1.0) -> Image.Image:
    """The reference blurs a background by one pixel before it is repainted."""
    return image.filter(ImageFilter.GaussianBlur(radius))

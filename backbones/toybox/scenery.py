"""The ten scenes as smooth backdrops: soft gradients and a few large shapes, so that a small autoencoder
keeps them and a glance tells them apart. Drawn at the oversampled size; ``variant`` moves what is in them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .shapes import arc, box, ellipse

Colour = tuple[int, int, int]
LIGHT_TINTS: dict[str, tuple[float, float, float]] = {
    "day": (1, 1, 1),
    "sunset": (1.0, 0.82, 0.68),
    "night": (0.5, 0.54, 0.76),
}


class Stage:
    """A canvas in units of one picture (0..1, y down) with the two brushes that scenes need."""

    def __init__(self, size_px: int, rng: random.Random) -> None:
        self.size, self.rng = size_px, rng
        self.image = Image.new("RGB", (size_px, size_px))

    def sweep(self, top: Colour, bottom: Colour, y0: float = 0.0, y1: float = 1.0) -> None:
        """A vertical gradient from y0 to y1."""
        a, b = round(y0 * self.size), round(y1 * self.size)
        rows = np.linspace(top, bottom, max(b - a, 1)).round().astype(np.uint8)
        strip = np.repeat(rows[:, None, :], self.size, axis=1)
        self.image.paste(Image.fromarray(strip), (0, a))

    def fill(self, points: list[tuple[float, float]], colour: Colour) -> None:
        ImageDraw.Draw(self.image).polygon([(x * self.size, y * self.size) for x, y in points], fill=colour)

    def near(self, value: float, by: float = 0.06) -> float:
        return value + self.rng.uniform(-by, by)


def _hills(s: Stage, y: float, height: float, colour: Colour) -> None:
    for x in (s.near(0.1, 0.15), s.near(0.55, 0.15), s.near(0.95, 0.15)):
        s.fill(arc(x, y + 0.01, 0.42, height, 180, 360), colour)


def _beach(s: Stage) -> None:
    h = s.near(0.4)
    s.sweep((130, 205, 250), (200, 235, 255), 0, h)
    s.sweep((30, 120, 200), (70, 180, 215), h, h + 0.22)
    s.sweep((246, 226, 170), (236, 206, 140), h + 0.22, 1)
    s.fill(ellipse(s.near(0.82, 0.1), 0.12, 0.09, 0.09), (255, 240, 120))


def _forest(s: Stage) -> None:
    s.sweep((36, 96, 60), (20, 66, 42), 0, 0.72)
    for x in (0.08, 0.3, 0.72, 0.93):
        x = s.near(x, 0.05)
        s.fill(box(x - 0.05, 0, x + 0.05, 0.76), (84, 58, 40))
    s.fill(ellipse(0.5, 0.0, 0.7, s.near(0.16, 0.04)), (30, 120, 56))
    s.sweep((52, 88, 40), (70, 104, 46), 0.72, 1)


def _snow(s: Stage) -> None:
    s.sweep((176, 200, 226), (222, 234, 246), 0, 0.66)
    _hills(s, 0.66, s.near(0.2, 0.05), (208, 222, 240))
    s.sweep((240, 246, 252), (255, 255, 255), 0.65, 1)


def _desert(s: Stage) -> None:
    s.sweep((250, 190, 110), (255, 226, 160), 0, 0.6)
    _hills(s, 0.6, s.near(0.14, 0.05), (226, 150, 74))
    s.sweep((226, 158, 84), (200, 120, 56), 0.59, 1)
    x = s.near(0.12, 0.04) if s.rng.random() < 0.5 else s.near(0.9, 0.04)
    s.fill(box(x - 0.04, 0.34, x + 0.04, 0.74), (60, 120, 60))
    s.fill(box(x - 0.12, 0.44, x + 0.12, 0.51), (60, 120, 60))


def _city(s: Stage) -> None:
    s.sweep((160, 170, 196), (206, 206, 218), 0, 0.74)
    for x in (0.0, 0.24, 0.62, 0.84):
        top = s.near(0.28, 0.16)
        s.fill(box(x, top, x + 0.18, 0.75), s.rng.choice(((104, 104, 130), (124, 112, 124), (90, 100, 120))))
    s.sweep((92, 92, 98), (74, 74, 80), 0.74, 1)
    s.fill(box(0, 0.86, 1, 0.89), (228, 214, 120))


def _kitchen(s: Stage) -> None:
    s.sweep((250, 236, 196), (244, 226, 180), 0, 0.7)
    y = s.near(0.2, 0.04)
    s.fill(box(0, y, 1, y + 0.05), (150, 96, 60))
    x = s.near(0.2, 0.1)
    for i, colour in enumerate(((190, 80, 70), (90, 150, 150), (220, 170, 80))):
        s.fill(box(x + 0.24 * i - 0.06, y - 0.13, x + 0.24 * i + 0.06, y), colour)
    s.sweep((176, 116, 74), (150, 94, 58), 0.7, 1)


def _space(s: Stage) -> None:
    s.sweep((16, 10, 44), (44, 20, 76))
    for _ in range(7):
        s.fill(ellipse(s.rng.random(), s.rng.random() * 0.8, 0.014, 0.014), (240, 240, 210))
    s.fill(ellipse(s.near(0.16, 0.1), s.near(0.16), 0.12, 0.12), (206, 120, 90))
    s.fill(ellipse(0.5, 1.12, 0.9, s.near(0.3, 0.04)), (120, 116, 140))


def _meadow(s: Stage) -> None:
    h = s.near(0.52)
    s.sweep((110, 190, 250), (190, 226, 250), 0, h)
    _hills(s, h, s.near(0.12, 0.04), (110, 190, 90))
    s.sweep((124, 204, 84), (92, 176, 60), h, 1)
    for i in range(5):
        place = ellipse(s.near(0.1 + 0.2 * i, 0.07), s.near(0.8, 0.13), 0.035, 0.035)
        s.fill(place, s.rng.choice(((255, 120, 160), (255, 230, 90), (255, 255, 255))))


def _water(s: Stage) -> None:
    s.sweep((40, 170, 210), (10, 80, 140), 0, 0.86)
    s.sweep((176, 170, 130), (150, 146, 110), 0.86, 1)
    for x in (s.near(0.08, 0.04), s.near(0.93, 0.04)):
        s.fill(
            [(x - 0.05, 0.9), (x - 0.03, s.near(0.5, 0.1)), (x + 0.02, s.near(0.46, 0.1)), (x + 0.05, 0.9)],
            (20, 130, 90),
        )
    for _ in range(4):
        s.fill(ellipse(s.rng.random(), s.rng.random() * 0.5, 0.03, 0.03), (170, 225, 245))


def _studio(s: Stage) -> None:
    tone = s.rng.randrange(-12, 12)
    s.sweep((176 + tone,) * 3, (214 + tone,) * 3, 0, 0.72)
    s.sweep((226 + tone,) * 3, (196 + tone,) * 3, 0.72, 1)


SCENES: dict[str, Callable[[Stage], None]] = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "city": _city,
    "kitchen": _kitchen,
    "space": _space,
    "meadow": _meadow,
    "water": _water,
    "studio": _studio,
}


@lru_cache(maxsize=480)
def backdrop(scene: str, light: str, variant: int, size_px: int) -> Image.Image:
    """The empty scene, tinted by the light. Shared: copy before drawing on it."""
    stage = Stage(size_px, random.Random(f"scene|{scene}|{variant}"))
    SCENES[scene](stage)
    pixels = np.asarray(stage.image, dtype=np.float32) * np.asarray(LIGHT_TINTS[light], dtype=np.float32)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))

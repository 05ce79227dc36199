"""What every segmenter is made of: something that finds a noun, and something that cuts it out.

    a Locator  finds where a thing of a noun is       Florence-2, OWL-ViT, Toybox's detector
    a Masker   cuts a thing out, in a box or without  GrabCut, SAM 2, IS-Net, BiRefNet

A back end is one of each, or a Masker alone.
"""
# Shapes: H W pixels of the photo.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.float32]  # (H, W) in [0, 1], 1 on the subject


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where something is, in pixels; ``x1`` and ``y1`` are exclusive. ``score`` is None without one, and
    ``outline_HW``, how likely each pixel of the whole photo is on it, where the locator cannot tell."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""
    score: float | None = None
    outline_HW: Mask | None = field(default=None, compare=False, repr=False)

    @property
    def width(self) -> float:
        return max(self.x1 - self.x0, 0.0)

    @property
    def height(self) -> float:
        return max(self.y1 - self.y0, 0.0)

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return (self.x0, self.y0, self.x1, self.y1)

    def within(self, width: int, height: int) -> Box:
        """The part of the box that lies in a picture of this size."""
        x0, x1 = (min(max(x, 0.0), float(width)) for x in (self.x0, self.x1))
        y0, y1 = (min(max(y, 0.0), float(height)) for y in (self.y0, self.y1))
        return replace(self, x0=x0, y0=y0, x1=x1, y1=y1)


@dataclass(frozen=True)
class Point:
    """A pixel that is on the subject, or (``inside`` False) beside it."""

    x: float
    y: float
    inside: bool = True


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A cut-out before it is cleaned: ``mask_HW`` and how sure the masker is of it, in [0, 1]."""

    mask_HW: Mask
    confidence: float


class Locator(Protocol):
    """Finds a noun. ``id`` names model and weights, for records."""

    id: str

    def locate(self, image: Image.Image, noun: str) -> list[Box]:
        """Boxes of things of this noun in an RGB picture, the best first; none when nothing is found."""
        ...


class Masker(Protocol):
    """Cuts things out. ``id`` names model and weights, ``needs_prompt`` whether it must be told where."""

    id: str
    needs_prompt: bool

    def cut(self, image: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Cut:
        """The union of what is in ``boxes`` and at ``points``; the most salient thing where both are empty
        (only where ``needs_prompt`` is False)."""
        ...

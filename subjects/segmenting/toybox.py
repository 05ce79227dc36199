"""Toybox's own grounding: the built-in detector, one noun at a time. It needs no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...core.errors import LikenessError
from .base import Box, Mask

if TYPE_CHECKING:
    from ...backbones.toybox.nets import Detector

LEAST_SCORE = 0.1  # of a detection; chosen on pictures 0 to 99 of subjects that no benchmark uses


class ToyboxLocator:
    """Boxes and rough outlines of one of Toybox's nouns, scaled from 64 x 64 pixels to the photo's size."""

    id = "toybox-detector"

    def __init__(self) -> None:
        from ...backbones.toybox import models

        self._detector: Detector = models.load_detector()

    def locate(self, image: Image.Image, noun: str) -> list[Box]:
        """Raises LikenessError for a noun that Toybox has not."""
        import torch

        from ...backbones.toybox import models, world

        if noun not in world.NOUNS:
            raise LikenessError(
                f"Toybox's grounding knows no {noun!r}",
                expected=f"one of {', '.join(world.NOUNS)}",
                fix="Choose another method for real photos, such as grabcut or florence2",
            )
        pixels_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        fitted_3HW = models.fit(pixels_3HW[None])[0]
        found = self._detector.detect(fitted_3HW, noun, least=LEAST_SCORE)
        outline_HW = _enlarged(self._detector.outline(fitted_3HW).numpy(), image.size)
        sx, sy = image.width / world.SIZE_PX, image.height / world.SIZE_PX
        return [
            Box(
                x0=x0 * sx,
                y0=y0 * sy,
                x1=x1 * sx,
                y1=y1 * sy,
                label=noun,
                score=score,
                outline_HW=outline_HW,
            )
            for (x0, y0, x1, y1), score in found
        ]


def _enlarged(outline_hw: Mask, size: tuple[int, int]) -> Mask:
    image = Image.fromarray(outline_hw).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)

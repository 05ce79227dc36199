"""What the eye checks: photo, mask and cut-out side by side."""
# Shapes: H W pixels.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .base import Mask
from .segment import Segmentation

EDGE_PX = 256  # of each of the three
LINE_PX = 20  # of the words below
CHECKS = ((200, 200, 200), (240, 240, 240))  # behind a cut-out
CHECK_PX = 16


def triptych(image: Image.Image, found: Segmentation, *, title: str = "", edge: int = EDGE_PX) -> Image.Image:
    """Photo with its boxes, mask, cut-out; below them the title, the confidence and every doubt."""
    parts = [_boxed(image, found, edge), _grey(found.mask_HW), cut_out(image, found.mask_HW)]
    sheet = Image.new("RGB", (3 * edge, edge + LINE_PX), (255, 255, 255))
    for number, part in enumerate(parts):
        small = _fitted(part, edge)
        left = number * edge + (edge - small.width) // 2
        sheet.paste(small, (left, (edge - small.height) // 2))
    doubtful = bool(found.doubts)
    words = "; ".join(found.doubts) if doubtful else f"confidence {found.confidence:.2f}"
    colour = (176, 32, 32) if doubtful else (60, 60, 60)
    ImageDraw.Draw(sheet).text((6, edge + 4), f"{title}  {words}".strip(), fill=colour)
    return sheet


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), (255, 255, 255))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def cut_out(image: Image.Image, mask_HW: Mask) -> Image.Image:
    """The subject on a checkerboard."""
    y_HW, x_HW = np.mgrid[: image.height, : image.width]
    check_px = max(CHECK_PX * max(image.size) // EDGE_PX, 1)
    odd_HW = ((x_HW // check_px + y_HW // check_px) % 2).astype(bool)
    board_HW3 = np.where(odd_HW[..., None], CHECKS[0], CHECKS[1])
    mixed_HW3 = np.asarray(image) * mask_HW[..., None] + board_HW3 * (1 - mask_HW[..., None])
    return Image.fromarray(np.round(mixed_HW3).astype(np.uint8))


def _boxed(image: Image.Image, found: Segmentation, edge: int) -> Image.Image:
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    for box in found.boxes:
        draw.rectangle(box.corners, outline=(220, 40, 40), width=max(1, max(image.size) // edge * 2))
    return copy


def _grey(mask_HW: Mask) -> Image.Image:
    return Image.fromarray(np.round(mask_HW * 255).astype(np.uint8)).convert("RGB")


def _fitted(image: Image.Image, edge: int) -> Image.Image:
    scale = edge / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.resize(size, how)

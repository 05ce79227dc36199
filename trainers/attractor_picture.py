"""The contrastive weight over the training, as a small picture: the Attractor node's preview (Figure 16)."""

from __future__ import annotations

import io
from pathlib import Path

from ..core.hashing import hash_json
from ..core.paths import write_atomic
from .attractor import SCHEDULES, Attractor

WIDTH_PX, HEIGHT_PX, EDGE_PX = 384, 256, 36
PAPER, INK, FAINT, LINE = (251, 250, 247), (29, 28, 26), (210, 205, 196), (11, 110, 95)


def save_curve(attractor: Attractor, folder: Path) -> Path:
    """Draw the attractor's own schedule among the faint others; the file's name is a hash of it."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), PAPER)
    pen = ImageDraw.Draw(picture)
    right, bottom = WIDTH_PX - EDGE_PX // 2, HEIGHT_PX - EDGE_PX
    pen.line([(EDGE_PX, EDGE_PX // 2), (EDGE_PX, bottom), (right, bottom)], fill=INK)
    for name in sorted(SCHEDULES, key=lambda name: name == attractor.schedule):  # the chosen one on top
        own = name == attractor.schedule
        pen.line(_points(name, right, bottom), fill=LINE if own else FAINT, width=3 if own else 1)
    pen.text((EDGE_PX - 30, EDGE_PX // 2), f"{attractor.contrastive_weight:g}", fill=INK)
    pen.text((EDGE_PX - 30, bottom - 12), "0", fill=INK)
    pen.text((EDGE_PX, bottom + 8), f"contrastive weight, {attractor.schedule}: first to last step", fill=INK)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    key = hash_json([attractor.schedule, attractor.contrastive_weight])[:12]
    path = folder / f"attractor-{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path


def _points(name: str, right: int, bottom: int) -> list[tuple[float, float]]:
    width, height = right - EDGE_PX, bottom - EDGE_PX // 2
    return [(EDGE_PX + width * p / 100, bottom - height * SCHEDULES[name](p / 100)) for p in range(101)]

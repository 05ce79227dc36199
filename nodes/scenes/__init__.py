"""Likeness / scene: from the photos of several subjects to captioned scenes that show them together."""

from __future__ import annotations

from ..host import io
from . import compose, cutout, dataset, layout, recaption, repaint

NODES: list[type[io.ComfyNode]] = [
    *cutout.NODES,
    *layout.NODES,
    *compose.NODES,
    *repaint.NODES,
    *recaption.NODES,
    *dataset.NODES,
]

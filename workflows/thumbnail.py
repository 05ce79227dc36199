"""Draws a workflow's thumbnail: real photos above, what the model drew below.

    python workflows/thumbnail.py workflows/quickstart.jpg PHOTO PHOTO ... -- PICTURE PICTURE ...

The template browser of ComfyUI shows it beside the workflow's name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

EDGE_PX, GAP_PX = 128, 12
PAPER = (250, 248, 243)


def thumbnail(rows: Sequence[Sequence[Path]]) -> Image.Image:
    """Rows of squares of one size; small pictures are enlarged without smoothing."""
    step = EDGE_PX + GAP_PX
    size = (max(map(len, rows)) * step + GAP_PX, len(rows) * step + GAP_PX)
    sheet = Image.new("RGB", size, PAPER)
    for y, row in enumerate(rows):
        for x, path in enumerate(row):
            picture = Image.open(path).convert("RGB")
            sharp = Image.Resampling.NEAREST if picture.width < EDGE_PX else Image.Resampling.LANCZOS
            square = picture.resize((EDGE_PX, EDGE_PX), sharp)
            sheet.paste(square, (GAP_PX + x * step, GAP_PX + y * step))
    return sheet


def main(arguments: Sequence[str]) -> None:
    target, *paths = arguments
    middle = paths.index("--") if "--" in paths else len(paths)
    rows = [[Path(p) for p in part] for part in (paths[:middle], paths[middle + 1 :]) if part]
    thumbnail(rows).save(target, quality=92)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Small pictures that differ from each other, on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def paint():
    """``paint(path, seed, size=(8, 6), mode="RGB")`` writes a picture; equal seeds give equal pixels."""

    def write(path: Path, seed: int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).convert(mode).save(path)
        return path

    return write

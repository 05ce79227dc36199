"""Pictures between files and ComfyUI's IMAGE: float tensors (B, H, W, 3) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_pictures(paths: Sequence[Path]) -> Any:
    """Pictures of one size as one batch; a single black one when there are none."""
    import numpy as np
    import torch
    from PIL import Image

    pixels = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255 for path in paths]
    return torch.from_numpy(np.stack(pixels)) if pixels else torch.zeros(1, 64, 64, 3)

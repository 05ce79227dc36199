"""Where models run."""

from __future__ import annotations

import torch


def device_name(asked: str) -> str:
    """``asked`` as it is; for "auto" the best that this machine has: "cuda", "mps" or "cpu"."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

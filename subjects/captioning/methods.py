"""Captioners by name, each opened when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.errors import LikenessError
from .base import Captioner

CAPTIONERS = {
    "toybox": "by rule, for the built-in world's pictures",
    "qwen-vl": "a Qwen-VL in models/qwen-vl, on this machine",
    "server": "a server that speaks OpenAI's chat protocol",
}


def open_captioner(
    name: str,
    *,
    models: Sequence[Path] = (),
    device: str = "cpu",
    url: str = "",
    model: str = "",
    timeout_s: float = 120.0,
) -> Captioner:
    """Raises LikenessError for an unknown name, missing weights, or an address that is none."""
    if name == "toybox":
        from .toybox import ToyboxCaptioner

        return ToyboxCaptioner()
    if name == "qwen-vl":
        from ..segmenting.files import find_folder
        from .qwen import QwenCaptioner

        return QwenCaptioner.open(find_folder("qwen-vl", models, such_as="Qwen/Qwen2-VL-2B-Instruct"), device)
    if name == "server":
        from .server import ServerCaptioner

        return ServerCaptioner(url, model, timeout_s=timeout_s)
    raise LikenessError(f"There is no captioner {name!r}", expected=f"one of {', '.join(CAPTIONERS)}")

"""Likeness: ComfyUI's door to the pack. The house is described in the README."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> Any:
    """ComfyUI calls this once it has loaded the pack."""
    from .nodes import Likeness

    return Likeness()

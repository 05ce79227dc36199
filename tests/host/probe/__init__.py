"""A pack for tests: what the server's process has loaded, and core's numbers against ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class Probe:
    RETURN_TYPES = ()
    FUNCTION = "look"
    OUTPUT_NODE = True
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:  # noqa: N802 - ComfyUI's name
        return float("nan")  # look anew each time

    def look(self) -> dict[str, Any]:
        return {"ui": {"modules": sorted({name.partition(".")[0] for name in sys.modules})}}


class Native(Probe):
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"folder": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, folder: str) -> float:  # noqa: N802 - ComfyUI's name
        return float("nan")

    def compare(self, folder: str) -> dict[str, Any]:
        from .native import measured

        return {"ui": {"measured": [json.dumps(measured(Path(folder)))]}}


NODE_CLASS_MAPPINGS = {"TestProbe": Probe, "TestNative": Native}

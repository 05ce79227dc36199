"""A pack of one node that tells a test what the server's process has loaded."""

from __future__ import annotations

import sys
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


NODE_CLASS_MAPPINGS = {"TestProbe": Probe}

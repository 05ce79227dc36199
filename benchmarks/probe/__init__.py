"""A pack for tests and benchmarks: what the server's process holds, and core's numbers against ours."""

from __future__ import annotations

import json
import sys
import time
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
    def IS_CHANGED(cls, **inputs: Any) -> float:  # noqa: N802 - ComfyUI's name
        return float("nan")  # look anew each time

    def look(self) -> dict[str, Any]:
        return {"ui": {"modules": sorted({name.partition(".")[0] for name in sys.modules})}}


class Native(Probe):
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"source": ("STRING", {}), "stages": ("STRING", {}), "edge": ("INT", {})}}

    def compare(self, source: str, stages: str, edge: int) -> dict[str, Any]:
        from .native import measured

        return {"ui": {"measured": [json.dumps(measured(source, stages.split(","), edge))]}}


class Weights(Probe):
    """A hash of every tensor of the base model that our pack has open."""

    def look(self) -> dict[str, Any]:
        from .native import open_weights

        return {"ui": {"sha256": [open_weights()]}}


class Sleep(Probe):
    FUNCTION = "sleep"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"seconds": ("FLOAT", {})}}

    def sleep(self, seconds: float) -> dict[str, Any]:
        from comfy.model_management import throw_exception_if_processing_interrupted as check

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            check()
            time.sleep(0.05)
        return {"ui": {}}


NODE_CLASS_MAPPINGS = {
    "TestProbe": Probe,
    "TestNative": Native,
    "TestWeights": Weights,
    "TestSleep": Sleep,
}

"""A pack for tests and benchmarks: what the server's process holds, and core's numbers against ours."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from .waiting import wait


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


class Wait(Probe):
    """``Wait`` of benchmarks/batch_jobs.py, as a node of a server."""

    FUNCTION = "wait"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        whole = ("INT", {"default": 0, "max": 10**9})
        return {"required": {"number": whole, "seconds": ("FLOAT", {"default": 0.0}), "rounds": whole}}

    def wait(self, number: int, seconds: float, rounds: int) -> dict[str, Any]:
        import folder_paths

        wait(number, seconds, rounds, Path(folder_paths.get_output_directory()))
        return {"ui": {}}


NODE_CLASS_MAPPINGS = {
    "Wait": Wait,
    "TestProbe": Probe,
    "TestNative": Native,
    "TestWeights": Weights,
    "TestSleep": Sleep,
}

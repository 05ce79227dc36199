"""Loading the pack is free: ComfyUI prints every pack's import time, and ours shows 0.0."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

HEAVY = [
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "open_clip",
    "sam2",
    "cv2",
    "safetensors",
    "numpy",
    "rich",
]


def child(code: str) -> dict[str, object]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def test_importing_every_node_loads_nothing_heavy() -> None:
    loaded = child(f"""
        import json, sys
        import likeness, likeness.nodes
        [cls.GET_SCHEMA() for cls in likeness.nodes.NODES]
        print(json.dumps({{"loaded": [m for m in {HEAVY} if m in sys.modules]}}))
    """)
    assert loaded == {"loaded": []}


def test_importing_the_pack_takes_no_time() -> None:
    """What ComfyUI times: the pack's __init__, its entry point and its schemas. torch is there already."""
    measured = child("""
        import asyncio, json, time
        import dataclasses, enum, inspect, logging, pathlib, threading, typing, contextlib, collections
        times = []
        start = time.perf_counter()
        import likeness
        nodes = asyncio.run(asyncio.run(likeness.comfy_entrypoint()).get_node_list())
        print(json.dumps({"s": time.perf_counter() - start, "nodes": len(nodes)}))
    """)
    assert float(str(measured["s"])) < 0.05
    assert measured["nodes"] == 14

"""Loading the pack is free: ComfyUI prints every pack's import time, and ours shows 0.0."""

from __future__ import annotations

import json
import os
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
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # compiled once, as at a user's
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
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
    """What ComfyUI times, from __init__ to the schemas: CPU time, best of three."""
    code = """
        import asyncio, json, time
        import contextlib, dataclasses, enum, inspect, logging, pathlib, threading, typing
        start = time.process_time()
        import likeness
        nodes = asyncio.run(asyncio.run(likeness.comfy_entrypoint()).get_node_list())
        print(json.dumps({"s": time.process_time() - start, "nodes": len(nodes)}))
    """
    measured = [child(code) for _ in range(3)]
    assert min(float(str(m["s"])) for m in measured) < 0.05
    assert measured[0]["nodes"]

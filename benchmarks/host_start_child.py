"""Run by ``host_start`` with ComfyUI's interpreter: its start up to the packs, then each pack in a fork.

python host_start_child.py COMFYUI BASE STARTS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

comfyui, base, starts = sys.argv[1:]
sys.argv = [f"{comfyui}/main.py", "--cpu", "--base-directory", base, "--disable-api-nodes"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: E402, F401

# Only now: what follows puts another "utils" in its way.
# isort: split
import server  # noqa: E402

import nodes  # noqa: E402


def load(pack: str) -> dict[str, object]:
    """Load the pack as ``nodes.init_external_custom_nodes`` does: seconds by two clocks, and new modules."""
    before = set(sys.modules)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    path = os.path.join(base, "custom_nodes", pack)  # noqa: PTH118 - ComfyUI's way
    whole = asyncio.run(nodes.load_custom_node(path, set(), module_parent="custom_nodes"))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    assert whole, f"{pack} did not load"
    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    return {"pack": pack, "wall": wall_s, "cpu": cpu_s, "loaded": loaded}


def forked(pack: str) -> dict[str, object]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(load(pack)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer: dict[str, object] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


async def prepare() -> None:
    server.PromptServer(asyncio.get_running_loop())
    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)


asyncio.run(prepare())
loads = [forked(pack) for _ in range(int(starts) + 1) for pack in ("empty", "likeness")]
sys.stdout.write("\n" + json.dumps(loads[2:]) + "\n")  # the first pair compiled the bytecode

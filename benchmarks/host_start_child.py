"""Run by ``host_start`` with ComfyUI's interpreter: its start up to the packs, then the packs, one by one.

python host_start_child.py COMFYUI BASE PACK PACK
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

comfyui, base, *packs = sys.argv[1:]
sys.argv = [f"{comfyui}/main.py", "--cpu", "--base-directory", base, "--disable-api-nodes"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import utils.extra_config  # noqa: E402, F401

# Only now: what follows puts another "utils" in its way.
# isort: split
import server  # noqa: E402

import nodes  # noqa: E402


async def load(pack: str) -> dict[str, object]:
    """As ``nodes.init_external_custom_nodes`` does it: seconds by two clocks, and new modules."""
    before = set(sys.modules)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    path = os.path.join(base, "custom_nodes", pack)  # noqa: PTH118 - ComfyUI's way
    whole = await nodes.load_custom_node(path, set(), module_parent="custom_nodes")
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    assert whole, f"{pack} did not load"
    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    return {"pack": pack, "wall": wall_s, "cpu": cpu_s, "loaded": loaded}


async def start() -> list[dict[str, object]]:
    server.PromptServer(asyncio.get_running_loop())
    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    return [await load(pack) for pack in packs]


sys.stdout.write("\n" + json.dumps(asyncio.run(start())) + "\n")

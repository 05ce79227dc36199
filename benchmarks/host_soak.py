"""One ComfyUI server for a long time: good and bad prompts in turn, then a long queue of trainings.

Memory is what the process holds, from after the first trainings (what is loaded once is loaded) to the end,
over what as many prompts cost a server whose only pack does nothing. An hour on a quiet machine; quick: 50
prompts and 100 trainings.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..headless.comfyui import Install
from . import bar
from .comfyui import PROBE, ComfyServer, Graph, Rejected
from .host_graphs import Bad, bad_prompts, pictures, training, write_foreign_lora

PROMPTS, QUICK_PROMPTS = 200, 50
TRAININGS, QUICK_TRAININGS = 1000, 100
WARM_UP = 5  # trainings that are not counted
LOOK_S = 1.0
GROWTH_BAR_MB = 50.0
QUIET_S = 3600.0
METHODS = ("TextualInversion", "DreamBooth")


def run(quick: bool) -> dict[str, Any]:
    install, num = Install.find(), QUICK_TRAININGS if quick else TRAININGS
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with ComfyServer(install, scratch / "likeness") as server:
            mixed = alternating(server, QUICK_PROMPTS if quick else PROMPTS)
            failures, growth_mb = soaked(server, trained, num)
        with ComfyServer(install, scratch / "empty", packs=PROBE) as empty:
            base_mb = soaked(empty, idle, num)[1]
    return {
        "numbers": {
            **mixed,
            "trainings": num,
            "growth, MB": growth_mb,
            "growth of an empty pack, MB": base_mb,
        },
        "bars": [
            bar("good prompts that failed", value=mixed["good that failed"], op="==", bar=0),
            bar("bad prompts without node and input", value=len(mixed["bad, unclear"]), op="==", bar=0),
            bar(f"failures of {num} trainings", value=failures, op="==", bar=0),
            bar("MB more than an empty pack", value=growth_mb - base_mb, op="<=", bar=GROWTH_BAR_MB),
        ],
        "seeds": [0],
    }


# --- good and bad in turn ----------------------------------------------------------------------------


def alternating(server: ComfyServer, num: int) -> dict[str, Any]:
    """``num`` prompts, every second one bad; the names of the bad ones whose answer is not clear."""
    bad = bad_prompts(write_foreign_lora(server.base / "models"))
    unclear, failed = [], 0
    for number, (name, prompt) in enumerate(islice(cycle(bad.items()), num // 2)):
        failed += not server.run(pictures(seed=number), quiet_s=QUIET_S).ok
        unclear += [f"{name}: {said}"] if (said := unclear_answer(server, prompt)) else []
    return {
        "prompts": num,
        "bad, kinds": min(len(bad), num // 2),
        "good that failed": failed,
        "bad, unclear": unclear,
    }


def unclear_answer(server: ComfyServer, prompt: Bad) -> str:
    """ "" when the server's answer names the node and the input; else what it said."""
    try:
        error = server.run(prompt.broken, quiet_s=QUIET_S).error
        said, where = str(error.get("exception_message", "it ran")), {error.get("node_id")}
        kind = str(error.get("exception_type", "")).endswith("LikenessError")
    except Rejected as refused:
        said, where, kind = json.dumps(refused.node_errors), set(refused.node_errors), True
    named = (prompt.words or prompt.name) in said
    return "" if kind and named and prompt.node in where else f"{sorted(map(str, where))} {said}"[:500]


# --- memory ------------------------------------------------------------------------------------------


def trained(number: int) -> Graph:
    return training(METHODS[number % len(METHODS)], seed=number)


def idle(number: int) -> Graph:
    return {"1": {"class_type": "TestSleep", "inputs": {"seconds": 0.01 + number * 1e-6}}}


def soaked(server: ComfyServer, graph: Callable[[int], Graph], num: int) -> tuple[int, float]:
    """Failures of ``num`` prompts that wait in the queue together, and the growth of memory in MB meanwhile.

    The first few before them are not counted.
    """
    failures = queued(server, [graph(n) for n in range(WARM_UP)])
    before_mb = server.resident_mb()
    failures += queued(server, [graph(WARM_UP + n) for n in range(num)])
    return failures, server.resident_mb() - before_mb


def queued(server: ComfyServer, graphs: Sequence[Graph]) -> int:
    """Queue them all, wait until the last has ended, and count those that failed."""
    ids = [server.queue(graph) for graph in graphs]
    left, moved_s = len(ids), time.monotonic()
    while left:
        time.sleep(LOOK_S)
        state = server.get("/prompt")["exec_info"]["queue_remaining"]
        if state < left:
            left, moved_s = state, time.monotonic()
        elif time.monotonic() - moved_s > QUIET_S:
            raise TimeoutError(f"No prompt has ended for {QUIET_S:.0f} s")
    return sum(server.history(prompt).get("status", {}).get("status_str") != "success" for prompt in ids)

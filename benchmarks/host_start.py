"""What the pack adds to ComfyUI's start.

A ComfyUI is brought to the point where it loads packs, and there loads this one and an empty one, each first
in turn; a start is a process of its own. Then a real server starts, for the line in ComfyUI's own list.
Three minutes on a quiet machine; quick: one start.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ..headless.comfyui import Install
from . import bar
from .comfyui import BYTECODE, PACK, ComfyServer

STARTS, QUICK_STARTS = 5, 1
BAR_S = 0.05
HEAVY = {"diffusers", "transformers", "peft", "open_clip", "sam2", "cv2"}
LINE = re.compile(r"^ +([\d.]+) seconds: .*/likeness$", re.MULTILINE)
EMPTY = "NODE_CLASS_MAPPINGS = {}\n"
CHILD = Path(__file__).with_name("host_start_child.py")


def run(quick: bool) -> dict[str, Any]:
    install = Install.find()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        loads = _loads(install, scratch, QUICK_STARTS if quick else STARTS)
        with ComfyServer(install, scratch / "server") as server:
            line_s = own_line(server)
    median = {
        f"{pack}, {clock} s": statistics.median(load[clock] for load in loads if load["pack"] == pack)
        for pack in ("likeness", "empty")
        for clock in ("cpu", "wall")
    }
    over = {clock: median[f"likeness, {clock} s"] - median[f"empty, {clock} s"] for clock in ("cpu", "wall")}
    heavy = sorted({m for load in loads if load["pack"] == "likeness" for m in load["loaded"]} & HEAVY)
    return {
        "numbers": {"medians": median, "starts": len(loads) // 2, "heavy imports": heavy},
        "bars": [
            bar("seconds in ComfyUI's own list", value=line_s, op="<=", bar=0.0),
            bar("seconds over an empty pack, by the clock", value=over["wall"], op="<=", bar=BAR_S),
            bar("seconds over an empty pack, of the processor", value=over["cpu"], op="<=", bar=BAR_S),
            bar("heavy libraries imported", value=len(heavy), op="==", bar=0),
        ],
        "seeds": [],
    }


def _loads(install: Install, scratch: Path, starts: int) -> list[dict[str, Any]]:
    """Each pack's loading in each start: seconds by two clocks, and the modules that it brought."""
    packs = scratch / "custom_nodes"
    (packs / "empty").mkdir(parents=True)
    (packs / "empty" / "__init__.py").write_text(EMPTY)
    (packs / "likeness").symlink_to(PACK, target_is_directory=True)
    environment = install.environment(**BYTECODE)
    compiler = [str(install.python), "-m", "compileall", "-q", f"{PACK}/nodes", f"{PACK}/core"]
    subprocess.run(compiler, env=environment, check=True)
    loads: list[dict[str, Any]] = []
    for start in range(starts):
        order = ("empty", "likeness")[:: 1 if start % 2 else -1]
        command = [str(install.python), str(CHILD), str(install.path), str(scratch), *order]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=scratch, check=False
        )
        if done.returncode:
            raise RuntimeError(f"ComfyUI could not be brought to its packs:\n{done.stderr[-3000:]}")
        loads += json.loads(done.stdout.splitlines()[-1])
    return loads


def own_line(server: ComfyServer) -> float:
    """Seconds that a server says it needed to import the pack."""
    line = LINE.search(server.log())
    if line is None:
        raise RuntimeError(f"ComfyUI did not load the pack:\n{server.log_tail()}")
    return float(line[1])

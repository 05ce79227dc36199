"""What the pack adds to ComfyUI's start.

A ComfyUI is brought to the point where it loads packs, and forked there: one fork loads this pack, the next
an empty one, in turn. So all that differs is the pack. A pair that is not counted compiles the bytecode. Then
a real server starts, for the line in ComfyUI's own list. About a minute.
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
from .comfyui import PACK, ComfyServer

STARTS, QUICK_STARTS = 5, 3
BAR_S = 0.05
HEAVY = {"diffusers", "transformers", "peft", "open_clip", "sam2", "cv2"}
LINE = re.compile(r"^ +([\d.]+) seconds: .*/likeness$", re.MULTILINE)
EMPTY = "NODE_CLASS_MAPPINGS = {}\n"
CHILD = Path(__file__).with_name("host_start_child.py")


def run(quick: bool) -> dict[str, Any]:
    install = Install.find()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        loads = _forked(install, scratch, QUICK_STARTS if quick else STARTS)
        line_s = _own_line(install, scratch / "server")
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


def _forked(install: Install, scratch: Path, starts: int) -> list[dict[str, Any]]:
    packs = scratch / "custom_nodes"
    (packs / "empty").mkdir(parents=True)
    (packs / "empty" / "__init__.py").write_text(EMPTY)
    (packs / "likeness").symlink_to(PACK, target_is_directory=True)
    command = [install.python, CHILD, install.path, scratch, str(starts)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=install.environment(), cwd=scratch, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ComfyUI could not be brought to its packs:\n{done.stderr[-3000:]}")
    loads: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return loads


def _own_line(install: Install, base: Path) -> float:
    with ComfyServer(install, base) as server:
        line = LINE.search(server.log())
    if line is None:
        raise RuntimeError(f"ComfyUI did not load the pack:\n{server.log_tail()}")
    return float(line[1])

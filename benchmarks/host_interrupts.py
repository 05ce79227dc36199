"""The stop button at random moments of a training in a real ComfyUI, and what is left behind.

One training in one go is the reference. The same is then begun again and again, interrupted at a moment drawn
by lot from one of its phases, looked at, and queued once more to its end. In between a prompt of another kind
must run. It is queued and stopped by a program, and in a browser by ComfyUI's page. Three quarters of an hour
on a quiet machine; quick: one interrupt by a program, two by the page.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.checkpoint import load_checkpoint, newest_checkpoint
from ..core.hashing import hash_bytes
from ..core.paths import PARTIAL_SUFFIX
from ..headless.comfyui import Install
from . import bar
from .comfyui import BOTH, Client, ComfyServer, Graph, Run
from .host_graphs import monitored, pictures
from .page import Page, chromium

SEED = 5
PHASES = ("loading", "class images", "caching", "step", "sampling", "scoring")
# How many interrupts by whom.
MOMENTS, QUICK_MOMENTS = {"program": 10, "page": 20}, {"program": 1, "page": 2}
GRACE_S = 2.0
QUIET_S = 3600.0  # a busy machine is slow, not broken
LOOK: Graph = {"1": {"class_type": "TestWeights", "inputs": {}}}

Way = Callable[[], AbstractContextManager[Client]]


@dataclass
class Timed:
    """One prompt, and when (by the monotonic clock) each phase said something."""

    run: Run
    told_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    asked_s: float = 0.0  # when it was interrupted
    ended_s: float = 0.0

    @property
    def longest_work_s(self) -> float:
        """Between two looks at the stop button, as far as the page can tell."""
        told = sorted(t for times in self.told_s.values() for t in times)
        return max(b - a for a, b in pairwise(told))


def run(quick: bool) -> dict[str, Any]:
    dice, moments = random.Random(SEED), QUICK_MOMENTS if quick else MOMENTS
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium() as browser,
        ComfyServer(Install.find(), Path(folder) / "comfyui", packs=BOTH) as server,
        Page.opened(browser, server) as page,
    ):
        clients: dict[str, Way] = {"program": server.listen, "page": lambda: nullcontext(page)}
        rows: dict[str, list[dict[str, Any]]] = {}
        changed = 0
        for way, num in moments.items():
            bench = Interrupts(server, clients[way])
            bench.reference()
            rows[way] = [bench.interrupted(phase, dice.random()) for phase in phases_of(num)]
            bench.failed()
            changed += bench.changed
    return {
        "numbers": {
            f"by the {way}": {f"{n}, {row['phase']}": row for n, row in enumerate(found)}
            for way, found in rows.items()
        },
        "bars": [
            *(one for way, found in rows.items() for one in bars_of(way, found)),
            bar("times that a tensor of the base differed", value=changed, op="==", bar=0),
        ],
        "seeds": [SEED],
    }


def phases_of(num: int) -> list[str]:
    """Loading once, since the model stays loaded; then the others in turn."""
    return [PHASES[1 + n % (len(PHASES) - 1)] if n else PHASES[0] for n in range(num)]


def bars_of(way: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    late = max(row["stopped after, s"] - row["longest work, s"] for row in rows)
    yield bar(f"{way}: seconds to the stop beyond the work at hand", value=late, op="<=", bar=GRACE_S)
    for what in Interrupts.CHECKS:
        count = sum(row[what] for row in rows)
        yield bar(f"{way}: {what}, of {len(rows)}", value=count, op="==", bar=len(rows))


class Interrupts:
    """One server, one training, one who queues and stops it, and what it comes to in one go."""

    CHECKS = ("interrupted", "no torn file", "next prompt ran", "resumed", "bit-identical")

    def __init__(self, server: ComfyServer, client: Way) -> None:
        self.server, self.client, self.graph = server, client, monitored()
        self.runs = server.base / "output" / "likeness" / "runs"
        self.whole: dict[str, str] = {}
        self.timed: Timed
        self.weights = ""
        self.changed = 0  # times that the base model was another one than after the reference

    def reference(self) -> None:
        self.follow()  # once before: imports and the model's loading are paid
        self.server.forget()
        self.timed = self.follow()
        assert self.timed.run.ok, self.timed.run.error
        self.whole, self.weights = self.content(), self.look()

    def interrupted(self, phase: str, share: float) -> dict[str, Any]:
        """Stop at ``share`` of the way through a phase, then resume."""
        self.server.forget()
        times = self.timed.told_s[phase]
        stopped = self.follow(phase, share * (times[-1] - times[0]))
        if stopped.run.ok:  # the machine was quicker this time: at the phase's beginning, then
            self.server.forget()
            stopped = self.follow(phase)
        row: dict[str, Any] = {
            "phase": phase,
            "stopped after, s": stopped.ended_s - stopped.asked_s,
            "longest work, s": self.timed.longest_work_s,
            "interrupted": stopped.run.interrupted,
            "no torn file": self.untorn(),
            "step of the checkpoint": self.newest_step(),  # which is read whole
        }
        self.changed += self.look() != self.weights
        row["next prompt ran"] = self.server.run(pictures(seed=len(times))).ok
        row["resumed"] = self.follow().run.ok
        row["bit-identical"] = self.content() == self.whole
        self.changed += self.look() != self.weights
        return row

    def failed(self) -> None:
        """An error in mid-run: a folder lies where a checkpoint goes."""
        self.server.forget()
        folder = next(iter(self.whole)).partition("/")[0]
        blocked = self.runs / folder / "checkpoints" / "step_00000004.safetensors"
        (blocked / "full").mkdir(parents=True)
        assert self.follow().run.error
        self.changed += self.look() != self.weights

    # --- one prompt -------------------------------------------------------------------------------
    def follow(self, stop_in: str = "", after_s: float = 0.0) -> Timed:
        """Queue the training and note what it tells; interrupt it so long after a phase began."""
        with self.client() as client:
            timed = Timed(client.queue(self.graph))
            for event in client.follow(timed.run, QUIET_S):
                if phase := _phase(event):
                    timed.told_s[phase].append(time.monotonic())
                if stop_in and phase == stop_in and not timed.asked_s:
                    time.sleep(after_s)
                    timed.asked_s = time.monotonic()
                    client.interrupt()
            timed.ended_s = time.monotonic()
        return timed

    def look(self) -> str:
        return str(self.server.run(LOOK).outputs["1"]["sha256"][0])

    # --- the disk ---------------------------------------------------------------------------------
    def content(self) -> dict[str, str]:
        """What a finished run has learned, and its loss curve, by file."""
        files = [*self.runs.glob("*/concept/*.safetensors"), *self.runs.glob("*/history.jsonl")]
        return {
            path.relative_to(self.runs).as_posix(): hash_bytes(path.read_bytes()) for path in sorted(files)
        }

    def untorn(self) -> bool:
        return not any(PARTIAL_SUFFIX in path.name for path in self.runs.rglob("*"))

    def newest_step(self) -> int:
        """Of the checkpoint that a resume begins from, which is read whole; 0 when there is none."""
        newest = [path for f in self._folders() if (path := newest_checkpoint(f / "checkpoints"))]
        return int(load_checkpoint(newest[0])[1]["step"]) if newest else 0

    def _folders(self) -> Iterator[Path]:
        yield from (path.parent for path in self.runs.glob("*/run.json"))


def _phase(event: dict[str, Any]) -> str:
    if event["type"] != "progress_text":
        return ""
    text = str(event["data"]["text"])
    return next((phase for phase in PHASES if text.startswith(phase)), "")

"""Batches over two ComfyUI servers and over Ray on this machine: kills, throughput, and what a job costs.

24 jobs on two of each: the batch's own process is killed when a third have run and started again; when two
thirds have run, a worker is killed: a server, which is started again, or a process of Ray's. One job that
learns a subject of Toybox is timed, for docs/batch.md. A quarter of an hour on a quiet machine; quick, 4
minutes. Needs Ray: `pip install ray`.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.packages import require
from ..headless.batch.embedded import Embedded, Folders
from ..headless.batch.on_ray import OnRay
from ..headless.batch.servers import Servers
from ..headless.batch.targets import Target, Task
from ..headless.comfyui import Install
from . import bar
from .batch import OVERHEAD_BAR_S
from .batch_jobs import (
    IDLE,
    JOBS,
    KILLED,
    LEARNED,
    Chore,
    bars_of,
    killed_and_resumed,
    marks,
    overhead,
    speedups,
    wait_nodes,
)
from .comfyui import PROBE, ComfyServer
from .host_graphs import training

JOB_S = 0.5


@dataclass(frozen=True)
class AtServers:
    """ComfyUI servers with the probe; ``folders`` are what they write to."""

    urls: tuple[str, ...]
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, servers: Sequence[ComfyServer]) -> AtServers:
        outputs = tuple(server.base / "output" for server in servers)
        return cls(tuple(server.url for server in servers), outputs)

    def target(self, folder: Path) -> Target:
        return Servers(self.urls)

    def outputs(self, folder: Path) -> Sequence[Path]:
        return self.folders


@dataclass(frozen=True)
class AtRay:
    """A Ray of this machine, started for the batch."""

    workers: int

    def target(self, folder: Path) -> Target:
        return OnRay(Folders(output=folder, input=folder), workers=self.workers, nodes=wait_nodes)

    def outputs(self, folder: Path) -> Sequence[Path]:
        return [folder]


def run(quick: bool) -> dict[str, Any]:
    require("ray", purpose="this benchmark", install="ray")
    install = Install.find()
    count, jobs, repeats, steps = (50, 6, 1, 3) if quick else (1_000, 24, 3, 0)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with (
            ComfyServer(install, scratch / "first", packs=PROBE) as first,
            ComfyServer(install, scratch / "second", packs=PROBE) as second,
        ):
            servers = on_servers(scratch / "servers", first, second, jobs, repeats)
        ray = on_ray(scratch / "ray", count, jobs, repeats)
        learned_s = learning(scratch / "learned", steps)
    each = {"ComfyUI": servers, "Ray": ray}
    return {
        "numbers": {**each, LEARNED: learned_s},
        "bars": [
            *(one for where, found in each.items() for one in bars_of(where, found)),
            bar("Ray: overhead of a job, s", value=ray[IDLE]["s per job"], op="<=", bar=OVERHEAD_BAR_S),
        ],
        "seeds": [],
    }


def on_servers(
    scratch: Path, first: ComfyServer, second: ComfyServer, jobs: int, repeats: int
) -> dict[str, Any]:
    def restart() -> None:
        second.kill()
        second.start()

    one, two = AtServers.of([first]), AtServers.of([first, second])
    killed = killed_and_resumed(scratch / "killed", two, JOBS, Chore(seconds=JOB_S), restart)
    return {KILLED: killed, **speedups(scratch, one, two, jobs, JOB_S, repeats)}


def on_ray(scratch: Path, count: int, jobs: int, repeats: int) -> dict[str, Any]:
    one, two = AtRay(1), AtRay(2)
    folder = scratch / "killed"

    def kill_a_worker() -> None:
        with suppress(ProcessLookupError):
            os.kill(marks(two, folder)[-1].process, signal.SIGKILL)

    killed = killed_and_resumed(folder, two, JOBS, Chore(seconds=JOB_S), kill_a_worker)
    idle = overhead(scratch / "idle", one, count)
    return {KILLED: killed, IDLE: idle, **speedups(scratch, one, two, jobs, JOB_S, repeats)}


def learning(folder: Path, steps: int) -> float:
    """Seconds of a job that learns a Toybox subject by DreamBooth, on all cores; ``steps`` 0: the preset's.

    Imports and the model's loading are not counted: they come once for a worker.
    """
    [worker] = Embedded(Folders(output=folder, input=folder), workers=1).open()

    def learn(**settings: int) -> None:
        graph = training("DreamBooth", **settings)
        worker.run(Task(number=0, key="", ticket=str(uuid.uuid4()), prompt=graph), lambda words: None)

    with closing(worker):
        learn(steps=1, seed=1)
        began_s = time.perf_counter()
        learn(steps=steps, batch_size=0)
        return time.perf_counter() - began_s

"""What a batch costs beside its jobs, and that a kill neither loses a job nor repeats one: on this machine.

Jobs that do nothing, that wait as for a disk or a server, and that compute on one core, run on the embedded
target: what is measured is planning, checking, the manifest, and the way to a worker and back. About 5
minutes; quick, 1. ``batch_targets`` has the other targets.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..headless.batch.manifest import Manifest
from ..headless.batch.plan import read_table
from . import bar
from .batch_jobs import (
    IDLE,
    JOBS,
    KILLED,
    Chore,
    Here,
    bars_of,
    killed_and_resumed,
    overhead,
    speedups,
    workflow_on,
)

JOB_S = 0.25
OVERHEAD_BAR_S = 0.05
GROWTH_BAR_MIB = 32.0  # between 10,000 and 100,000 rows: a manifest in memory would take more


def run(quick: bool) -> dict[str, Any]:
    count, few, many = (100, 1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    jobs, repeats = (12, 1) if quick else (40, 3)
    one, two = Here(1), Here(2)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        found = {
            IDLE: overhead(scratch / "idle", one, count),
            KILLED: killed_and_resumed(scratch / "killed", two, JOBS, Chore(seconds=JOB_S)),
            **speedups(scratch, one, two, jobs, JOB_S, repeats),
        }
        small, large = memory(scratch / "few", few), memory(scratch / "many", many)
    growth = large["peak, MiB"] - small["peak, MiB"]
    return {
        "numbers": {**found, "manifest": {f"{few:,} rows": small, f"{many:,} rows": large}},
        "bars": [
            bar("overhead of a job, s", value=found[IDLE]["s per job"], op="<=", bar=OVERHEAD_BAR_S),
            *bars_of("worker processes", found),
            bar(f"rows of {many} in the manifest", value=large["read back"], op="==", bar=many),
            bar("MiB more for ten times the rows", value=growth, op="<=", bar=GROWTH_BAR_MIB),
        ],
        "seeds": [],
    }


def memory(folder: Path, count: int) -> dict[str, float]:
    """Peak memory of a fresh process that plans a table of ``count`` lines and reads every job back."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_plan_table, args=(folder, count, theirs))
    process.start()
    numbers: dict[str, float] = json.loads(mine.recv_bytes())
    process.join()
    return numbers


def _plan_table(folder: Path, count: int, line: Any) -> None:
    folder.mkdir(parents=True)
    table = folder / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["1.number", "1.seconds"])
        writer.writerows((number, 0.5) for number in range(count))
    workflow = workflow_on(Here(1).target(folder))
    manifest = Manifest(folder / "manifest.sqlite")
    began_s = time.perf_counter()
    planned = manifest.plan(workflow.jobs(read_table(table)))
    planned_s = time.perf_counter() - began_s
    read = sum(1 for _ in manifest.records())
    manifest.close()
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    numbers = {"jobs": planned.jobs, "read back": read, "peak, MiB": peak, "planning, s": planned_s}
    line.send_bytes(json.dumps(numbers).encode())

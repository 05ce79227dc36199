"""What a batch costs beside its jobs, and that a kill neither loses a job nor repeats one.

Jobs that do nothing, and jobs that wait as for a disk or a server, run on the embedded target: what is
measured is planning, checking, the manifest, and the way to a worker and back. About 4 minutes; quick, 1.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..headless.batch.checking import Workflow
from ..headless.batch.dispatch import Dispatch
from ..headless.batch.embedded import Embedded, Folders
from ..headless.batch.manifest import DONE, Manifest
from ..headless.batch.plan import Row, read_table
from ..headless.graph import Node
from ..nodes import host
from ..nodes.host import io
from . import bar

OVERHEAD_BAR_S = 0.05
SPEEDUP_BAR = 1.8
GROWTH_BAR_MIB = 32.0  # between 10,000 and 100,000 rows: a manifest in memory would take more


class Wait(io.ComfyNode):
    """Waits as for a disk or a network, and writes down that it ran."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Wait",
            inputs=[
                io.Int.Input("number", default=0, min=0, max=10**9),
                io.Float.Input("seconds", default=0.0, min=0.0, max=60.0),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, number: int, seconds: float) -> io.NodeOutput:
        time.sleep(seconds)
        if seconds:
            path = host.current.output / "ran" / f"{number}-{time.time_ns()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return io.NodeOutput()


def wait_nodes() -> dict[str, type[io.ComfyNode]]:
    return {"Wait": Wait}


def rows(count: int, seconds: float) -> Iterator[Row]:
    return (Row(settings={"1.number": number, "1.seconds": seconds}) for number in range(count))


def batch(folder: Path, count: int, seconds: float, workers: int) -> tuple[float, float, dict[str, int]]:
    """Plan and run ``count`` jobs. Seconds of planning, seconds from the first job's start, jobs by state."""
    target = Embedded(Folders(output=folder, input=folder), workers=workers, nodes=wait_nodes)
    workflow = Workflow({"1": Node("1", "Wait", {"number": 0, "seconds": 0.0})}, target.catalogue(), "wait")
    manifest = Manifest(folder / "manifest.sqlite")
    began_s = time.perf_counter()
    manifest.plan(workflow.jobs(rows(count, seconds)))
    planned_s = time.perf_counter() - began_s
    slots = target.open()
    for slot in slots:
        slot.start()  # a process and its imports: once for a batch, however long
    try:
        began_s = time.perf_counter()
        Dispatch(manifest, slots, lambda record: workflow.prompt(record.job)).run()
        return planned_s, time.perf_counter() - began_s, manifest.counts()
    finally:
        for slot in slots:
            slot.close()
        manifest.close()


# --- measurements -----------------------------------------------------------------------------------------


def overhead(folder: Path, count: int) -> dict[str, float]:
    """Seconds per job that does nothing, on one worker."""
    planned_s, ran_s, counts = batch(folder, count, 0.0, 1)
    return {
        "jobs": count,
        "done": counts[DONE],
        "planning, s per job": planned_s / count,
        "running, s per job": ran_s / count,
    }


def speedup(folder: Path, jobs: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Throughput of two workers over that of one, for jobs that wait; alternated."""
    ratios = []
    for repeat in range(repeats):
        one = batch(folder / f"one-{repeat}", jobs, seconds, 1)[1]
        two = batch(folder / f"two-{repeat}", jobs, seconds, 2)[1]
        ratios.append(one / two)
    return {"jobs": jobs, "seconds of each": seconds, "ratios": ratios, "median": statistics.median(ratios)}


def killed_and_resumed(folder: Path, jobs: int, seconds: float) -> dict[str, int]:
    """Kill the batch's process in the middle, start it again, and count each job in the results."""
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=batch, args=(folder, jobs, seconds, 2))
    first.start()
    ran = folder / "ran"
    deadline = time.monotonic() + 600  # a busy machine starts its workers slowly
    while len(list(ran.glob("*"))) < jobs // 3 and time.monotonic() < deadline and first.is_alive():
        time.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    before = len(list(ran.glob("*")))
    batch(folder, jobs, seconds, 2)
    manifest = Manifest(folder / "manifest.sqlite")
    results = Counter(record.settings["1.number"] for record in manifest.records(DONE))
    manifest.close()
    ran_often = Counter(path.name.partition("-")[0] for path in ran.glob("*"))
    return {
        "jobs": jobs,
        "run before the kill": before,
        "in the results once": sum(times == 1 for times in results.values()),
        "in the results more than once": sum(times > 1 for times in results.values()),
        "begun again after the kill": sum(times > 1 for times in ran_often.values()),
        "killed by": int(first.exitcode or 0),
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
    target = Embedded(Folders(output=folder, input=folder), workers=1, nodes=wait_nodes)
    workflow = Workflow({"1": Node("1", "Wait", {"number": 0, "seconds": 0.0})}, target.catalogue(), "wait")
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


def machines_hours(jobs: int, machines: int, job_s: float, overhead_s: float) -> float:
    """Hours that ``jobs`` take on ``machines``, one job at a time on each."""
    return jobs / machines * (job_s + overhead_s) / 3600


def run(quick: bool) -> dict[str, Any]:
    count, few, many = (100, 1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    waits, repeats = ((12, 0.25), 1) if quick else ((40, 0.25), 3)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        costs = overhead(scratch / "overhead", count)
        resumed = killed_and_resumed(scratch / "killed", 24, 0.25)
        speed = speedup(scratch / "speed", *waits, repeats)
        small, large = memory(scratch / "few", few), memory(scratch / "many", many)
    per_job = costs["planning, s per job"] + costs["running, s per job"]
    growth = large["peak, MiB"] - small["peak, MiB"]
    hours = {
        f"{machines} machines": machines_hours(10_000, machines, 0.0, per_job) for machines in (1, 10, 100)
    }
    return {
        "numbers": {
            "jobs that do nothing": costs,
            "24 jobs, killed and started again": resumed,
            "two workers over one": speed,
            "manifest": {f"{few} rows": small, f"{many} rows": large},
            "overhead of 1,000 subjects x 10 settings, hours": hours,
        },
        "bars": [
            bar("overhead of a job, s", value=per_job, op="<=", bar=OVERHEAD_BAR_S),
            bar("of 24 jobs, in the results once", value=resumed["in the results once"], op="==", bar=24),
            bar("the kill was real (-9)", value=resumed["killed by"], op="==", bar=-9),
            bar("jobs run before the kill", value=resumed["run before the kill"], op=">=", bar=1),
            bar("jobs run only after it", value=24 - resumed["run before the kill"], op=">=", bar=1),
            bar("throughput of two workers over one", value=speed["median"], op=">=", bar=SPEEDUP_BAR),
            bar(f"rows of {many} in the manifest", value=large["read back"], op="==", bar=many),
            bar("MiB more for ten times the rows", value=growth, op="<=", bar=GROWTH_BAR_MIB),
        ],
        "seeds": [],
    }

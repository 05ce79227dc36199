"""Jobs that do as little as they are told, for benchmarks of batches: where they run, what became of each."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..headless.batch.checking import Workflow
from ..headless.batch.dispatch import Dispatch
from ..headless.batch.embedded import Embedded, Folders
from ..headless.batch.manifest import DONE, Manifest
from ..headless.batch.plan import Row
from ..headless.batch.targets import Slot, Target, Task
from ..headless.graph import Node
from ..nodes import host
from ..nodes.host import io
from . import bar
from .probe.waiting import BLOCK, wait

PATIENCE_S = 1200.0  # a busy machine starts its workers slowly
JOBS = 24  # that a kill comes among
SPEEDUP_BAR = 1.8
# What is measured, by its name in results.
IDLE, KILLED = "jobs that do nothing", "killed and started again"
CHORES = ("jobs that wait", "jobs that compute on one core")
LEARNED = "a job that learns a Toybox subject, s"


class Wait(io.ComfyNode):
    """Does as little as it is told, and writes down that it ran."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Wait",
            inputs=[
                io.Int.Input("number", default=0, min=0, max=10**9),
                io.Float.Input("seconds", default=0.0, min=0.0, max=60.0),
                io.Int.Input("rounds", default=0, min=0, max=10**6),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, number: int, seconds: float, rounds: int) -> io.NodeOutput:
        wait(number, seconds, rounds, host.current.output)
        return io.NodeOutput()


def wait_nodes() -> dict[str, type[io.ComfyNode]]:
    return {"Wait": Wait}


@dataclass(frozen=True)
class Chore:
    """What every job of a batch does."""

    seconds: float = 0.0
    rounds: int = 0

    def rows(self, count: int) -> Iterator[Row]:
        given = {"1.seconds": self.seconds, "1.rounds": self.rounds}
        return (Row(settings={"1.number": number, **given}) for number in range(count))


def computing(seconds: float) -> Chore:
    """About ``seconds`` of work for one core of this machine."""
    rounds, began_s = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - began_s) < 0.2:
        hashlib.sha256(BLOCK).digest()
        rounds += 1
    return Chore(rounds=max(1, round(seconds * rounds / spent_s)))


class Place(Protocol):
    """Where a batch runs. It is sent to other processes."""

    def target(self, folder: Path) -> Target: ...

    def outputs(self, folder: Path) -> Sequence[Path]:
        """The folders that jobs write to."""


@dataclass(frozen=True)
class Here:
    """Worker processes of this machine."""

    workers: int

    def target(self, folder: Path) -> Target:
        return Embedded(Folders(output=folder, input=folder), workers=self.workers, nodes=wait_nodes)

    def outputs(self, folder: Path) -> Sequence[Path]:
        return [folder]


def workflow_on(target: Target) -> Workflow:
    blank = {"number": 0, "seconds": 0.0, "rounds": 0}
    return Workflow({"1": Node("1", "Wait", blank)}, target.catalogue(), "wait")


def batch(folder: Path, place: Place, count: int, chore: Chore) -> tuple[float, float, dict[str, int]]:
    """Plan and run ``count`` jobs. Seconds of planning, seconds from the first job's start, jobs by state."""
    with (
        closing(place.target(folder)) as target,
        closing(Manifest(folder / "manifest.sqlite")) as manifest,
    ):
        workflow = workflow_on(target)
        began_s = time.perf_counter()
        manifest.plan(workflow.jobs(chore.rows(count)))
        planned_s = time.perf_counter() - began_s
        slots = target.open()
        try:
            warm(slots, workflow)
            began_s = time.perf_counter()
            Dispatch(manifest, slots, lambda record: workflow.prompt(record.job)).run()
            return planned_s, time.perf_counter() - began_s, manifest.counts()
        finally:
            for slot in slots:
                slot.close()


def warm(slots: Sequence[Slot], workflow: Workflow) -> None:
    """One job of no work on every slot at once: processes and their imports come once for a batch."""
    [row] = Chore().rows(1)
    prompt = workflow.prompt(workflow.job(row))

    def once(slot: Slot) -> None:
        task = Task(number=0, key="", ticket=str(uuid.uuid4()), prompt=prompt)
        slot.run(task, lambda words: None)

    with ThreadPoolExecutor(len(slots)) as pool:
        list(pool.map(once, slots))


# --- measurements -----------------------------------------------------------------------------------------


def overhead(folder: Path, place: Place, count: int) -> dict[str, float]:
    """Seconds per job that does nothing."""
    planned_s, ran_s, counts = batch(folder, place, count, Chore())
    return {
        "jobs": count,
        "done": counts[DONE],
        "planning, s per job": planned_s / count,
        "running, s per job": ran_s / count,
        "s per job": (planned_s + ran_s) / count,
    }


def speedups(scratch: Path, one: Place, two: Place, jobs: int, job_s: float, repeats: int) -> dict[str, Any]:
    """``speedup`` for each of CHORES."""
    chores = zip(CHORES, (Chore(seconds=job_s), computing(job_s)), strict=True)
    return {what: speedup(scratch / what, one, two, jobs, chore, repeats) for what, chore in chores}


def speedup(folder: Path, one: Place, two: Place, jobs: int, chore: Chore, repeats: int) -> dict[str, Any]:
    """Throughput of a place of two workers over that of one; alternated."""
    ratios = []
    for repeat in range(repeats):
        seconds = [
            batch(folder / f"{name}-{repeat}", place, jobs, chore)[1]
            for name, place in (("one", one), ("two", two))
        ]
        ratios.append(seconds[0] / seconds[1])
    return {"jobs": jobs, "seconds alone": seconds[0], "ratios": ratios, "median": statistics.median(ratios)}


def killed_and_resumed(
    folder: Path, place: Place, jobs: int, chore: Chore, trouble: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Kill the batch's process in the middle, start it again, and count each job in the results.

    ``trouble`` comes once when two thirds have run: what happens to a worker meanwhile.
    """
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=batch, args=(folder, place, jobs, chore))
    first.start()
    _wait_for(jobs // 3, place, folder, first.is_alive)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    before = len(marks(place, folder))

    def make_trouble() -> None:
        _wait_for(2 * jobs // 3, place, folder)
        trouble()

    later = threading.Thread(target=make_trouble)
    later.start()
    batch(folder, place, jobs, chore)
    later.join()
    with closing(Manifest(folder / "manifest.sqlite")) as manifest:
        results = Counter(record.settings["1.number"] for record in manifest.records(DONE))
    ran_often = Counter(mark.number for mark in marks(place, folder))
    return {
        "jobs": jobs,
        "run before the kill": before,
        "in the results once": sum(times == 1 for times in results.values()),
        "in the results more than once": sum(times > 1 for times in results.values()),
        "begun again": sum(times > 1 for times in ran_often.values()),
        "killed by": int(first.exitcode or 0),
    }


@dataclass(frozen=True, order=True)
class Mark:
    """What a job leaves when it has run."""

    time_ns: int
    number: int
    process: int


def marks(place: Place, folder: Path) -> list[Mark]:
    """Of all jobs that have run so far, the newest last."""
    names = (path.name for output in place.outputs(folder) for path in (output / "ran").glob("*"))
    parts = (map(int, name.split("-")) for name in names)
    return sorted(Mark(time_ns, number, process) for number, time_ns, process in parts)


def _wait_for(count: int, place: Place, folder: Path, alive: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(marks(place, folder)) < count and time.monotonic() < deadline and alive():
        time.sleep(0.01)


def bars_of(where: str, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every job once in the results after a kill in the middle; two workers are worth two."""
    killed = found[KILLED]
    jobs, before = killed["jobs"], killed["run before the kill"]
    once = killed["in the results once"]
    yield bar(f"{where}: of {jobs} jobs, in the results once", value=once, op="==", bar=jobs)
    yield bar(f"{where}: the kill was real (-9)", value=killed["killed by"], op="==", bar=-9)
    yield bar(f"{where}: jobs run before the kill", value=before, op=">=", bar=1)
    yield bar(f"{where}: jobs run only after it", value=jobs - before, op=">=", bar=1)
    for what in CHORES:
        times = found[what]["median"]
        yield bar(f"{where}: two workers over one, {what}", value=times, op=">=", bar=SPEEDUP_BAR)

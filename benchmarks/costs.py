"""The part of docs/batch.md that says what batches cost, from two benches' results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .batch_jobs import CHORES, IDLE, JOBS, KILLED, LEARNED

BENCHES = ("batch", "batch-targets")
SUBJECTS, SETTINGS = 1_000, 10
MACHINES = (1, 10, 100)
GUESSES = {"1 minute": 60.0, "10 minutes": 600.0, "30 minutes": 1800.0}
TEXT = """\
Measured on {cores} cores ({processor}) by `make bench NAME=batch` and `make bench NAME=batch-targets`:

{measured}

{subjects} subjects x {settings} settings are {jobs} jobs. What the batch adds to them is {added} hours in
all, even where one process has to bear it alone; the rest is the jobs' own time, on N machines with one job
at a time on each. Calculated so, in hours:

{times}

The first line is a subject of Toybox, learned by DreamBooth on such a machine. For any other workflow run one
job, and read its time in `results.csv`.
"""

Row = tuple[str, ...]


def hours(jobs: int, machines: int, job_s: float, overhead_s: float) -> float:
    """That ``jobs`` take on ``machines``, one job at a time on each."""
    return jobs / machines * (job_s + overhead_s) / 3600


def render(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The text, from the full results by bench; which of them are missing, when some are."""
    if missing := [name for name in BENCHES if name not in records]:
        commands = " and ".join(f"`make bench NAME={name}`" for name in missing)
        return f"Not measured yet: {commands}.\n"
    here, there = (records[name]["numbers"] for name in BENCHES)
    machine, jobs = records[BENCHES[0]]["machine"], SUBJECTS * SETTINGS
    overhead_s, learned_s = float(here[IDLE]["s per job"]), float(there[LEARNED])
    head = ("a job takes", *(f"{machines} machine{'s' * (machines > 1)}" for machines in MACHINES))
    times = [
        (what, *(f"{hours(jobs, machines, job_s, overhead_s):,.1f}" for machines in MACHINES))
        for what, job_s in {f"{learned_s:.0f} s, as measured": learned_s, **GUESSES}.items()
    ]
    return TEXT.format(
        cores=machine["cores"],
        processor=machine["processor"],
        measured=table(("measured", "value"), list(_measured(here, there))),
        subjects=f"{SUBJECTS:,}",
        settings=SETTINGS,
        jobs=f"{jobs:,}",
        added=f"{hours(jobs, 1, 0.0, overhead_s):.1f}",
        times=table(head, times),
    )


def _measured(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Row]:
    idle, ray = here[IDLE], there["Ray"][IDLE]
    yield f"overhead of a job that does nothing, one worker ({idle['jobs']:,} jobs)", _ms(idle["s per job"])
    yield f"the same on a Ray of this machine ({ray['jobs']:,} jobs)", _ms(ray["s per job"])
    places = {"worker processes": here, "ComfyUI servers": there["ComfyUI"], "Ray tasks": there["Ray"]}
    for name, found in places.items():
        for what in CHORES:
            yield f"two {name} over one, {what}", f"{found[what]['median']:.2f} times"
        killed = found[KILLED]
        words = f"{killed['in the results once']} in the results once, {killed['begun again']} begun again"
        yield f"{JOBS} jobs on two {name}, the batch killed after {killed['run before the kill']}", words
    for rows, numbers in here["manifest"].items():
        words = f"{numbers['peak, MiB']:.0f} MiB at most, in {numbers['planning, s']:.0f} s"
        yield f"to check and plan {rows}", words


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def table(head: Row, rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

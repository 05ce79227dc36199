"""A long benchmark case by case: each is measured once, in a worker of one thread, and kept on disk.

    rows = measured("learning", learned_rows, [("rabbit", 101, 0), ("rabbit", 101, 1), ...])

As many cases at once as there are cores; on a CPU that is faster than one case on all of them. A benchmark
that was stopped goes on with the cases that are missing. What is kept counts for as long as the code that it
came from, and Toybox's weights, stay as they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from ..core.paths import write_atomic

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
# What a measured number comes from: the code below these folders, and the weights.
SOURCES = ("backbones", "benchmarks", "composing", "concepts", "core", "scoring", "subjects", "trainers")


def measured(name: str, work: Callable[..., Any], cases: Sequence[tuple[Any, ...]]) -> list[Any]:
    """``work(*case)`` of every case, in their order. ``work`` is a function of a module; its arguments and
    what it gives are JSON values, and nothing else is handed on between cases."""
    places = [kept_at(name, work, case) for case in cases]
    missing = [n for n, place in enumerate(places) if not place.exists()]
    workers = min(len(missing), len(os.sched_getaffinity(0)))
    if workers:
        with (
            ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_alone) as pool,
            _progress() as bar,
        ):
            task = bar.add_task(
                f"{name}: {work.__name__}", total=len(cases), completed=len(cases) - len(missing)
            )
            waiting = {pool.submit(work, *cases[n]): n for n in missing}
            try:
                for done in as_completed(waiting):
                    places[waiting[done]].parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(places[waiting[done]], json.dumps(done.result()) + "\n")
                    bar.advance(task)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [json.loads(place.read_text(encoding="utf-8")) for place in places]


def kept_at(name: str, work: Callable[..., Any], case: tuple[Any, ...]) -> Path:
    """The file of a case below the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    told = json.dumps([work.__module__, work.__qualname__, case, code_hash()])
    home = Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "likeness" / "benchmarks" / name / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"


@cache
def code_hash() -> str:
    """Of everything below ``SOURCES`` that can change a number."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".safetensors", ".json") and "results" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _alone() -> None:
    torch.set_num_threads(1)


def _progress() -> Progress:
    return Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip

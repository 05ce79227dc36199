"""Several processes that train one part together, each on its share of every batch.

On a CPU two processes of one thread each are faster than one of two threads, which waits for the slower
thread at every operation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from ....core.errors import LikenessError
from .loop import Part


def shared(part: Part, num_workers: int) -> Part:
    """The part as one of so many workers trains it: with its share of the batch."""
    if part.schedule.batch % num_workers:
        raise LikenessError(
            f"{num_workers} workers cannot share Toybox's '{part.name}'",
            expected=f"a divisor of its batch of {part.schedule.batch}",
        )
    part.schedule = replace(part.schedule, batch=part.schedule.batch // num_workers)
    return part


@contextmanager
def team(num_workers: int, work: Callable[[], None]) -> Iterator[None]:
    """This process as the first of ``num_workers``; the others run ``work()`` and end with the context."""
    if num_workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        others = [
            multiprocessing.get_context("spawn").Process(
                target=_work, args=(rank, num_workers, meeting, work), daemon=True
            )
            for rank in range(1, num_workers)
        ]
        for other in others:
            other.start()
        try:
            _join(0, num_workers, meeting)
            yield
        finally:
            for other in others:  # all is saved by the first: nothing is lost with them
                other.kill()
                other.join()
            dist.destroy_process_group()


def _work(rank: int, num_workers: int, meeting: str, work: Callable[[], None]) -> None:
    _join(rank, num_workers, meeting)
    work()


def _join(rank: int, num_workers: int, meeting: str) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_workers)

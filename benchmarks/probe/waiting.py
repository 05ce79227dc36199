"""A job that does as little as it is told."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

BLOCK = bytes(2**20)  # one round of computing: its hash


def wait(number: int, seconds: float, rounds: int, output: Path) -> None:
    """Wait as for a disk or a network, then compute on one core.

    Leaves ``ran/NUMBER-TIME-PROCESS`` in ``output``; a job of no work leaves nothing.
    """
    time.sleep(seconds)
    for _ in range(rounds):
        hashlib.sha256(BLOCK).digest()
    if seconds or rounds:
        path = output / "ran" / f"{number}-{time.time_ns()}-{os.getpid()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

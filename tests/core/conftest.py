"""Killing for real: a forked child that dies by SIGKILL at a named save point."""

import os
import signal
from collections.abc import Callable

import pytest
from likeness.core import paths


def _run_child(action: Callable[[], None], point: str, nth: int) -> int:
    """Fork; run ``action``, dying at the nth time that ``point`` is reached. The child's wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:  # the child, which must never return into pytest
        hits = 0

        def die(name: str) -> None:
            nonlocal hits
            hits += name == point
            if name == point and hits == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        paths.save_point = die
        action()
    finally:
        os._exit(0)


@pytest.fixture
def die_at() -> Callable[..., None]:
    """``die_at(action, point, nth=1)``: proves that the child died there, and of nothing else."""

    def run(action: Callable[[], None], point: str, nth: int = 1) -> None:
        status = _run_child(action, point, nth)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"no death at {point}"

    return run

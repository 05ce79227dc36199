"""What a page is told of a training at work: a few numbers, and where to read the rest.

The run folder on disk is the truth, and nodes/routes.py gives it to the page. Here is only what the disk does
not hold: which node trains which run, and how fast.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..trainers.events import Event

log = logging.getLogger(__name__)

WINDOW_S = 60.0  # of the pace: long enough for a score on the way, short enough to follow the machine
WORKFLOW_FILE = "workflow.json"  # in the run folder: the graph that last worked on it


class Pace:
    """How long the rest will take, by the steps of the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.marks: deque[tuple[float, int]] = deque()

    def left_s(self, step: int, total: int) -> float | None:
        """Seconds to ``total``, counted with the step just made; None before the second one."""
        now_s = self.clock()
        self.marks.append((now_s, step))
        while len(self.marks) > 2 and now_s - self.marks[0][0] > WINDOW_S:
            self.marks.popleft()
        first_s, first = self.marks[0]
        return (total - step) * (now_s - first_s) / (step - first) if step > first else None


class Live:
    """The runs of the nodes of one ComfyUI. One node works at a time; what it last said is kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.node = ""
        self.run = ""
        self.pace = Pace(clock)
        self.last: dict[str, Any] = {}

    def message(self, node: str, event: Event) -> dict[str, Any] | None:
        """What the page is told, about a hundred bytes; None while ``node`` has no run."""
        from ..trainers.events import Done, Phase, Started, Step

        if isinstance(event, Started):
            self.node, self.run, self.pace = node, event.run_folder.name, Pace(self.clock)
            self.last = {"node": node, "run": self.run, "phase": "starting"}
            return self.last
        if node != self.node or not self.run:
            return None
        news: dict[str, Any] = {"phase": "training"}
        if isinstance(event, Phase):
            news = {"phase": event.name}
        elif isinstance(event, Step):
            left_s = self.pace.left_s(event.step, event.total)
            news |= {"step": event.step, "total": event.total, "left_s": left_s}
        elif isinstance(event, Done):
            news = {"phase": "done", "left_s": 0}
        self.last = self.last | news
        return self.last

    def of(self, run: str) -> dict[str, Any]:
        """What was last said of a run at work."""
        return self.last if run == self.run else {}


def keep_workflow(folder: Path, queue: Any) -> None:
    """Keep the graph that works on a run beside it, so that the page can open it again.

    ``queue`` is ComfyUI's prompt queue, whose running item carries the page's graph. Never in the way of a
    training: prompts sent by programs have no graph.
    """
    from ..core.errors import LikenessError
    from ..core.paths import write_atomic

    try:
        running, _ = queue.get_current_queue()
        workflow = running[0][3]["extra_pnginfo"]["workflow"]
        write_atomic(folder / WORKFLOW_FILE, json.dumps(workflow) + "\n")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, LikenessError) as error:
        log.debug("No workflow to keep in %s: %s", folder.name, error)

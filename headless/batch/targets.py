"""Where jobs run, behind one small interface: a target opens slots, and a slot runs one job at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..graph import Schemas
from ..runner import Classes

Prompt = dict[str, Any]  # a graph in the API format
Tell = Callable[[str], None]  # what a running job does now, in words


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job on its way to a slot. ``ticket`` names this attempt; a slot that knows it runs it only once."""

    number: int
    key: str
    ticket: str
    prompt: Prompt


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished job left: files by kind, and the means of every scorecard."""

    made: list[dict[str, Any]] = field(default_factory=list)  # {"kind": "LoRA", "path": "..."}
    scores: list[dict[str, Any]] = field(default_factory=list)  # {"label": "...", "dino": 0.6, ...}


class JobFailed(Exception):
    """The job ended with an error; ``again`` when another try may end better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class SlotLost(Exception):
    """The slot went away with its job: a dead process, a server that answers no more."""


class Slot(Protocol):
    name: str

    def run(self, task: Task, tell: Tell) -> Result:
        """Blocks until the job ended. Raises JobFailed, SlotLost, or Interrupted after ``stop``."""

    def revive(self) -> bool:
        """After SlotLost: whether it runs jobs again."""

    def stop(self) -> None:
        """Ask the running job to end; called from another thread, perhaps with no job there."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The nodes that a target knows. ``classes`` are those that may be asked here: they see its files."""

    where: str  # "this runner", or a server's address
    schemas: Schemas
    classes: Classes = field(default_factory=dict)


class Target(Protocol):
    def catalogue(self) -> Catalogue: ...

    def open(self) -> Sequence[Slot]: ...

    def close(self) -> None: ...

"""What a person, or a program, sees of a run: a live progress display, or one JSON object per line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ..core.errors import LikenessError
from ..nodes.host import in_words
from ..trainers.events import AlignmentScore, Checkpoint, Done, Event, HeldOutScore, Phase, Step
from .graph import Node

Made = Mapping[str, Any]  # {"kind": "report", "path": "..."}: what a node left on disk


class Display(AbstractContextManager["Display"], Protocol):
    """Entered for the time of a run; ``failed`` and ``stopped`` come after it."""

    def node(self, node: Node, what: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def finished(self, made: Sequence[Made]) -> None: ...
    def failed(self, error: LikenessError) -> None: ...
    def stopped(self, code: int) -> None: ...
    def log_handler(self) -> logging.Handler: ...


class Screen:
    """For people: one line per node, the present phase or step on it, scores above."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(finished_text="[green]+"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
        )
        self.task, self.result = TaskID(0), ""  # of the node at work
        self.began_s = time.monotonic()

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def node(self, node: Node, what: str) -> None:
        if what == "start":
            title = escape(node.title or node.class_type)
            self.task, self.result = self.progress.add_task(title, total=None, now=""), ""
        else:
            total = self.progress.tasks[-1].total or 1
            self.progress.update(self.task, total=total, completed=total, now=self.result)

    def event(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.progress.update(self.task, completed=event.done, total=max(event.total, 1), now=event.name)
        elif isinstance(event, Step):
            now = f"{event.step}/{event.total}  loss {event.loss:.4f}"
            self.progress.update(self.task, completed=event.step, total=event.total, now=now)
        elif isinstance(event, HeldOutScore | AlignmentScore):
            self.console.print(f"  [dim]{escape(in_words(event))}[/dim]")
        elif isinstance(event, Done):
            self.result = "found finished" if event.reused else f"best: step {event.best_step}"

    def finished(self, made: Sequence[Made]) -> None:
        self.progress.stop()
        self.console.print(f"\n[green]Done[/green] in {time.monotonic() - self.began_s:.0f} s")
        for item in made:
            line = f"  [bold]{escape(str(item['kind'])):<16}[/bold] {escape(_near(str(item['path'])))}"
            self.console.print(line, soft_wrap=True, highlight=False)

    def failed(self, error: LikenessError) -> None:
        self.console.print(f"\n[red bold]{escape(error.problem)}[/red bold]")
        if error.expected:
            self.console.print(f"Expected: {escape(error.expected)}")
        if error.fix:
            self.console.print(escape(error.fix))

    def stopped(self, code: int) -> None:
        self.console.print("\nStopped. The work was saved; the same command goes on from there.")

    def log_handler(self) -> logging.Handler:
        return RichHandler(console=self.console, show_path=False, show_time=False)


class JsonLines:
    """For programs: every event as one JSON object per line, with the node that it came from."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.now = ""

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def node(self, node: Node, what: str) -> None:
        self.now = node.id
        self._write(f"node_{what}", class_type=node.class_type, title=node.title)

    def event(self, event: Event) -> None:
        name = {"HeldOutScore": "held_out_score", "AlignmentScore": "alignment_score"}.get(
            type(event).__name__, type(event).__name__.lower()
        )
        self._write(name, **_plain(event))

    def finished(self, made: Sequence[Made]) -> None:
        self._write("finished", made=list(made))

    def failed(self, error: LikenessError) -> None:
        self._write("error", problem=error.problem, expected=error.expected, fix=error.fix)

    def stopped(self, code: int) -> None:
        self._write("stopped", exit_code=code)

    def log_handler(self) -> logging.Handler:
        return _LogLines(self)

    def _write(self, event: str, **values: Any) -> None:
        line = {"event": event, "node": self.now, **values}
        self.stream.write(json.dumps(line, default=str) + "\n")
        self.stream.flush()


class _LogLines(logging.Handler):
    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines._write("log", level=record.levelname.lower(), message=record.getMessage())


def _plain(event: Event) -> dict[str, Any]:
    if isinstance(event, Done):
        concept = {"kind": event.concept.kind, "path": event.concept.path, "sha256": event.concept.sha256}
        return {
            "concept": concept,
            "best_step": event.best_step,
            "run_folder": event.run_folder,
            "reused": event.reused,
        }
    if isinstance(event, Checkpoint):
        return {"step": event.step, "path": event.path}
    return asdict(event)


def _near(path: str) -> str:
    """Relative to where the command was typed, when it is below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path

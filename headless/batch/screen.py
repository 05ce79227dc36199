"""A batch as it runs: a live table for people, one JSON object per line for programs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from .dispatch import Told
from .manifest import DONE, FAILED, Record

PER_SECOND = 4
MOST_SLOTS = 20  # drawn; the others are counted
LABEL_CHARS = 44

Counts = Callable[[], dict[str, int]]


class Watcher(Protocol):
    def __enter__(self) -> Watcher: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def told(self, told: Told) -> None: ...


class LiveTable:
    """One line per slot, failures above as they come, a bar and the time left below."""

    def __init__(self, console: Console, counts: Counts, finished_before: int = 0) -> None:
        self.console, self.counts, self.before = console, counts, finished_before
        self.lock = threading.Lock()
        self.slots: dict[str, tuple[str, str, float]] = {}  # what, words, since
        self.retried = 0
        self.began_s = time.monotonic()
        self.live = Live(get_renderable=self.render, console=console, refresh_per_second=PER_SECOND)

    def __enter__(self) -> LiveTable:
        self.live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.live.stop()

    def told(self, told: Told) -> None:
        name = label(told.record) if told.record else ""
        with self.lock:
            before = self.slots.get(told.slot, ("", "", 0.0))
            now = time.monotonic()
            shown = {
                "start": (name, "starts", now),
                "now": (before[0], told.words, before[2]),
                "lost": ("", "[red]lost[/red]", now),
            }
            self.slots[told.slot] = shown.get(told.what, ("", "waits", now))
            self.retried += told.what == "again"
        if told.what in ("failed", "again", "lost"):
            colour = "red" if told.what == "failed" else "yellow"
            self.console.print(f"[{colour}]{told.what}[/{colour}] {escape(name)}: {escape(told.words)}")

    def render(self) -> RenderableType:
        table = Table("slot", "job", "now", "time", box=None, pad_edge=False)
        with self.lock:
            slots = list(self.slots.items())
        for slot, (name, words, since_s) in slots[:MOST_SLOTS]:
            spent = f"{time.monotonic() - since_s:.0f} s" if name else ""
            table.add_row(
                escape(slot), escape(name), words if words.startswith("[") else escape(words), spent
            )
        if len(slots) > MOST_SLOTS:
            table.add_row(f"and {len(slots) - MOST_SLOTS} more", "", "", "")
        return Group(table, self._total())

    def _total(self) -> RenderableType:
        counts = self.counts()
        ended, total = counts[DONE] + counts[FAILED], sum(counts.values())
        grid = Table.grid(padding=(0, 1))
        parts = [
            f"{ended}/{total}",
            f"{counts[FAILED]} failed",
            f"{self.retried} retried",
            self._left(counts),
        ]
        grid.add_row(
            ProgressBar(total=max(total, 1), completed=ended, width=24), ", ".join(filter(None, parts))
        )
        return grid

    def _left(self, counts: dict[str, int]) -> str:
        ended = counts[DONE] + counts[FAILED] - self.before
        if ended < 1:
            return ""
        left_s = (
            (time.monotonic() - self.began_s) / ended * (sum(counts.values()) - counts[DONE] - counts[FAILED])
        )
        return f"{left_s // 3600:.0f}:{left_s // 60 % 60:02.0f}:{left_s % 60:02.0f} left"


class Lines:
    """For programs."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.lock = threading.Lock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def told(self, told: Told) -> None:
        line: dict[str, Any] = {"event": f"job_{told.what}", "slot": told.slot}
        if told.record:
            line |= {"number": told.record.number, "key": told.record.key, "settings": told.record.settings}
        line |= {"words": told.words} if told.words else {}
        line |= {"seconds": round(told.seconds, 3)} if told.seconds else {}
        with self.lock:
            self.stream.write(json.dumps(line) + "\n")
            self.stream.flush()


def label(record: Record) -> str:
    """A job in few words: its method, subject and settings."""
    settings = [f"{name.rpartition('.')[2]}={value}" for name, value in record.settings.items()]
    own = [text for text in settings if not (record.subject and text.startswith("folder="))]
    words = " ".join([*filter(None, (record.method, record.subject)), *own]) or record.key[:12]
    return words if len(words) <= LABEL_CHARS else words[: LABEL_CHARS - 3] + "..."

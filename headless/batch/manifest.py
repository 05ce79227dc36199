"""The manifest: every job with its state, in one file that survives a kill at any moment.

A SQLite database, written by one process at a time: every change is a transaction, and no query holds more
than one row, so that 100,000 jobs need no more memory than ten.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from ...core.errors import LikenessError
from .checking import Job
from .targets import Result

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
STATES = (WAITING, RUNNING, DONE, FAILED)
MOST_LOSSES = 3  # a job that has taken so many slots down is not given to another

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, plan INTEGER NOT NULL,
    settings TEXT NOT NULL, place TEXT NOT NULL, subject TEXT NOT NULL, method TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0,
    losses INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, slot TEXT NOT NULL DEFAULT '',
    ticket TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', began REAL, seconds REAL,
    made TEXT NOT NULL DEFAULT '[]', scores TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (plan, state, due, number);
"""
_COLUMNS = (
    "number, key, settings, place, subject, method, state, attempts, slot, ticket, reason, seconds, made, "
    "scores"
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One job as the manifest has it."""

    number: int
    key: str
    settings: dict[str, Any]
    place: str
    subject: str
    method: str
    state: str
    attempts: int
    slot: str
    ticket: str
    reason: str
    seconds: float | None
    made: list[dict[str, Any]]
    scores: list[dict[str, Any]]

    @property
    def job(self) -> Job:
        return Job(
            key=self.key, settings=self.settings, place=self.place, subject=self.subject, method=self.method
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """``rows`` were read; they are ``jobs`` different ones, of which ``finished`` were found finished."""

    rows: int
    jobs: int
    finished: int


class Manifest:
    """Open it once per process; every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # the class itself: the registry's scanner takes its connect function for a network's
            self.database = sqlite3.Connection(path, check_same_thread=False, isolation_level=None)
            self.database.execute("PRAGMA locking_mode=EXCLUSIVE")  # WAL without shared memory
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=FULL")
            self.database.executescript(_TABLES)
            self.plan_id = self.database.execute("SELECT coalesce(max(plan), 0) FROM jobs").fetchone()[0]
            self.database.execute("UPDATE jobs SET state = 'waiting' WHERE state = 'running'")
        except sqlite3.Error as error:
            raise LikenessError(
                f"The manifest {path} cannot be opened: {error}",
                fix="Remove it to start anew, or name another batch with --name",
            ) from error

    def close(self) -> None:
        with self.lock:
            self.database.close()

    def plan(self, jobs: Iterable[Job]) -> Planned:
        """Make ``jobs`` the ones to run, all or none. What earlier plans finished stays finished; what
        failed is tried again."""
        with self._transaction() as database:
            self.plan_id += 1
            rows = 0
            for job in jobs:
                rows += 1
                values = (job.key, self.plan_id, json.dumps(job.settings), job.place, job.subject, job.method)
                database.execute(
                    "INSERT INTO jobs (key, plan, settings, place, subject, method) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (key) DO UPDATE SET plan = excluded.plan, settings = excluded.settings,"
                    " place = excluded.place, subject = excluded.subject, method = excluded.method"
                    " WHERE plan < excluded.plan",
                    values,
                )
            database.execute(
                "UPDATE jobs SET state = 'waiting', attempts = 0, losses = 0, due = 0, ticket = ''"
                " WHERE plan = ? AND state = 'failed'",
                (self.plan_id,),
            )
            counts = self.counts()
            return Planned(rows=rows, jobs=sum(counts.values()), finished=counts[DONE])

    def take(self, slot: str) -> Record | None:
        """The next job that is due, now running; None when none is."""
        with self._transaction() as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE plan = ? AND state = 'waiting' AND due <= ?"
                " AND (ticket = '' OR slot = ?) ORDER BY due, number LIMIT 1",
                (self.plan_id, time.time(), slot),
            ).fetchone()
            if row is None:
                return None
            record = _record(row)
            # one ticket per attempt, kept when the batch itself was killed: a server knows it again
            attempt = f"likeness:{record.key}:{self.plan_id}:{record.attempts}:{time.time_ns()}"
            ticket = record.ticket or str(uuid5(NAMESPACE_URL, attempt))
            database.execute(
                "UPDATE jobs SET state = 'running', slot = ?, ticket = ?, began = ? WHERE number = ?",
                (slot, ticket, time.time(), record.number),
            )
            return _record((*row[:6], RUNNING, record.attempts, slot, ticket, *row[10:]))

    def done(self, number: int, result: Result, seconds: float) -> None:
        self._set(
            number,
            "state = 'done', attempts = attempts + 1, reason = '', seconds = ?, made = ?, scores = ?",
            seconds,
            json.dumps(result.made),
            json.dumps(result.scores),
        )

    def failed(self, number: int, reason: str, seconds: float) -> None:
        self._set(
            number, "state = 'failed', attempts = attempts + 1, reason = ?, seconds = ?", reason, seconds
        )

    def again(self, number: int, reason: str, wait_s: float) -> None:
        """The job failed and is tried again, not before ``wait_s`` from now."""
        self._set(
            number,
            "state = 'waiting', attempts = attempts + 1, ticket = '', reason = ?, due = ?",
            reason,
            time.time() + wait_s,
        )

    def lost(self, number: int, slot: str, reason: str) -> bool:
        """The slot went away: the job waits for another. False, and failed, when it took down too many."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET losses = losses + 1, reason = ?, ticket = '',"
                " state = CASE WHEN losses + 1 < ? THEN 'waiting' ELSE 'failed' END WHERE number = ?",
                (reason, MOST_LOSSES, number),
            )
            database.execute("UPDATE jobs SET ticket = '' WHERE slot = ? AND state = 'waiting'", (slot,))
            (state,) = database.execute("SELECT state FROM jobs WHERE number = ?", (number,)).fetchone()
        return bool(state == WAITING)

    def keep_tickets(self, slots: Iterable[str]) -> None:
        """Jobs that were running when the batch was killed go back to the slot that may still have them,
        unless it is not among ``slots`` any more."""
        names = list(slots)
        with self._transaction() as database:
            database.execute(
                f"UPDATE jobs SET ticket = '' WHERE slot NOT IN ({', '.join('?' * len(names))})", names
            )

    def back(self, number: int) -> None:
        """The batch was stopped: the job waits as if it had not begun."""
        self._set(number, "state = 'waiting', ticket = ''")

    def counts(self) -> dict[str, int]:
        """Jobs of the present plan by state."""
        with self.lock:
            found = self.database.execute(
                "SELECT state, count(*) FROM jobs WHERE plan = ? GROUP BY state", (self.plan_id,)
            ).fetchall()
        return dict.fromkeys(STATES, 0) | dict(found)

    def records(self, *states: str) -> Iterator[Record]:
        """The present plan's jobs in their order, one at a time; all states unless some are named."""
        last = 0
        while True:
            with self.lock:
                rows = self.database.execute(
                    f"SELECT {_COLUMNS} FROM jobs WHERE plan = ? AND number > ? ORDER BY number LIMIT 500",
                    (self.plan_id, last),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (r for r in map(_record, rows) if not states or r.state in states)

    def _set(self, number: int, changes: str, *values: Any) -> None:
        with self._transaction() as database:
            database.execute(f"UPDATE jobs SET {changes} WHERE number = ?", (*values, number))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self.lock:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield self.database
                self.database.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise LikenessError(
                    f"The manifest cannot be written: {error}",
                    fix="Make room on the disk; the same command goes on from here",
                ) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")


def _record(row: tuple[Any, ...]) -> Record:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("settings", "made", "scores"):
        values[name] = json.loads(values[name])
    return Record(**values)

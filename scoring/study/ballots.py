"""Ballots in SQLite: each in a transaction of its own, on disk before the rater hears that it is saved.

A rater has one ballot per question; the primary key says so. Sending it again changes nothing, and
another answer is taken only from a page that names the revision that it replaces: a double click, a reload,
an old tab or a lost reply can neither double an answer nor overwrite one. Changes of mind keep a trace.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import LikenessError

log = logging.getLogger(__name__)

TOKEN_BYTES = 24  # 192 random bits: beyond guessing
WAIT_S = 30.0  # for another process, such as an export, to let go of the file

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS raters (
    rater INTEGER PRIMARY KEY, seat INTEGER NOT NULL, token_sha256 TEXT NOT NULL UNIQUE,
    withdrawn INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS one_rater_a_seat ON raters (seat) WHERE NOT withdrawn;
CREATE TABLE IF NOT EXISTS ballots (
    rater INTEGER NOT NULL REFERENCES raters, question TEXT NOT NULL, answer TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1, cast_at REAL NOT NULL, PRIMARY KEY (rater, question)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    rater INTEGER NOT NULL, question TEXT NOT NULL, revision INTEGER NOT NULL, answer TEXT NOT NULL,
    cast_at REAL NOT NULL, replaced_at REAL NOT NULL, PRIMARY KEY (rater, question, revision)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Rater:
    """Who answers. ``seat`` decides which questions, in which order; a replacement takes over a seat."""

    rater: int
    seat: int
    withdrawn: bool = False


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """``revision`` is 1, and one more for each change of mind."""

    rater: int
    question: str
    answer: str
    revision: int
    cast_at: float  # seconds since 1970


@dataclass(frozen=True)
class Outcome:
    """What became of a vote, and the ballot that now stands."""

    what: Literal["saved", "kept", "changed", "conflict"]
    ballot: Ballot


class Ballots:
    """A study's ballot box. Safe to use from many threads, and beside other processes.

    ``fingerprint`` is the study's: a box that holds another's answers is refused with a LikenessError.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = _connect(path)
            self._belong(fingerprint)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ballots:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def secret(self) -> bytes:
        """A random key of this box, for names that nobody can guess."""
        return bytes.fromhex(self._fact("secret"))

    # --- raters -----------------------------------------------------------------------------------
    def invite(self, seat: int) -> tuple[Rater, str]:
        """A new rater on a free seat, and the token that they vote with: shown once, kept only as a hash."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with self._write() as db:
            taken = db.execute("SELECT 1 FROM raters WHERE seat = ? AND NOT withdrawn", (seat,)).fetchone()
            if taken:
                raise LikenessError(f"Seat {seat} is taken")
            row = db.execute("INSERT INTO raters (seat, token_sha256) VALUES (?, ?)", (seat, _hash(token)))
            return Rater(rater=row.lastrowid or 0, seat=seat), token

    def replace(self, rater: int) -> tuple[Rater, str]:
        """Withdraw a rater, whose ballots stay and count no more, and invite another to the seat."""
        with self._write() as db:
            old = self._known(rater)
            db.execute("UPDATE raters SET withdrawn = 1 WHERE rater = ?", (rater,))
            return self.invite(old.seat)

    def renew(self, rater: int) -> str:
        """A new token for a rater who lost the old one, which ends to work; the ballots stay."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        with self._write() as db:
            self._known(rater)
            db.execute("UPDATE raters SET token_sha256 = ? WHERE rater = ?", (_hash(token), rater))
        return token

    def raters(self) -> list[Rater]:
        rows = self._read("SELECT rater, seat, withdrawn FROM raters ORDER BY rater")
        return [Rater(rater=r, seat=s, withdrawn=bool(w)) for r, s, w in rows]

    def who(self, token: str) -> Rater | None:
        """Whose token this is. The look-up is by hash, so its time tells nothing of the token."""
        hashed = _hash(token)
        rows = self._read("SELECT rater, seat, withdrawn FROM raters WHERE token_sha256 = ?", hashed)
        return Rater(rater=rows[0][0], seat=rows[0][1], withdrawn=bool(rows[0][2])) if rows else None

    def _known(self, rater: int) -> Rater:
        found = next((r for r in self.raters() if r.rater == rater and not r.withdrawn), None)
        if found is None:
            there = ", ".join(str(r.rater) for r in self.raters() if not r.withdrawn)
            raise LikenessError(f"There is no rater {rater}", expected=f"one of {there or 'none yet'}")
        return found

    # --- ballots ----------------------------------------------------------------------------------
    def cast(self, rater: int, question: str, answer: str, *, replaces: int = 0) -> Outcome:
        """Put in a ballot, or with ``replaces`` change the one of that revision. On disk when this returns.

        The same answer again is "kept". Another answer that does not name the standing revision is a
        "conflict": nothing is written, and the outcome holds the ballot that stands.
        """
        with self._write() as db:
            now = time.time()
            standing = self._ballot(rater, question)
            if standing is None:
                db.execute("INSERT INTO ballots VALUES (?, ?, ?, 1, ?)", (rater, question, answer, now))
                what: Literal["saved", "changed"] = "saved"
            elif standing.answer == answer:
                return Outcome("kept", standing)
            elif standing.revision != replaces:
                return Outcome("conflict", standing)
            else:
                self._change(db, standing, answer, now)
                what = "changed"
            made = self._ballot(rater, question)
        assert made is not None
        return Outcome(what, made)

    def _change(self, db: sqlite3.Connection, old: Ballot, answer: str, now: float) -> None:
        kept = (old.rater, old.question, old.revision, old.answer, old.cast_at, now)
        db.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)", kept)
        db.execute(
            "UPDATE ballots SET answer = ?, revision = revision + 1, cast_at = ? "
            "WHERE rater = ? AND question = ?",
            (answer, now, old.rater, old.question),
        )

    def of(self, rater: int) -> dict[str, Ballot]:
        """A rater's ballots by question."""
        return {ballot.question: ballot for ballot in self._ballots("WHERE rater = ?", rater)}

    def all(self) -> list[Ballot]:
        """Every standing ballot, by rater and question: those of withdrawn raters too."""
        return self._ballots("ORDER BY rater, question")

    def num_changes(self) -> int:
        return int(self._read("SELECT count(*) FROM changes")[0][0])

    def _ballot(self, rater: int, question: str) -> Ballot | None:
        found = self._ballots("WHERE rater = ? AND question = ?", rater, question)
        return found[0] if found else None

    def _ballots(self, which: str, *values: object) -> list[Ballot]:
        rows = self._read(f"SELECT rater, question, answer, revision, cast_at FROM ballots {which}", *values)
        names = ("rater", "question", "answer", "revision", "cast_at")
        return [Ballot(**dict(zip(names, row, strict=True))) for row in rows]

    # --- the file ---------------------------------------------------------------------------------
    def _belong(self, fingerprint: str) -> None:
        """A new box takes the study's fingerprint; an empty one is given over; a used one must match."""
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO study VALUES ('fingerprint', ?)", (fingerprint,))
            db.execute("INSERT OR IGNORE INTO study VALUES ('secret', ?)", (secrets.token_hex(32),))
            if self._fact("fingerprint") == fingerprint:
                return
            if db.execute("SELECT 1 FROM ballots LIMIT 1").fetchone():
                raise LikenessError(
                    f"The study was changed after voting began: {self.path} has ballots of another version",
                    expected="the same methods, pictures, photos, prompts, seed and numbers of raters",
                    fix="Restore the study's file and pictures, or begin a new study under another name",
                )
            db.execute("UPDATE study SET value = ? WHERE key = 'fingerprint'", (fingerprint,))

    def _fact(self, key: str) -> str:
        return str(self._read("SELECT value FROM study WHERE key = ?", key)[0][0])

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, closing(self._db.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it on disk at the end, or nothing. A call inside another joins it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _connect(path: Path) -> sqlite3.Connection:
    # the class itself: the registry's scanner takes its connect function for a network's
    db = sqlite3.Connection(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":  # a network disk: slower, and as safe
            log.warning("%s: this disk allows no write-ahead log; %s is used", path, mode)
        db.execute("PRAGMA synchronous=FULL")  # a ballot outlives a power cut
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _unusable(path: Path, error: sqlite3.Error) -> LikenessError:
    return LikenessError(
        f"{path} cannot be used as a ballot box: {error}",
        expected="a writable folder, and a file that Likeness made",
        fix="Restore the file from a copy; if it was never one, move it away",
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()

"""A method on a benchmark: what it is asked, a row of scores for every picture, and their means.

Pictures are scored as they come and forgotten: rows go to a file, in an order that is known beforehand, so
that a stopped evaluation goes on behind its last whole row and memory does not grow with the pictures.
"""
# Shapes: B pictures of a batch, H W pixels.

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..core.errors import LikenessError
from ..core.paths import write_atomic, write_error
from ..core.tables import finite, plain
from ..subjects.subject import Subject
from .metrics import bootstrap_interval


class Task(NamedTuple):
    """One picture to draw: a caption with the ``draw``-th seed."""

    subject: str
    photo: int | None  # the number of the test photo that the caption is of; None: it is a prompt of its own
    number: int  # of the caption: of that photo's, or of the subject's
    draw: int
    caption: str  # with {}


@dataclass(frozen=True)
class Row:
    """One picture's scores, by column."""

    subject: str
    photo: int | None
    number: int
    draw: int
    scores: Mapping[str, float]


class Judge(Protocol):
    """Who looks at the pictures of one subject."""

    def scores(self, chunk: Sequence[Task], images_B3HW: Tensor) -> Mapping[str, Sequence[float]]:
        """Each column's scores of the pictures of ``chunk``, in [0, 1]."""
        ...


class Exam(Protocol):
    """A benchmark with its judges: who is to be learned, what is drawn, and how it is scored."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, str]:
        """Of the table, and as they are headed."""
        ...

    @property
    def subjects(self) -> Sequence[Subject]: ...

    def tasks(self, number: int) -> Iterator[Task]:
        """Every picture of a subject, in a fixed order."""
        ...

    def judge(self, number: int) -> Judge: ...

    def record(self) -> Mapping[str, Any]:
        """What decides the scores beside the method: part of the evaluation's key and of its result."""
        ...


# --- the file of rows -----------------------------------------------------------------------------------


class RowFile:
    """Rows as lines of JSON, appended and synced batch by batch. A torn last line is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = self._mend()

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows whole. LikenessError when the disk refuses; what was there before stays."""
        lines = "".join(json.dumps(finite(vars(row)), allow_nan=False) + "\n" for row in rows)
        try:
            with self.path.open("ab") as file:
                file.write(lines.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error
        self.count += len(rows)

    def keep(self, count: int) -> None:
        """Only the first ``count`` rows."""
        if count < self.count:
            self.count = self._mend(count)

    def __iter__(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield _row(line, self.path)

    def _mend(self, most: int | None = None) -> int:
        """The number of whole lines, ``most`` at most; what comes behind them is removed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            with self.path.open("r+b") as file:
                end = count = 0
                for line in file:
                    if not line.endswith(b"\n") or count == most:
                        break
                    end, count = end + len(line), count + 1
                file.truncate(end)
        except OSError as error:
            raise write_error(self.path, error) from error
        return count


def _row(line: str, path: Path) -> Row:
    try:
        record: dict[str, Any] = json.loads(line)
        scores = {name: math.nan if v is None else float(v) for name, v in record.pop("scores").items()}
        return Row(**record, scores=scores)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LikenessError(
            f"{path} has a line that is no score: {line[:80]!r}", fix="Remove the file"
        ) from error


# --- the table ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one method scored on a benchmark: means by subject and over all pictures, and the protocol."""

    label: str
    dataset: str
    folder: Path
    total: Mapping[str, float]  # by column: the plain mean over all pictures
    intervals: Mapping[str, tuple[float, float]]  # 95 %, bootstrap over subjects
    subjects: Mapping[str, Mapping[str, float]]  # means, and "pictures"
    names: Mapping[str, str]  # of the columns, as they are headed
    protocol: Mapping[str, Any]

    def summary(self) -> str:
        """The means in one line."""
        scores = ", ".join(f"{heading} {plain(self.total[c])}" for c, heading in self.names.items())
        return f"{self.label}: {scores} ({self.pictures} pictures of {len(self.subjects)} subjects)"

    @property
    def pictures(self) -> int:
        return sum(int(means["pictures"]) for means in self.subjects.values())

    def to_csv(self) -> str:
        """A line per subject and one for all."""
        lines = [",".join(["subject", "pictures", *self.names.values()])]
        everything = {**self.subjects, "all pictures": {**self.total, "pictures": self.pictures}}
        for name, means in everything.items():
            values = [plain(means[c], 6) for c in self.names]
            lines.append(",".join([name.replace(",", " "), str(int(means["pictures"])), *values]))
        return "\n".join(lines) + "\n"

    def save(self) -> tuple[Path, Path]:
        """``table.csv`` and ``summary.json`` beside the rows."""
        record = {
            "label": self.label,
            "dataset": self.dataset,
            "total": self.total,
            "intervals": self.intervals,
            "subjects": self.subjects,
            "protocol": self.protocol,
        }
        text = json.dumps(finite(record), indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomic(self.folder / "table.csv", self.to_csv())
        write_atomic(self.folder / "summary.json", text)
        return self.folder / "table.csv", self.folder / "summary.json"


def tabulate(
    rows: Iterable[Row],
    *,
    label: str,
    dataset: str,
    columns: Mapping[str, str],
    folder: Path,
    protocol: Mapping[str, Any],
) -> Evaluation:
    """Running means over a stream of rows: memory grows with subjects, not with pictures.

    A score that is not finite is left out of its mean; a column without any is NaN.
    """
    sums: dict[str, dict[str, list[float]]] = {}
    pictures: dict[str, int] = {}
    for row in rows:
        own = sums.setdefault(row.subject, {column: [0.0, 0.0] for column in columns})
        pictures[row.subject] = pictures.get(row.subject, 0) + 1
        for column in columns:
            value = row.scores.get(column, math.nan)
            if math.isfinite(value):
                own[column][0] += value
                own[column][1] += 1
    subjects = {
        name: {c: _ratio(*own[c]) for c in columns} | {"pictures": float(pictures[name])}
        for name, own in sums.items()
    }
    total = {c: _ratio(*(sum(own[c][i] for own in sums.values()) for i in (0, 1))) for c in columns}
    means = {c: [s[c] for s in subjects.values() if math.isfinite(s[c])] for c in columns}
    return Evaluation(
        label=label,
        dataset=dataset,
        folder=folder,
        total=total,
        intervals={c: bootstrap_interval(means[c]) for c in columns},
        subjects=subjects,
        names=dict(columns),
        protocol=protocol,
    )


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan

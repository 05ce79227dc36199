"""The held-out protocol of PDST: every picture against the one test photo whose caption it was drawn for.

    CLIP-T  picture and caption (with the class noun in the subject's place)
    CLIP-I  picture and that photo, in CLIP's space
    DINO    picture and that photo, in DINO's space

and the plain mean over all pictures ("Towards More Accurate Personalized Image Generation", appendix 11). The
similarity to the *training* photos is recorded beside it: the gap is what scoring on them hides.

Pictures are scored as they come and forgotten: rows go to a file, in an order that is known beforehand, so
that a stopped evaluation goes on behind its last whole row and memory does not grow.
"""
# Shapes: B pictures of a batch, M photos, D feature width, H W pixels.

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import LikenessError
from ..core.paths import write_atomic, write_error
from ..subjects.dataset import SLOT, Dataset, Entry
from . import metrics
from .encoders import Encoders, to_tensor
from .metrics import bootstrap_interval, dino, paired
from .thumbnails import picture_of

COLUMNS = ("clip_t", "clip_i", "dino", "train_dino")


class Task(NamedTuple):
    """One picture to draw: caption ``number`` of test photo ``photo``, with the ``draw``-th seed."""

    subject: str
    photo: int
    number: int
    draw: int
    caption: str  # with {}


@dataclass(frozen=True)
class Row:
    """One picture's scores. ``train_dino`` is the mean over the training photos."""

    subject: str
    photo: int
    number: int
    draw: int
    clip_t: float
    clip_i: float
    dino: float
    train_dino: float


def tasks(entry: Entry, *, seeds_per_caption: int, captions_per_photo: int = 0) -> Iterator[Task]:
    """Every picture of a subject in a fixed order; ``captions_per_photo`` 0 takes all of them."""
    for photo, texts in enumerate(entry.captions):
        for number, text in enumerate(texts[: captions_per_photo or None]):
            for draw in range(seeds_per_caption):
                yield Task(entry.name, photo, number, draw, text)


def require_captions(dataset: Dataset) -> None:
    """Raise LikenessError naming the first test photo that has no caption."""
    for entry in dataset.entries:
        for photo, texts in zip(entry.subject.held_out, entry.captions, strict=True):
            if not texts:
                raise LikenessError(
                    f"The test photo {photo.path} has no caption",
                    expected=f"captions.json in {entry.name}'s folder",
                    fix="Write some, or let Caption Dataset make them",
                )


class Judge:
    """The photos of one subject, encoded once."""

    def __init__(self, entry: Entry, encoders: Encoders) -> None:
        self.entry, self.encoders = entry, encoders
        test = [to_tensor(picture_of(photo)) for photo in entry.subject.held_out]
        self._clip_MD, self._dino_MD = encoders.clip.encode(test), encoders.dino.encode(test)
        trained = [to_tensor(picture_of(photo)) for photo in entry.subject.photos]
        self._trained_MD = encoders.dino.encode(trained)

    def rows(self, chunk: Sequence[Task], images_B3HW: Tensor) -> list[Row]:
        """Scores of the pictures of ``chunk``, in [0, 1]."""
        texts = [task.caption.replace(SLOT, self.entry.subject.class_noun) for task in chunk]
        photos = torch.tensor([task.photo for task in chunk])
        clip_BD, dino_BD = self.encoders.clip.encode(images_B3HW), self.encoders.dino.encode(images_B3HW)
        scores = torch.stack(
            [
                metrics.clip_t(clip_BD, self.encoders.clip.encode_text(texts)),
                paired(clip_BD, self._clip_MD[photos]),
                paired(dino_BD, self._dino_MD[photos]),
                dino(dino_BD, self._trained_MD),
            ],
            dim=1,
        )
        return [Row(*task[:4], *values) for task, values in zip(chunk, scores.tolist(), strict=True)]


# --- the file of rows -----------------------------------------------------------------------------------


class RowFile:
    """Rows as lines of JSON, appended and synced batch by batch. A torn last line is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = self._mend()

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows whole. LikenessError when the disk refuses; what was there before stays."""
        lines = "".join(json.dumps(_record(row), allow_nan=False) + "\n" for row in rows)
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


def _record(row: Row) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _row(line: str, path: Path) -> Row:
    try:
        record: dict[str, Any] = json.loads(line)
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in record.items()}
        return Row(**values)
    except (ValueError, TypeError) as error:
        raise LikenessError(
            f"{path} has a line that is no score: {line[:80]!r}", fix="Remove the file"
        ) from error


# --- the table ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one method scored on a dataset: means by subject and over all pictures, and the protocol."""

    label: str
    dataset: str
    folder: Path
    total: Mapping[str, float]  # by COLUMNS: the plain mean over all pictures
    intervals: Mapping[str, tuple[float, float]]  # 95 %, bootstrap over subjects
    subjects: Mapping[str, Mapping[str, float]]  # means, and "pictures"
    names: Mapping[str, str]  # of the columns, as they are headed
    protocol: Mapping[str, Any]

    def summary(self) -> str:
        """The means in one line."""
        scores = ", ".join(f"{self.names[c]} {_plain(self.total[c])}" for c in COLUMNS)
        pictures = sum(int(means["pictures"]) for means in self.subjects.values())
        return f"{self.label}: {scores} ({pictures} pictures of {len(self.subjects)} subjects)"

    def to_csv(self) -> str:
        """A line per subject and one for all."""
        lines = [",".join(["subject", "pictures", *(self.names[c] for c in COLUMNS)])]
        for name, means in self.subjects.items():
            values = [_plain(means[c], 6) for c in COLUMNS]
            lines.append(",".join([name.replace(",", " "), str(int(means["pictures"])), *values]))
        pictures = sum(int(means["pictures"]) for means in self.subjects.values())
        lines.append(",".join(["all pictures", str(pictures), *(_plain(self.total[c], 6) for c in COLUMNS)]))
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
        text = json.dumps(_finite(record), indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomic(self.folder / "table.csv", self.to_csv())
        write_atomic(self.folder / "summary.json", text)
        return self.folder / "table.csv", self.folder / "summary.json"


def tabulate(
    rows: Iterator[Row],
    *,
    label: str,
    dataset: Dataset,
    folder: Path,
    encoders: Encoders,
    protocol: Mapping[str, Any],
) -> Evaluation:
    """Running means over a stream of rows: memory grows with subjects, not with pictures.

    A score that is not finite is left out of its mean; a column without any is NaN.
    """
    sums: dict[str, dict[str, list[float]]] = {}
    pictures: dict[str, int] = {}
    for row in rows:
        own = sums.setdefault(row.subject, {column: [0.0, 0.0] for column in COLUMNS})
        pictures[row.subject] = pictures.get(row.subject, 0) + 1
        for column in COLUMNS:
            value = getattr(row, column)
            if math.isfinite(value):
                own[column][0] += value
                own[column][1] += 1
    subjects = {
        name: {c: _ratio(*own[c]) for c in COLUMNS} | {"pictures": float(pictures[name])}
        for name, own in sums.items()
    }
    total = {c: _ratio(*(sum(own[c][i] for own in sums.values()) for i in (0, 1))) for c in COLUMNS}
    means = {c: [s[c] for s in subjects.values() if math.isfinite(s[c])] for c in COLUMNS}
    return Evaluation(
        label=label,
        dataset=dataset.name,
        folder=folder,
        total=total,
        intervals={c: bootstrap_interval(means[c]) for c in COLUMNS},
        subjects=subjects,
        names=column_names(encoders),
        protocol=protocol,
    )


def column_names(encoders: Encoders) -> dict[str, str]:
    """As the columns are headed: Toybox's own encoders never go by the full-size models' names."""
    clip, identity = encoders.clip.label, encoders.dino.label
    return {
        "clip_t": f"{clip}-T",
        "clip_i": f"{clip}-I",
        "dino": identity,
        "train_dino": f"{identity} (training photos)",
    }


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


def _plain(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "n/a"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value

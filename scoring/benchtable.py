"""Tables of methods over a benchmark: every picture's scores as one line on disk, so that a stop costs one.

InstructBooth's tables 1 and 2 (arXiv:2312.03011): CLIP-T, ImageReward, PickScore and DINO, for any list of
methods. The papers' own numbers can stand beside, told apart by their heading.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import LikenessError
from .metrics import Mean, average

COLUMNS = ("CLIP-T", "ImageReward", "PickScore", "DINO")
# InstructBooth, table 1 (its own set) and table 2 (DreamBench): Stable Diffusion 1.5, ViT-S/16.
PAPERS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "instructbooth": {
        "Custom Diffusion": {"CLIP-T": 0.323, "ImageReward": 1.088, "PickScore": 0.224, "DINO": 0.535},
        "DreamBooth": {"CLIP-T": 0.310, "ImageReward": 0.441, "PickScore": 0.220, "DINO": 0.699},
        "NeTI": {"CLIP-T": 0.311, "ImageReward": 0.480, "PickScore": 0.218, "DINO": 0.643},
        "Textual Inversion": {"CLIP-T": 0.271, "ImageReward": -1.15, "PickScore": 0.206, "DINO": 0.576},
        "InstructBooth": {"CLIP-T": 0.323, "ImageReward": 1.196, "PickScore": 0.227, "DINO": 0.650},
    },
    "dreambench": {
        "Textual Inversion": {"CLIP-T": 0.257, "ImageReward": -1.337, "PickScore": 0.203, "DINO": 0.537},
        "DreamBooth": {"CLIP-T": 0.297, "ImageReward": 0.052, "PickScore": 0.214, "DINO": 0.648},
        "InstructBooth": {"CLIP-T": 0.306, "ImageReward": 0.651, "PickScore": 0.217, "DINO": 0.661},
    },
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One picture to draw and score. ``number`` counts the pictures of its prompt."""

    method: str
    subject: str
    prompt: str
    number: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return (self.method, self.subject, self.prompt, self.number)


class ScoreLog:
    """Scores on disk, one JSON line a picture. A line that a crash tore is left out, and done again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(row, dict) and {"method", "subject", "prompt", "number", "scores"} <= set(row):
                    yield row

    def done(self) -> set[tuple[str, str, str, int]]:
        return {(row["method"], row["subject"], row["prompt"], row["number"]) for row in self.read()}

    def append(self, task: Task, scores: Mapping[str, float]) -> None:
        """To the disk itself. A torn last line is closed first, so that it swallows nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size > 0 and self._last_byte() != b"\n"
        row = {"method": task.method, "subject": task.subject, "prompt": task.prompt, "number": task.number}
        finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n" * torn + json.dumps(row | {"scores": finite}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _last_byte(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)


def fill(
    log: ScoreLog,
    tasks: Iterable[Task],
    draw: Callable[[Sequence[Task]], Tensor],
    score: Callable[[Sequence[Task], Tensor], Mapping[str, Sequence[float]]],
    *,
    batch_size: int = 8,
) -> Iterator[tuple[int, Task]]:
    """Draw and score what the log does not have, a batch at a time; yields how many were done, and the last.

    ``draw`` gives (B, 3, H, W) in [0, 1]; ``score`` one list per column. Pictures are kept no longer than
    their batch, which holds one method and subject: a model is loaded once for each. Stop it anywhere.
    """
    known, done = log.done(), 0
    for batch in _batches((task for task in tasks if task.key not in known), batch_size):
        columns = score(batch, draw(batch))
        short = [name for name, values in columns.items() if len(values) != len(batch)]
        if short:
            raise LikenessError(
                f"{short[0]} gave {len(columns[short[0]])} scores for {len(batch)} pictures",
                expected="one for each picture",
            )
        for n, task in enumerate(batch):
            log.append(task, {name: float(values[n]) for name, values in columns.items()})
        done += len(batch)
        yield done, batch[-1]


def _batches(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    batch: list[Task] = []
    for task in tasks:
        other = batch and (batch[0].method, batch[0].subject) != (task.method, task.subject)
        if batch and (other or len(batch) == size):
            yield batch
            batch = []
        batch.append(task)
    if batch:
        yield batch


def table(log: ScoreLog, columns: Sequence[str] = COLUMNS) -> dict[str, dict[str, Mean]]:
    """Means by method and column with their intervals over subjects, methods in the order of the log."""
    rows = list(log.read())
    methods = dict.fromkeys(row["method"] for row in rows)
    return {
        method: {
            column: average(
                (row["subject"], row["prompt"], _number(row["scores"].get(column)))
                for row in rows
                if row["method"] == method
            )
            for column in columns
        }
        for method in methods
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def markdown(means: Mapping[str, Mapping[str, Mean]], *, paper: str = "") -> str:
    """The table; ``paper`` names one of ``PAPERS``, whose numbers follow under a heading of their own."""
    columns = list(next(iter(means.values()))) if means else list(COLUMNS)
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method, row in means.items():
        lines.append(f"| {method} | " + " | ".join(_cell(row[column]) for column in columns) + " |")
    for method, numbers in PAPERS.get(paper, {}).items():
        cells = (f"{numbers[column]:.3f}" if column in numbers else "" for column in columns)
        lines.append(f"| *{method}, as published (not measured here)* | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(mean: Mean) -> str:
    if mean.count == 0:
        return ""
    interval = f" [{mean.low:.3f}, {mean.high:.3f}]" if math.isfinite(mean.low) else ""
    return f"{mean.value:.3f}{interval}"

"""What a report needs to know of a run, read from its folder. Tolerant: what is missing is said, not raised.

The layout is trainers/run.py's: run.json, history.jsonl, scores.jsonl, samples/, concept/, done.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..core.paths import inside
from ..core.tensorfile import read_metadata

_SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")
_TURN = re.compile(r"overfitting since step (\d+)")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One line of scores.jsonl. Step 0 is the untouched model, asked for the class noun."""

    step: int
    train_dino: float
    held_out_dino: float
    clip_t: float


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The file that came out."""

    path: Path
    kind: str  # "lora", "embedding", "delta"
    trigger: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """One training run, as a report shows it."""

    label: str  # "DreamBooth, rank 4": told apart from the others by it
    folder: Path
    subject: str = ""
    family: str = ""  # of the base model; "toybox" judges by its own encoders
    total_steps: int = 0
    loss: tuple[tuple[int, float], ...] = ()
    scores: tuple[HeldOut, ...] = ()
    samples: Mapping[int, tuple[Path, ...]] = field(default_factory=dict)  # step -> one picture per prompt
    sample_prompts: tuple[str, ...] = ()
    best_step: int | None = None  # None: not finished
    rule: str = ""
    verdict: str = ""
    learned: Learned | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def identity_name(self) -> str:
        return "Toybox identity" if self.family == "toybox" else "DINO"

    @property
    def text_name(self) -> str:
        return "Toybox CLIP-T" if self.family == "toybox" else "CLIP-T"

    @property
    def base(self) -> HeldOut | None:
        return next((score for score in self.scores if score.step == 0), None)

    @property
    def best(self) -> HeldOut | None:
        """The score of the exported step; of the last one scored where the run is not finished."""
        trained = [score for score in self.scores if score.step > 0]
        return next((s for s in trained if s.step == self.best_step), trained[-1] if trained else None)

    @property
    def turning_step(self) -> int | None:
        """Where the monitor saw overfitting begin."""
        match = _TURN.search(self.verdict)
        return int(match[1]) if match else None


def read_run(
    folder: Path, *, label: str = "", sample_prompts: Sequence[str] = (), curve: bool = True
) -> ReportRun:
    """A run folder, finished or not. Damaged or missing parts become ``warnings``.

    ``sample_prompts`` are the prompts of the sample pictures, in their order. Without ``curve`` the losses,
    most of a long run, are not read. Raises LikenessError only when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LikenessError(f"There is no run folder {folder}", expected="a folder that a trainer wrote")
    warnings: list[str] = []
    record = _json(folder / "run.json", warnings)
    done = _json(folder / "done.json", []) if (folder / "done.json").exists() else {}
    if not done:
        warnings.append("This run is not finished: what follows is its state so far.")
    settings = _plain(record.get("settings"))
    steps = _lines(folder / "history.jsonl", ("step", "loss"), warnings) if curve else []
    guarded = "guard" in _plain(settings.get("monitor"))  # an alignment's looks are of another kind
    keys = ("step", "train_dino", "held_out_dino", "clip_t")
    scores = [] if guarded else _lines(folder / "scores.jsonl", keys, warnings)
    learned, told = _learned(folder, done, warnings)
    return ReportRun(
        label=label or str(settings.get("method", folder.name)).replace("_", " "),
        folder=folder,
        subject=str(settings.get("subject", "")),
        family=str(told.get("family", "")),
        total_steps=_whole(_plain(settings.get("config")).get("steps"))
        or _whole(steps[-1][0] if steps else 0),
        loss=tuple((_whole(step), loss) for step, loss in steps),
        scores=tuple(
            HeldOut(step=_whole(s), train_dino=t, held_out_dino=h, clip_t=c) for s, t, h, c in scores
        ),
        samples=_samples(folder / "samples"),
        sample_prompts=tuple(sample_prompts),
        best_step=_whole(done["best_step"]) if "best_step" in done else None,
        rule=str(done.get("rule", "")),
        verdict=str(done.get("verdict", "")),
        learned=learned,
        settings=dict(_flat(settings)),
        provenance={**dict(_flat(_plain(record.get("provenance")))), "run key": str(record.get("key", "?"))},
        warnings=tuple(warnings),
    )


def _json(path: Path, warnings: list[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
        warnings.append(f"{path.name} does not hold what a run writes")
    except (OSError, ValueError, RecursionError) as error:
        warnings.append(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or 'it is damaged'}")
    return {}


def _lines(path: Path, keys: Sequence[str], warnings: list[str]) -> list[tuple[float, ...]]:
    """The numbers under ``keys`` of every whole line; lines that lack one are counted and left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError):
        warnings.append(f"{path.name} cannot be read")
        return []
    rows = [_numbers(line, keys) for line in lines if line.strip()]
    kept = [row for row in rows if row is not None]
    if len(kept) < len(rows):
        warnings.append(f"{path.name}: {len(rows) - len(kept)} damaged lines were left out")
    return sorted(kept, key=lambda row: row[0])


def _numbers(line: str, keys: Sequence[str]) -> tuple[float, ...] | None:
    try:
        record = json.loads(line)
        return tuple(math.nan if record[key] is None else float(record[key]) for key in keys)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _learned(
    folder: Path, done: Mapping[str, Any], warnings: list[str]
) -> tuple[Learned | None, Mapping[str, Any]]:
    """The exported file, inside the run's folder only, and what its metadata tell."""
    if not done:
        return None, {}
    try:
        path = inside(folder, str(done.get("concept", "")), what="learned file")
        prefix = "likeness."
        told = {
            key.removeprefix(prefix): json.loads(value)
            for key, value in read_metadata(path).items()
            if key.startswith(prefix)
        }
    except (LikenessError, ValueError, RecursionError) as error:
        warnings.append(f"The learned file cannot be read: {error}")
        return None, {}
    learned = Learned(
        path=path,
        kind=str(told.get("kind", "")),
        trigger=str(told.get("trigger", "")),
        sha256=str(done.get("sha256", "")),
    )
    return learned, told


def _samples(folder: Path) -> dict[int, tuple[Path, ...]]:
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in folder.glob("step-*.png"):
        if match := _SAMPLE.fullmatch(path.name):
            found.setdefault(int(match[1]), []).append((int(match[2]), path))
    return {step: tuple(path for _, path in sorted(pictures)) for step, pictures in sorted(found.items())}


def _plain(value: Any) -> dict[str, Any]:
    """A mapping as it was before hashing wrapped it in its dataclass's name."""
    if isinstance(value, dict) and set(value) == {"class", "fields"} and isinstance(value["fields"], dict):
        return value["fields"]
    return value if isinstance(value, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as ``group.name`` and their value in words."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(_plain(value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}".removeprefix("config."), _word(value)


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return ", ".join(map(_word, value)) if isinstance(value, list) else str(value)


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0

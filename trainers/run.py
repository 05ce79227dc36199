"""A run is a folder whose name is a hash of everything that decides its result.

The same settings find the same folder: a finished run gives its concept at once, an unfinished one goes on
from its newest valid checkpoint. Layout of ``<runs_root>/<method>-<subject>-<key>/``:

    run.json        settings and provenance
    history.jsonl   one line per finished step; no clocks, so that interrupts leave no trace in it
    scores.jsonl    one line per held-out score
    checkpoints/    step_00000100.safetensors: weights, optimizer, step
    samples/        step-000100-0.png
    concept/        the result, in the format that other tools load
    done.json       written last: which step was exported, and the concept's hash
    stop.json       there while somebody asks a working run to end early

A run that was asked to end early exports the best of what it has, and says so in done.json ("ended_early":
the steps made, of how many). That is not what its settings promise. So the same settings go on training from
its last step, to the bits of an undisturbed run, unless whoever ended it chose to settle for it ("settled").
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..concepts.concept import Concept
from ..concepts.loading import load_concept
from ..core.errors import LikenessError
from ..core.hashing import canonical, hash_file, hash_json
from ..core.paths import slug, write_atomic

log = logging.getLogger(__name__)

# Raised whenever a change to the package makes the same settings give other numbers.
NUMERICS_VERSION = 1
KEY_CHARS = 12


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run's result. ``dtype`` is the one the weights are computed in."""

    method: str
    subject: str  # its name, for people; its content decides
    subject_hash: str
    base_hash: str
    dtype: str
    config: Any
    seed: int
    monitor: Any = None
    prior: Any = None

    @property
    def key(self) -> str:
        return hash_json({"settings": self, "numerics": NUMERICS_VERSION})


class Journal:
    """A file of JSON lines that are ordered by their ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")

    def sync(self) -> None:
        """To the disk itself, so that the journal is never behind a checkpoint that is written next."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """The whole records; a last line that a crash tore is left out."""
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget what came after ``step``; what is left is returned."""
        kept = [record for record in self.read() if record["step"] <= step]
        if self.path.exists():
            lines = (json.dumps(record, sort_keys=True) + "\n" for record in kept)
            write_atomic(self.path, "".join(lines))
        return kept


STOP_FILE = "stop.json"


def ask_to_stop(folder: Path, *, settle: bool) -> None:
    """Let the run at work in ``folder`` end after its present step. ``settle``: for good, see the module."""
    write_atomic(folder / STOP_FILE, json.dumps({"settle": settle}) + "\n")


def settle(folder: Path, *, settled: bool) -> None:
    """Choose again whether a run that was ended early stands as it is, or goes on when it is asked for.

    Raises LikenessError for a run that was not ended early.
    """
    path = folder / "done.json"
    record = _read_json(path) if path.exists() else {}
    if "ended_early" not in record:
        raise LikenessError(
            f"The run {folder.name} was not ended early.", fix="Look at the list of runs anew."
        )
    write_atomic(path, json.dumps(record | {"settled": settled}, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True, kw_only=True)
class Finished:
    concept: Concept
    best_step: int


class Run:
    """One run's folder. Nothing is written before ``start``."""

    def __init__(self, runs_root: Path, settings: Settings) -> None:
        self.settings = settings
        self.key = settings.key
        self.folder = Path(runs_root) / f"{settings.method}-{slug(settings.subject)}-{self.key[:KEY_CHARS]}"
        self.checkpoints = self.folder / "checkpoints"
        self.samples = self.folder / "samples"
        self.history = Journal(self.folder / "history.jsonl")
        self.scores = Journal(self.folder / "scores.jsonl")

    def start(self, provenance: Mapping[str, Any]) -> None:
        """Make the folder, and write down what runs here and on what."""
        for folder in (self.checkpoints, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in (STOP_FILE, "done.json"):  # whoever starts anew wants it to go on
            (self.folder / stale).unlink(missing_ok=True)
        path = self.folder / "run.json"
        now = {"key": self.key, "settings": canonical(self.settings), "provenance": dict(provenance)}
        if not path.exists():
            write_atomic(path, json.dumps(now, indent=2, sort_keys=True) + "\n")
            return
        before = _read_json(path)
        if before.get("key") != self.key:
            raise LikenessError(
                f"{path} belongs to another run", expected=f"key {self.key}", fix="Move that folder away"
            )
        changed = {k for k, v in provenance.items() if before["provenance"].get(k) != v}
        if changed:
            log.warning(
                "The run %s began with other %s: it goes on, but its bits may differ from a run in one go.",
                self.folder.name,
                ", ".join(sorted(changed)),
            )

    def stop_asked(self) -> bool:
        return (self.folder / STOP_FILE).exists()

    def finish(self, concept: Concept, *, best_step: int, rule: str, verdict: str) -> None:
        """The last file of a run: from now on its concept returns at once, unless it was ended early."""
        relative = concept.path.relative_to(self.folder).as_posix()
        record = {"best_step": best_step, "concept": relative, "sha256": concept.sha256}
        record |= {"rule": rule, "verdict": verdict} | self.ending()
        write_atomic(self.folder / "done.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
        (self.folder / STOP_FILE).unlink(missing_ok=True)

    def ending(self) -> dict[str, Any]:
        """What done.json says of a run that was asked to end; nothing when it made all of its steps."""
        total = getattr(self.settings.config, "steps", 0)
        step = records[-1]["step"] if (records := self.history.read() if self.stop_asked() else []) else 0
        if not 0 < step < total:
            return {}
        wish = _read_json(self.folder / STOP_FILE)
        return {"ended_early": {"step": step, "of": total}, "settled": bool(wish.get("settle"))}

    def finished(self) -> Finished | None:
        """The result, if this run stands as finished and its concept is still what was written."""
        path = self.folder / "done.json"
        if not path.exists():
            return None
        record = _read_json(path)
        if "ended_early" in record and not record.get("settled"):
            log.info("%s was ended early: it goes on.", self.folder.name)
            return None
        concept_path = self.folder / record["concept"]
        if not concept_path.exists() or hash_file(concept_path) != record["sha256"]:
            log.warning("%s is missing or was changed: it is exported anew.", concept_path)
            return None
        return Finished(concept=load_concept(concept_path), best_step=record["best_step"])


def provenance(device: Any) -> dict[str, str]:
    """What the numbers depend on beside the settings: versions, device, threads."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        "device": torch.cuda.get_device_name(device) if str(device).startswith("cuda") else str(device),
        "threads": str(torch.get_num_threads()),
        "platform": platform.platform(),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record
    except (OSError, json.JSONDecodeError) as error:
        raise LikenessError(
            f"{path} cannot be read: {error}", fix="Remove that run folder and train again."
        ) from error

"""Sweeps: settings and methods over subjects and seeds, and which of them is best.

A sweep file is JSON; every part but the workflow may be left out:

    {"workflow": "learn.json",                      or "methods": {"DreamBooth": {"workflow": "db.json",
     "grid": {"Train DreamBooth.rank": [4, 8]},                                   "grid": {...}}, ...}
     "subjects": "subjects",                        a folder with a subfolder of photos for each
     "seeds": [0, 1, 2],                            for every trainer's seed
     "keep_prompts": 0.9}
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.errors import LikenessError
from ...core.hashing import hash_json
from ...scoring.metrics import bootstrap_interval
from ..graph import Graph
from .manifest import DONE, Manifest, Record
from .plan import Row, combinations, line_of, product, read_json_object, read_subjects

IDENTITY, PROMPT = "dino", "clip_t"  # of a scorecard: the subject in the picture, the words in the picture
KEEP_PROMPTS = 0.9  # the share of the best prompt score that a winner must have: the monitor's rule
PARTS = {"workflow", "methods", "grid", "subjects", "seeds", "keep_prompts"}
TRAINERS = "LikenessTrain"  # begins the class of every trainer
VARIED_BY_SUBJECT = "LikenessLoadSubject."


@dataclass(frozen=True, kw_only=True)
class Method:
    """One workflow of a sweep and the grid that is its own."""

    name: str
    workflow: Path
    grid: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    methods: Sequence[Method]
    subjects: Sequence[Row]
    seeds: Sequence[int]
    keep_prompts: float = KEEP_PROMPTS

    def rows(self, method: Method, graph: Graph, name: str) -> Iterable[Row]:
        """Every setting of a method, over all subjects and seeds."""
        named = [Row(settings={}, method=method.name)]
        return product(named, method.grid, self.subjects, self._seeds(graph, name))

    def _seeds(self, graph: Graph, name: str) -> list[Row]:
        if not self.seeds:
            return [Row(settings={})]
        trainers = [n.id for n in graph.values() if n.class_type.startswith(TRAINERS) and "seed" in n.inputs]
        if not trainers:
            raise LikenessError(f"{name} has no trainer with a seed", fix="Take seeds out of the sweep")
        return [Row(settings={f"{node}.seed": seed for node in trainers}) for seed in self.seeds]


def read_sweep(path: Path) -> Sweep:
    """A sweep file. Paths in it are relative to it."""
    text, data = read_json_object(path, "a sweep")
    for part in data:
        if part not in PARTS:
            raise LikenessError(
                f"{path.name}, line {line_of(text, part)}: {part} is no part of a sweep",
                expected=f"one of {', '.join(sorted(PARTS))}",
            )
    if ("workflow" in data) == ("methods" in data):
        raise LikenessError(f"{path.name} needs a workflow or methods", expected="one of the two")
    given = data.get("methods") or {"": {"workflow": data["workflow"]}}
    seeds, keep = data.get("seeds", []), data.get("keep_prompts", KEEP_PROMPTS)
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise LikenessError(
            f"{path.name}, line {line_of(text, 'seeds')}: seeds is {seeds!r}", expected="[0, 1, 2]"
        )
    if type(keep) not in (int, float) or not 0 <= keep <= 1:
        raise LikenessError(f"{path.name}: keep_prompts is {keep!r}", expected="from 0 to 1")
    subjects = (
        read_subjects(path.parent / str(data["subjects"])) if "subjects" in data else [Row(settings={})]
    )
    common = _grid(data.get("grid"), path, text)
    return Sweep(
        methods=[_method(name, method, common, path, text) for name, method in given.items()],
        subjects=subjects,
        seeds=seeds,
        keep_prompts=float(keep),
    )


def _method(name: str, given: Any, common: Sequence[Row], path: Path, text: str) -> Method:
    if not isinstance(given, dict) or not isinstance(given.get("workflow"), str):
        raise LikenessError(
            f"{path.name}, line {line_of(text, name)}: the method {name} has no workflow",
            expected='{"workflow": "file.json", "grid": {...}}',
        )
    rows = list(product(common, _grid(given.get("grid"), path, text)))
    return Method(name=name, workflow=path.parent / given["workflow"], grid=rows)


def _grid(grid: Any, path: Path, text: str) -> list[Row]:
    if grid is None:
        return [Row(settings={})]
    if not isinstance(grid, dict):
        raise LikenessError(f"{path.name}: grid is {grid!r}", expected='{"node.input": [values]}')
    return list(combinations(grid, path.name, text))


# --- which is best --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting of one method, averaged over seeds and then over subjects."""

    label: str
    settings: Mapping[str, Any]
    identity: float
    prompt: float
    interval: tuple[float, float]  # of identity, over subjects; NaN where there is one
    subjects: int
    jobs: int
    number: int  # of its first job
    on_front: bool = False

    def plain(self) -> dict[str, Any]:
        low, high = (None if math.isnan(end) else end for end in self.interval)
        return {**vars(self), "settings": dict(self.settings), "interval": [low, high]}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """``candidates`` by identity, those that keep the prompts first; ``winner`` is the first of them."""

    candidates: Sequence[Candidate]
    rule: str
    identity_name: str = "DINO"
    prompt_name: str = "CLIP-T"

    @property
    def winner(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None


def rank(
    manifest: Manifest, seed_inputs: Iterable[str] = (), *, keep_prompts: float = KEEP_PROMPTS
) -> Ranking:
    """Group finished jobs by setting; what differs only in subject or seed belongs together."""
    groups: dict[str, list[tuple[Record, Mapping[str, Any]]]] = defaultdict(list)
    names: dict[str, str] = {}
    seeds = set(seed_inputs)
    for record in manifest.records(DONE):
        for card in record.scores:
            if card.get(IDENTITY) is not None and card.get(PROMPT) is not None:
                setting = [record.method, _setting(record, seeds), card.get("label", "")]
                groups[hash_json(setting)].append((record, card))
                names = card.get("names", {})
    found = [_candidate(members, seeds) for members in groups.values()]
    floor = keep_prompts * max((c.prompt for c in found), default=0.0)
    marked = [_marked(candidate, found) for candidate in found]
    return Ranking(
        candidates=sorted(marked, key=lambda c: (c.prompt < floor, -c.identity, c.number)),
        rule="Best: the highest identity among the settings that keep "
        f"{keep_prompts:.0%} of the highest prompt score.",
        identity_name=names.get(IDENTITY, "DINO"),
        prompt_name=names.get(PROMPT, "CLIP-T"),
    )


def _setting(record: Record, seeds: set[str]) -> dict[str, Any]:
    def varied(name: str) -> bool:
        return name not in seeds and not (record.subject and name.startswith(VARIED_BY_SUBJECT))

    return {name: value for name, value in record.settings.items() if varied(name)}


def _candidate(members: Sequence[tuple[Record, Mapping[str, Any]]], seeds: set[str]) -> Candidate:
    by_subject: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record, card in members:
        by_subject[record.subject].append(card)
    identities = [fmean(card[IDENTITY] for card in cards) for cards in by_subject.values()]
    prompts = [fmean(card[PROMPT] for card in cards) for cards in by_subject.values()]
    record, card = members[0]
    settings = _setting(record, seeds)
    words = [f"{name.rpartition('.')[2]}={value}" for name, value in settings.items()]
    return Candidate(
        label=" ".join(filter(None, [record.method, card.get("label", ""), *words])) or "as it is",
        settings=settings,
        identity=fmean(identities),
        prompt=fmean(prompts),
        interval=bootstrap_interval(identities),
        subjects=len(by_subject),
        jobs=len(members),
        number=record.number,
    )


def _marked(candidate: Candidate, others: Sequence[Candidate]) -> Candidate:
    """Whether nothing is as good in both scores and better in one (Pareto)."""
    beaten = any(
        other.identity >= candidate.identity
        and other.prompt >= candidate.prompt
        and (other.identity, other.prompt) != (candidate.identity, candidate.prompt)
        for other in others
    )
    return Candidate(**{**vars(candidate), "on_front": not beaten})


def winning_workflow(prompt: Mapping[str, Any]) -> str:
    """A workflow file in the API format, which runs everywhere and opens in ComfyUI."""
    return json.dumps(prompt, indent=2) + "\n"

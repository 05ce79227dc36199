"""What the ballots say: shares of good pictures, win rates, intervals and agreement."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ...core.errors import LikenessError
from ...core.tables import csv_text, finite, not_a_formula
from .agreement import fleiss_kappa, share_interval
from .ballots import Ballot, Ballots, Rater
from .definition import Study
from .protocol import PARTS, Kind, Question, counted, majority, preferred, questions, seats


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """The share of a method's pictures that the majority finds good, by one of the yes-or-no questions."""

    method: str
    kind: Kind
    good: int
    total: int
    low: float
    high: float
    kappa: float  # NaN: undefined

    @property
    def share(self) -> float:
        return self.good / self.total if self.total else math.nan


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The compared method against another: how often the majority preferred it, tied, or preferred the other.

    ``low`` and ``high`` are of the win rate, wins over all.
    """

    method: str
    rival: str
    wins: int
    ties: int
    losses: int
    low: float
    high: float
    kappa: float

    @property
    def total(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float:
        return self.wins / self.total if self.total else math.nan


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """Counted over the questions that all their raters have answered; ``decided`` of ``asked`` are."""

    title: str
    raters_per_question: int
    raters: int
    ballots: int
    changed: int  # answers that their rater changed
    decided: int
    asked: int
    fidelity: tuple[Fidelity, ...]
    comparisons: tuple[Comparison, ...]
    kappa: Mapping[str, float]  # by kind of question

    def to_json(self) -> str:
        """Equal results give equal bytes. NaN is null."""
        record = asdict(self)
        record["fidelity"] = [{**asdict(row), "share": row.share} for row in self.fidelity]
        record["comparisons"] = [{**asdict(row), "win_rate": row.win_rate} for row in self.comparisons]
        return json.dumps(finite(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line per method and question, and per comparison."""
        head = ["question", "method", "rival", "good_or_wins", "ties", "total"]
        head += ["share", "low", "high", "kappa"]
        lines: list[list[object]] = []
        for f in self.fidelity:
            numbers = map(_number, (f.share, f.low, f.high, f.kappa))
            lines.append([f.kind, not_a_formula(f.method), "", f.good, "", f.total, *numbers])
        for c in self.comparisons:
            numbers = map(_number, (c.win_rate, c.low, c.high, c.kappa))
            names = [not_a_formula(c.method), not_a_formula(c.rival)]
            lines.append(["preference", *names, c.wins, c.ties, c.total, *numbers])
        return csv_text([head, *lines])


def count(study: Study, box: Ballots) -> StudyResults:
    """The results as the box stands now."""
    everything, raters = questions(study), [r for r in box.raters() if not r.withdrawn]
    ballots = valid(everything, raters, box.all())
    answers: dict[str, list[str]] = defaultdict(list)
    for ballot in ballots:
        answers[ballot.question].append(ballot.answer)
    enough = study.definition.raters
    decided = [(q, answers[q.id]) for q in everything if len(answers[q.id]) >= enough]
    return StudyResults(
        title=study.definition.title,
        raters_per_question=enough,
        raters=len(raters),
        ballots=len(ballots),
        changed=sum(ballot.revision > 1 for ballot in ballots),
        decided=len(decided),
        asked=len(everything),
        fidelity=tuple(_fidelity(study, decided)),
        comparisons=tuple(_comparisons(study, decided)),
        kappa={kind: _kappa([d for d in decided if d[0].kind == kind]) for kind in PARTS},
    )


def valid(everything: Sequence[Question], raters: Sequence[Rater], ballots: Sequence[Ballot]) -> list[Ballot]:
    """The ballots that count: of raters who were not withdrawn, on questions of this study."""
    known, counting = {question.id for question in everything}, {rater.rater for rater in raters}
    return [b for b in ballots if b.question in known and b.rater in counting]


Decided = tuple[Question, list[str]]


def _fidelity(study: Study, decided: Sequence[Decided]) -> Iterable[Fidelity]:
    for method in study.definition.methods:
        for kind in ("subject", "text"):
            rows = [d for d in decided if d[0].kind == kind and d[0].methods == (method,)]
            good = [(question.subject, majority(told) == "good") for question, told in rows]
            low, high = share_interval(good)
            yield Fidelity(
                method=method,
                kind=kind,
                good=sum(hit for _, hit in good),
                total=len(good),
                low=low,
                high=high,
                kappa=_kappa(rows),
            )


def _comparisons(study: Study, decided: Sequence[Decided]) -> Iterable[Comparison]:
    target = study.definition.target
    for rival in study.definition.methods:
        if rival == target:
            continue
        rows = [d for d in decided if d[0].methods == (target, rival)]
        verdicts = [(question.subject, preferred(told)) for question, told in rows]
        low, high = share_interval((subject, verdict == "first") for subject, verdict in verdicts)
        told = [verdict for _, verdict in verdicts]
        yield Comparison(
            method=target,
            rival=rival,
            wins=told.count("first"),
            ties=told.count("tie"),
            losses=told.count("second"),
            low=low,
            high=high,
            kappa=_kappa(rows),
        )


def _kappa(rows: Sequence[Decided]) -> float:
    """Of answers as the protocol counts them: good or bad; the one, the other or none."""
    return fleiss_kappa([[counted(question.kind, answer) for answer in told] for question, told in rows])


# --- progress -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One rater's."""

    rater: Rater
    answered: int
    asked: int


def progress(study: Study, box: Ballots) -> list[Progress]:
    """Of every rater who was invited, in order."""
    from .protocol import asked

    everything = questions(study)
    told = []
    for rater in box.raters():
        mine = {question.id for question in asked(study, rater.seat, everything)}
        told.append(Progress(rater=rater, answered=len(mine & set(box.of(rater.rater))), asked=len(mine)))
    return told


def free_seats(study: Study, box: Ballots) -> list[int]:
    """Seats that nobody holds, in order."""
    taken = {rater.seat for rater in box.raters() if not rater.withdrawn}
    return [seat for seat in range(seats(study, len(questions(study)))) if seat not in taken]


def invite(study: Study, box: Ballots, num: int) -> list[tuple[Rater, str]]:
    """That many new raters with their tokens, all or none. LikenessError when the seats do not suffice."""
    free = free_seats(study, box)
    if num < 1 or num > len(free):
        raise LikenessError(
            f"{num} raters cannot be invited: {len(free)} seats are free",
            expected=f"1 to {len(free)}" if free else "no more raters: each question has all that it takes",
            fix="Replace a rater who gave up with --replace, or begin a study with more raters",
        )
    return [box.invite(seat) for seat in free[:num]]


def _number(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""

"""A study's files: every ballot as CSV, the results as JSON, CSV and a page."""

from __future__ import annotations

from pathlib import Path

from ...core.paths import write_atomic
from ...core.tables import csv_text, not_a_formula
from .ballots import Ballot, Ballots, Rater
from .definition import Study
from .fragment import whole_page
from .protocol import Question, first_is_left, questions
from .results import count


def ballots_csv(study: Study, box: Ballots) -> str:
    """Every standing ballot on a line, with the method behind it, and whether it counts."""
    known = {question.id: question for question in questions(study)}
    raters = {rater.rater: rater for rater in box.raters()}
    head = ["rater", "question", "kind", "subject", "prompt", "sample", "method", "rival", "left"]
    head += ["answer", "chosen", "revision", "cast_at", "counts"]
    lines: list[list[object]] = []
    for b in box.all():
        if b.question in known and b.rater in raters:
            lines.append(_ballot_line(study, known[b.question], raters[b.rater], b))
    return csv_text([head, *lines])


def _ballot_line(study: Study, q: Question, rater: Rater, ballot: Ballot) -> list[object]:
    method, rival = (*q.methods, "")[:2]
    left = ""
    if q.kind == "preference":
        left = method if first_is_left(study, rater.seat, q) else rival
    chosen = {"first": method, "second": rival}.get(ballot.answer, ballot.answer)
    texts = [not_a_formula(text) for text in (q.subject, q.prompt)]
    names = [not_a_formula(text) for text in (method, rival, left)]
    answer = [ballot.answer, not_a_formula(chosen), ballot.revision]
    end = [f"{ballot.cast_at:.3f}", int(not rater.withdrawn)]
    return [ballot.rater, q.id, q.kind, *texts, q.sample, *names, *answer, *end]


def save(study: Study, box: Ballots, folder: Path) -> list[Path]:
    """results.json, results.csv, ballots.csv and results.html in ``folder``, each whole or not at all."""
    results = count(study, box)
    content = {
        "results.json": results.to_json(),
        "results.csv": results.to_csv(),
        "ballots.csv": ballots_csv(study, box),
        "results.html": whole_page(results),
    }
    for name, text in content.items():
        write_atomic(folder / name, text)
    return [folder / name for name in content]

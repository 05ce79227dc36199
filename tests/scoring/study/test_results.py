"""From ballots to numbers and files."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from likeness.core.errors import LikenessError
from likeness.scoring.study.ballots import Ballots
from likeness.scoring.study.definition import Study
from likeness.scoring.study.exporting import ballots_csv, save
from likeness.scoring.study.protocol import asked, fingerprint, questions
from likeness.scoring.study.results import count, free_seats, invite, progress
from study_maker import make_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path, samples=4, raters=3)


@pytest.fixture
def box(study: Study) -> Ballots:
    return Ballots(study.ballots_path, fingerprint(study))


def vote(study: Study, box: Ballots, *, but: int = 0) -> None:
    """Three raters: ours is the subject for all, shows the text for two of three, and wins three of four."""
    for rater, _ in invite(study, box, 3):
        for question in asked(study, rater.seat, questions(study))[but:]:
            if question.kind == "preference":
                answer = "second" if question.sample == 0 else "first"
            elif question.methods == ("Ours",):
                answer = "pass" if question.kind == "text" and rater.seat == 0 else "yes"
            else:
                answer = "yes" if rater.seat == 0 else "no"
            box.cast(rater.rater, question.id, answer)


def test_counts_by_hand(study: Study, box: Ballots) -> None:
    vote(study, box)
    results = count(study, box)
    shares = {(f.method, f.kind): (f.good, f.total) for f in results.fidelity}
    assert shares == {
        ("Ours", "subject"): (4, 4),
        ("Ours", "text"): (4, 4),
        ("Theirs", "subject"): (0, 4),
        ("Theirs", "text"): (0, 4),
    }
    (pair,) = results.comparisons
    assert (pair.method, pair.rival, pair.wins, pair.ties, pair.losses) == ("Ours", "Theirs", 3, 0, 1)
    assert (pair.win_rate, results.ballots, results.decided, results.asked) == (0.75, 60, 20, 20)
    assert pair.low < 0.75 < pair.high and pair.kappa == 1.0
    # subject: P = (4 * 1 + 4 * 1/3) / 8 = 2/3; good 16 of 24: P_e = 5/9; kappa = (1/9) / (4/9)
    assert results.kappa["subject"] == pytest.approx(0.25)


def test_questions_without_all_their_ballots_do_not_count(study: Study, box: Ballots) -> None:
    vote(study, box, but=19)
    results = count(study, box)
    assert results.ballots == 3 and results.decided <= 1
    assert all(math.isnan(f.share) for f in results.fidelity)
    assert json.loads(results.to_json())["fidelity"][0]["share"] is None


def test_a_withdrawn_rater_does_not_count(study: Study, box: Ballots) -> None:
    vote(study, box)
    box.replace(1)
    results = count(study, box)
    assert (results.raters, results.ballots, results.decided) == (3, 40, 0)
    assert "0" in {row["counts"] for row in csv.DictReader(io.StringIO(ballots_csv(study, box)))}


def test_seats_are_given_once(study: Study, box: Ballots) -> None:
    invite(study, box, 2)
    assert free_seats(study, box) == [2]
    for num in (2, 0, -1):
        with pytest.raises(LikenessError, match="1 seats are free"):
            invite(study, box, num)
    invite(study, box, 1)
    with pytest.raises(LikenessError, match="0 seats are free"):
        invite(study, box, 1)
    assert [(p.answered, p.asked) for p in progress(study, box)] == [(0, 20)] * 3


def test_the_files(study: Study, box: Ballots, tmp_path: Path) -> None:
    vote(study, box)
    made = save(study, box, tmp_path / "out")
    assert [path.name for path in made] == ["results.json", "results.csv", "ballots.csv", "results.html"]
    first = [path.read_bytes() for path in made]
    assert [path.read_bytes() for path in save(study, box, tmp_path / "out")] == first  # the same bytes
    rows = list(csv.DictReader(io.StringIO(made[2].read_text())))
    assert len(rows) == 60 and {row["chosen"] for row in rows if row["kind"] == "preference"} == {
        "Ours",
        "Theirs",
    }
    assert {row["left"] for row in rows if row["kind"] == "preference"} == {"Ours", "Theirs"}
    assert len(list(csv.DictReader(io.StringIO(made[1].read_text())))) == 5
    page = made[3].read_text()
    assert "Fleiss" in page and "75.0 %" in page and "<script" not in page and "https:" not in page


def test_names_are_text_in_every_file(tmp_path: Path) -> None:
    name = "=<img src=x>"
    methods = {name: "Ours", "B": "Theirs"}
    study = make_study(tmp_path, samples=2, raters=1, title="<b>T</b>")
    text = json.loads(study.path.read_text()) | {"methods": methods}
    study.path.write_text(json.dumps(text))
    from likeness.scoring.study.definition import open_study

    study = open_study(study.path)
    with Ballots(study.ballots_path, fingerprint(study)) as box:
        ((rater, _),) = invite(study, box, 1)
        for question in questions(study):
            box.cast(rater.rater, question.id, "first" if question.kind == "preference" else "yes")
        _, summary, ballots, page = (path.read_text() for path in save(study, box, tmp_path / "out"))
    assert "<img" not in page and "<b>" not in page and "&lt;img" in page
    assert "'=<img" in summary and "'=<img" in ballots


def test_a_study_is_a_section_of_the_report(study: Study, box: Ballots, tmp_path: Path) -> None:
    from likeness.scoring.report import write_report

    vote(study, box)
    page = write_report(tmp_path / "report.html", title="R", studies=[count(study, box)]).read_text()
    assert "What people said" in page and "Preference" in page and "60 ballots on 20 questions" in page

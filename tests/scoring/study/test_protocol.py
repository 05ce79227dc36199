"""The questions, their order, and what a handful of answers amounts to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.scoring.study.protocol import (
    asked,
    counted,
    fingerprint,
    first_is_left,
    majority,
    preferred,
    questions,
    seats,
)
from study_maker import make_study


def test_every_picture_is_asked_about_and_the_target_meets_every_other(tmp_path: Path) -> None:
    study = make_study(tmp_path, samples=4, names=("A", "B", "C"), compare="B")
    everything = questions(study)
    kinds = Counter(q.kind for q in everything)
    assert kinds == {"subject": 12, "text": 12, "preference": 8}
    assert {q.methods for q in everything if q.kind == "preference"} == {("B", "A"), ("B", "C")}
    assert len({q.id for q in everything}) == len(everything)


def test_one_method_has_no_preference(tmp_path: Path) -> None:
    assert {q.kind for q in questions(make_study(tmp_path, names=("A",)))} == {"subject", "text"}


def test_the_order_follows_from_the_seed_and_the_seat(tmp_path: Path) -> None:
    study = make_study(tmp_path / "a", samples=12)
    everything = questions(study)
    mine = asked(study, 3, everything)
    assert mine == asked(make_study(tmp_path / "b", samples=12), 3, everything)  # wherever, whenever
    assert mine != asked(study, 4, everything)
    assert mine != asked(make_study(tmp_path / "c", samples=12, seed=1), 3, everything)
    assert sorted(q.id for q in mine) == sorted(q.id for q in everything)
    assert [q.kind for q in mine] == ["subject"] * 24 + ["text"] * 24 + ["preference"] * 12


def test_this_order_stays_for_ever(tmp_path: Path) -> None:
    """A study that began goes on after an update: samples of part 1, and sides, as they were drawn once."""
    study = make_study(tmp_path, samples=12)
    mine = asked(study, 0, questions(study))
    sides = "".join("LR"[not first_is_left(study, 0, q)] for q in mine if q.kind == "preference")
    assert ([q.sample for q in mine[:8]], sides) == GOLDEN


GOLDEN = ([2, 9, 3, 2, 8, 8, 7, 3], "LRRLRRLLRRLL")


def test_sides_are_a_fair_coin(tmp_path: Path) -> None:
    study = make_study(tmp_path, samples=50)
    pairs = [q for q in questions(study) if q.kind == "preference"]
    left = sum(first_is_left(study, seat, q) for seat in range(20) for q in pairs)
    assert abs(left - 500) < 80  # five standard deviations of 1000 tosses


@pytest.mark.parametrize("size", [1, 7, 13, 30, 1000])
def test_blocks_give_each_question_to_exactly_its_number_of_raters(tmp_path: Path, size: int) -> None:
    study = make_study(tmp_path, samples=6, raters=3, questions_per_rater=size)
    everything = questions(study)
    dealt = [asked(study, seat, everything) for seat in range(seats(study, len(everything)))]
    assert all(len(mine) <= size for mine in dealt)
    assert Counter(q.id for mine in dealt for q in mine) == {q.id: 3 for q in everything}


def test_the_fingerprint_sees_what_a_rater_would_see_changed(tmp_path: Path) -> None:
    whole = fingerprint(make_study(tmp_path / "a"))
    assert whole == fingerprint(make_study(tmp_path / "b"))
    others = [{"seed": 1}, {"raters": 3}, {"questions_per_rater": 2}, {"compare": "Theirs"}]
    changed = [fingerprint(make_study(tmp_path / str(n), **other)) for n, other in enumerate(others)]  # type: ignore[arg-type]
    assert len({whole, *changed}) == 5


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (["yes"] * 4 + ["no"] * 3, "good"),
        (["yes"] * 3 + ["no"] * 4, "bad"),
        (["yes"] * 4 + ["pass"] * 3, "good"),
        (["yes"] * 3 + ["pass"] * 4, "bad"),  # though nobody said no
        (["yes"] * 3 + ["no"] * 1 + ["pass"] * 3, "bad"),  # though most of those who chose said yes
        (["yes"] * 3 + ["no"] * 3, "bad"),
        ([], "bad"),
    ],
)
def test_majority(told: list[str], verdict: str) -> None:
    assert majority(told) == verdict


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (["first"] * 4 + ["second"] * 3, "first"),
        (["first"] * 2 + ["second"] * 3 + ["pass"] * 2, "second"),
        (["first"] * 3 + ["second"] * 3 + ["pass"], "tie"),
        (["pass"] * 7, "tie"),
    ],
)
def test_preferred(told: list[str], verdict: str) -> None:
    assert preferred(told) == verdict


@given(st.lists(st.sampled_from(["yes", "no", "pass"]), max_size=9))
def test_a_pass_counts_as_a_no(told: list[str]) -> None:
    assert majority(told) == majority(["no" if answer == "pass" else answer for answer in told])
    assert [counted("text", a) == "good" for a in told] == [a == "yes" for a in told]

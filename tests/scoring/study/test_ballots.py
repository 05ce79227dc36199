"""The ballot box: one ballot for each rater and question, whatever they do."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.scoring.study.ballots import Ballots


@pytest.fixture
def box(tmp_path: Path) -> Ballots:
    return Ballots(tmp_path / "box.sqlite", "study")


def test_a_ballot_is_saved_once(box: Ballots) -> None:
    rater = box.invite(0)[0].rater
    assert box.cast(rater, "q", "yes").what == "saved"
    assert box.cast(rater, "q", "yes").what == "kept"
    assert [(b.answer, b.revision) for b in box.all()] == [("yes", 1)]


def test_another_answer_needs_the_standing_revision(box: Ballots) -> None:
    rater = box.invite(0)[0].rater
    box.cast(rater, "q", "yes")
    clash = box.cast(rater, "q", "no")
    assert (clash.what, clash.ballot.answer, clash.ballot.revision) == ("conflict", "yes", 1)
    assert box.cast(rater, "q", "no", replaces=1).what == "changed"
    assert box.cast(rater, "q", "no", replaces=1).what == "kept"  # the reply was lost, and it came again
    assert box.cast(rater, "q", "yes", replaces=1).what == "conflict"  # from an old tab
    assert (box.of(rater)["q"].answer, box.of(rater)["q"].revision, box.num_changes()) == ("no", 2, 1)


def test_a_change_of_mind_keeps_the_first_answer_on_record(box: Ballots) -> None:
    rater = box.invite(0)[0].rater
    box.cast(rater, "q", "yes")
    box.cast(rater, "q", "no", replaces=1)
    with sqlite3.connect(box.path) as db:
        assert db.execute("SELECT rater, question, revision, answer FROM changes").fetchall() == [
            (rater, "q", 1, "yes")
        ]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("yn"), st.integers(0, 3)), max_size=20))
def test_any_sequence_leaves_a_box_that_a_simple_model_explains(votes: list[tuple[str, str, int]]) -> None:
    with Ballots(Path(":memory:"), "study") as box:
        rater = box.invite(0)[0].rater
        model: dict[str, tuple[str, int]] = {}
        for question, answer, replaces in votes:
            box.cast(rater, question, answer, replaces=replaces)
            if question not in model:
                model[question] = (answer, 1)
            elif model[question][0] != answer and model[question][1] == replaces:
                model[question] = (answer, replaces + 1)
        assert {q: (b.answer, b.revision) for q, b in box.of(rater).items()} == model
        assert box.num_changes() == sum(revision - 1 for _, revision in model.values())


def test_threads_that_vote_on_the_same_question_leave_one_ballot(box: Ballots) -> None:
    rater = box.invite(0)[0].rater
    told: list[str] = []
    start = threading.Barrier(8)

    def vote(answer: str) -> None:
        start.wait()
        told.append(box.cast(rater, "q", answer).what)

    threads = [threading.Thread(target=vote, args=(("yes", "no")[n % 2],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(told) == {"saved": 1, "kept": 3, "conflict": 4}
    assert len(box.all()) == 1


def test_tokens_are_not_in_the_file(box: Ballots) -> None:
    rater, token = box.invite(0)
    assert box.who(token) == rater and box.who(token + "x") is None and box.who("") is None
    box.close()
    kept = b"".join(path.read_bytes() for path in box.path.parent.iterdir())
    assert token.encode() not in kept and len(token) >= 32


def test_a_seat_has_one_rater(box: Ballots) -> None:
    box.invite(0)
    with pytest.raises(LikenessError, match="Seat 0 is taken"):
        box.invite(0)
    assert len(box.raters()) == 1


def test_a_replaced_rater_keeps_the_ballots_and_loses_the_say(box: Ballots) -> None:
    old, old_token = box.invite(5)
    box.cast(old.rater, "q", "yes")
    new, _ = box.replace(old.rater)
    gone = box.who(old_token)
    assert new.seat == 5 and gone is not None and gone.withdrawn
    assert [r.withdrawn for r in box.raters()] == [True, False] and len(box.all()) == 1
    with pytest.raises(LikenessError, match="no rater 1"):
        box.replace(old.rater)


def test_a_renewed_token_ends_the_old_one(box: Ballots) -> None:
    rater, old = box.invite(0)
    new = box.renew(rater.rater)
    assert box.who(old) is None and box.who(new) == rater
    with pytest.raises(LikenessError, match="no rater 9"):
        box.renew(9)


def test_a_box_belongs_to_one_study(tmp_path: Path) -> None:
    with Ballots(tmp_path / "box.sqlite", "one") as box:
        rater = box.invite(0)[0].rater
    with Ballots(tmp_path / "box.sqlite", "two") as box:  # nobody has voted yet: the study may still change
        box.cast(rater, "q", "yes")
    with pytest.raises(LikenessError, match="changed after voting began"):
        Ballots(tmp_path / "box.sqlite", "one")
    with Ballots(tmp_path / "box.sqlite", "two") as box:
        assert len(box.all()) == 1


def test_a_file_that_is_no_box(tmp_path: Path) -> None:
    path = tmp_path / "box.sqlite"
    path.write_text("not a database at all, and long enough to be told from one" * 20)
    with pytest.raises(LikenessError, match="cannot be used as a ballot box"):
        Ballots(path, "study")
    assert path.read_text().startswith("not a database")


def test_a_failure_in_the_middle_changes_nothing(box: Ballots, monkeypatch: pytest.MonkeyPatch) -> None:
    rater = box.invite(0)[0].rater
    box.cast(rater, "q", "yes")
    change = Ballots._change

    def half(self: Ballots, *args: object) -> None:
        change(self, *args)  # type: ignore[arg-type]
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Ballots, "_change", half)
    with pytest.raises(sqlite3.OperationalError):
        box.cast(rater, "q", "no", replaces=1)
    assert (box.of(rater)["q"].answer, box.of(rater)["q"].revision, box.num_changes()) == ("yes", 1, 0)
    monkeypatch.undo()
    assert box.cast(rater, "q", "no", replaces=1).what == "changed"

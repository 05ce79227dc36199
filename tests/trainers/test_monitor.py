"""The held-out monitor: its rule, its verdict, and what it does to a run."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.checkpoint import checkpoint_path, load_checkpoint
from likeness.core.errors import LikenessError
from likeness.trainers.events import HeldOutScore, Phase, Step
from likeness.trainers.monitor import HeldOutMonitor, Score, best, turning_point, verdict


def curve(held_out, train=None, clip_t=None, base=(0.3, 0.3)):
    """Scores at 0, 10, 20, ... The first is the base model's (DINO, CLIP-T)."""
    train = train or [0.9] * len(held_out)
    clip_t = clip_t or [0.3] * len(held_out)
    rows = [Score(step=0, train_dino=base[0], held_out_dino=base[0], clip_t=base[1])]
    for i, (a, b, c) in enumerate(zip(train, held_out, clip_t, strict=True), start=1):
        rows.append(Score(step=10 * i, train_dino=a, held_out_dino=b, clip_t=c))
    return rows


def test_the_best_has_the_highest_held_out_score_among_the_faithful():
    scores = curve([0.5, 0.7, 0.9], clip_t=[0.3, 0.28, 0.2])
    assert best(scores, 0.9).step == 20  # 0.9 keeps 67 % of the base's CLIP-T only
    assert best(scores, 0.6).step == 30


def test_ties_go_to_the_earlier_and_the_base_is_never_chosen():
    assert best(curve([0.7, 0.7]), 0.9).step == 10
    assert best(curve([0.1], base=(0.9, 0.3)), 0.9).step == 10
    assert best(curve([]), 0.9) is None


def test_where_none_is_faithful_the_most_faithful_is_taken():
    assert best(curve([0.9, 0.8, 0.7], clip_t=[0.1, 0.2, 0.2]), 0.9).step == 20


def test_overfitting_is_a_fallen_held_out_score_beside_a_flat_training_score():
    scores = curve([0.60, 0.70, 0.65, 0.62], train=[0.80, 0.91, 0.91, 0.91], clip_t=[0.3, 0.31, 0.28, 0.25])
    assert turning_point(scores, patience=2, tolerance=0.01).step == 20
    assert verdict(scores, patience=2, tolerance=0.01) == (
        "overfitting since step 20: train 0.91 flat, held-out 0.70 -> 0.62, CLIP-T 0.31 -> 0.25"
    )


@pytest.mark.parametrize(
    ("held_out", "train"),
    [
        ([0.6, 0.7, 0.65], None),  # one score behind the peak: patience is two
        ([0.6, 0.7, 0.65, 0.695], None),  # back within the tolerance
        ([0.6, 0.7, 0.65, 0.6], [0.9, 0.9, 0.8, 0.7]),  # training falls as well: another trouble
        ([0.5, 0.6, 0.7, 0.8], None),
    ],
)
def test_what_is_not_overfitting(held_out, train):
    assert turning_point(curve(held_out, train), patience=2, tolerance=0.01) is None


def test_the_other_verdicts():
    def said(held_out):
        return verdict(curve(held_out), patience=2, tolerance=0.01)

    assert said([]) == "base model"
    assert said([0.5]) == "best so far"
    assert said([0.5, 0.4]) == "learning"


def test_a_model_that_falls_apart_is_said_to_get_worse():
    scores = curve([0.60, 0.70, 0.65, 0.62], train=[0.80, 0.91, 0.80, 0.75], clip_t=[0.3, 0.31, 0.28, 0.25])
    assert verdict(scores, patience=2, tolerance=0.01) == (
        "worse since step 20: train 0.91 -> 0.75, held-out 0.70 -> 0.62, CLIP-T 0.31 -> 0.25; "
        "a lower learning rate may hold it"
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_the_rule_holds_for_any_curve(held_out, clip_t):
    scores = curve(held_out, clip_t=clip_t[: len(held_out)])
    chosen = best(scores, 0.9)
    faithful = [s for s in scores[1:] if s.clip_t >= 0.9 * scores[0].clip_t]
    assert chosen in (faithful or scores[1:])
    assert all(chosen.held_out_dino >= s.held_out_dino for s in faithful)


# --- in a run -------------------------------------------------------------------------------------------

MONITOR = HeldOutMonitor(every=2, steps=2, batch_size=3)


def scored(case, base, subject, root, encoders, monitor=MONITOR, **changes):
    return case.events(base, subject, root, monitor=monitor, encoders=encoders, **changes)


def test_it_scores_exports_the_best_and_writes_the_rule(method_case, base, subject, tmp_path, encoders):
    events = list(scored(method_case, base, subject, tmp_path, encoders, checkpoint_every=100))
    rows = [e for e in events if isinstance(e, HeldOutScore)]
    assert [row.step for row in rows] == [0, 2, 4, 6]
    assert rows[0].verdict == "base model"
    done, folder = events[-1], events[-1].run_folder
    record = json.loads((folder / "done.json").read_text())
    assert "highest held-out DINO" in record["rule"] and record["verdict"] == rows[-1].verdict
    scores = [Score(**json.loads(line)) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert done.best_step == best(scores, 0.9).step
    kept = load_checkpoint(checkpoint_path(folder / "checkpoints", done.best_step))[0]
    assert done.concept.metadata["step"] == done.best_step
    from likeness.concepts.loading import load_tensors

    exported = load_tensors(done.concept)
    name = "clip_l" if "clip_l" in exported else sorted(exported)[0]
    trained = "rows" if name == "clip_l" else name.replace("embedding.", "rows.")
    assert torch.equal(exported[name], kept[f"param.{trained}"])


def test_scoring_changes_no_training(method_case, base, subject, tmp_path, encoders, undisturbed, finish):
    done = finish(scored(method_case, base, subject, tmp_path, encoders))
    plain = undisturbed(method_case).run_folder / "history.jsonl"
    assert (done.run_folder / "history.jsonl").read_bytes() == plain.read_bytes()


def test_an_interrupt_within_a_score_is_resumed_exactly(
    method_case, base, subject, tmp_path, encoders, finish, fingerprint
):
    whole = finish(scored(method_case, base, subject, tmp_path / "whole", encoders))
    events = scored(method_case, base, subject, tmp_path / "cut", encoders)
    reached = False
    for event in events:
        reached = reached or (isinstance(event, Step) and event.step == 4)
        if reached and isinstance(event, Phase) and event.name == "scoring" and event.done == 1:
            break
    events.close()
    again = list(scored(method_case, base, subject, tmp_path / "cut", encoders))
    assert [e.step for e in again if isinstance(e, HeldOutScore)] == [4, 6]
    assert fingerprint(again[-1].run_folder) == fingerprint(whole.run_folder)


def test_it_stops_where_asked_to(method_case, base, subject, tmp_path, encoders, monkeypatch):
    from likeness.trainers import monitor

    monkeypatch.setattr(monitor, "turning_point", lambda scores, **_: scores[1] if len(scores) > 2 else None)
    stopping = HeldOutMonitor(every=2, steps=2, batch_size=3, stop_when_overfitting=True)
    events = list(scored(method_case, base, subject, tmp_path, encoders, monitor=stopping))
    assert max(e.step for e in events if isinstance(e, Step)) == 4
    assert "overfitting since step 2" in [e for e in events if isinstance(e, HeldOutScore)][-1].verdict


def test_no_held_out_photos_is_said(method_case, base, subject, tmp_path, encoders):
    from dataclasses import replace

    alone = replace(subject, held_out=())
    with pytest.raises(LikenessError, match="Split Held-out"):
        list(scored(method_case, base, alone, tmp_path, encoders))
    assert list(tmp_path.iterdir()) == []


def test_impossible_settings_are_named():
    with pytest.raises(LikenessError, match="patience"):
        HeldOutMonitor(patience=0)

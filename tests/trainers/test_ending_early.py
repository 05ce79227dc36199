"""A run that is asked to end early keeps the best so far, says so, and goes on later unless settled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from likeness.core.errors import LikenessError
from likeness.trainers.events import Done, Event, Started, Step
from likeness.trainers.monitor import HeldOutMonitor
from likeness.trainers.run import ask_to_stop, settle

MONITOR = HeldOutMonitor(every=2, steps=1, guidance=1.0)


def end_after(events: Any, steps: int, *, settled: bool = False) -> Done:
    """Ask the run to end once so many steps are made, and listen to its end."""
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if isinstance(event, Step) and event.step == steps:
            folder = next(e.run_folder for e in seen if isinstance(e, Started))
            ask_to_stop(folder, settle=settled)
    assert isinstance(seen[-1], Done)
    assert [e.step for e in seen if isinstance(e, Step)][-1] == steps
    return seen[-1]


def record(done: Done) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((done.run_folder / "done.json").read_text())
    return content


def test_it_is_recorded_and_the_same_settings_go_on_bit_exactly(
    method_case, base, subject, tmp_path: Path, finish, fingerprint, undisturbed
) -> None:
    early = end_after(method_case.events(base, subject, tmp_path), 3)
    assert early.best_step == 3 and early.concept.path.exists()
    assert record(early)["ended_early"] == {"step": 3, "of": 6} and not record(early)["settled"]
    assert not (early.run_folder / "stop.json").exists()
    whole = finish(method_case.events(base, subject, tmp_path))
    assert not whole.reused and "ended_early" not in record(whole)
    assert fingerprint(whole.run_folder) == fingerprint(undisturbed(method_case).run_folder)


def test_a_settled_run_is_reused_until_that_is_taken_back(
    base, subject, tmp_path: Path, finish, cases
) -> None:
    case = cases["textual_inversion"]
    early = end_after(case.events(base, subject, tmp_path), 2, settled=True)
    again = finish(case.events(base, subject, tmp_path))
    assert again.reused and again.concept.sha256 == early.concept.sha256
    settle(early.run_folder, settled=False)
    assert not finish(case.events(base, subject, tmp_path)).reused
    with pytest.raises(LikenessError, match="not ended early"):
        settle(early.run_folder, settled=True)


def test_the_monitors_rule_chooses_what_is_kept(base, subject, tmp_path: Path, encoders, cases) -> None:
    case = cases["textual_inversion"]
    events = case.events(base, subject, tmp_path, monitor=MONITOR, encoders=encoders)
    done = end_after(events, 5)
    assert done.best_step in (2, 4)  # step 5 was not scored


def test_a_wish_from_before_ends_no_new_start(
    base, subject, tmp_path: Path, finish, stop_after, cases
) -> None:
    case = cases["textual_inversion"]
    stop_after(case.events(base, subject, tmp_path), 2)
    [folder] = tmp_path.iterdir()
    ask_to_stop(folder, settle=True)  # and then the power went out
    assert "ended_early" not in record(finish(case.events(base, subject, tmp_path)))

"""Every job ends once, whatever becomes of the slots."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from likeness.core.errors import Interrupted, LikenessError
from likeness.headless.batch.checking import Job
from likeness.headless.batch.dispatch import Dispatch, Told
from likeness.headless.batch.manifest import DONE, FAILED, WAITING, Manifest
from likeness.headless.batch.targets import JobFailed, Result, SlotLost, Task, Tell


class Scripted:
    """A slot that does what its function says of each task."""

    def __init__(self, name: str, act: Callable[[Task], None], *, back: bool = True) -> None:
        self.name, self.act, self.back = name, act, back
        self.ended: list[int] = []
        self.stopped = threading.Event()

    def run(self, task: Task, tell: Tell) -> Result:
        self.act(task)
        self.ended.append(task.number)
        return Result(scores=[{"dino": 0.5}])

    def revive(self) -> bool:
        return self.back

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        pass


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    manifest = Manifest(tmp_path / "m.sqlite")
    manifest.plan(Job(key=f"k{n}", settings={"A.x": n}) for n in range(12))
    return manifest


def dispatch(
    manifest: Manifest, *slots: Scripted, told: list[Told] | None = None, patience_s: float = 9.0
) -> Dispatch:
    heard: list[Told] = [] if told is None else told
    return Dispatch(
        manifest, slots, lambda r: {}, retries=2, retry_s=0.01, patience_s=patience_s, tell=heard.append
    )


def nothing(task: Task) -> None:
    pass


def test_two_slots_share_the_jobs_and_each_is_done_once(manifest: Manifest) -> None:
    slots = [Scripted(name, lambda task: time.sleep(0.005)) for name in "ab"]
    dispatch(manifest, *slots).run()
    assert Counter(slots[0].ended + slots[1].ended) == dict.fromkeys(range(1, 13), 1)
    assert slots[0].ended and slots[1].ended
    assert all(r.scores == [{"dino": 0.5}] and r.attempts == 1 for r in manifest.records(DONE))


def test_a_passing_trouble_is_tried_again_and_a_mistake_is_not(manifest: Manifest) -> None:
    tries: Counter[int] = Counter()

    def act(task: Task) -> None:
        tries[task.number] += 1
        if task.number == 3 and tries[3] < 3:
            raise JobFailed("busy", again=True)
        if task.number == 4:
            raise JobFailed("busy for ever", again=True)
        if task.number == 5:
            raise JobFailed("wrong", again=False)

    dispatch(manifest, Scripted("a", act)).run()
    assert (tries[3], tries[4], tries[5]) == (3, 3, 1)
    assert {r.number: r.reason for r in manifest.records(FAILED)} == {4: "busy for ever", 5: "wrong"}
    assert manifest.counts()[DONE] == 10


def test_the_jobs_of_a_server_that_dies_go_to_the_others(manifest: Manifest) -> None:
    def dies(task: Task) -> None:
        raise SlotLost("no answer")

    told: list[Told] = []
    well = Scripted("well", lambda task: time.sleep(0.01))
    dispatch(manifest, Scripted("ill", dies, back=False), well, told=told).run()
    assert sorted(well.ended) == list(range(1, 13))
    assert [t.what for t in told if t.slot == "ill"] == ["start", "lost"]


def test_with_no_server_left_the_jobs_stay(manifest: Manifest) -> None:
    def dies(task: Task) -> None:
        raise SlotLost("no answer")

    with pytest.raises(LikenessError, match="No target has answered"):
        dispatch(manifest, Scripted("a", dies, back=False), patience_s=0.2).run()
    assert manifest.counts()[WAITING] == 12


def test_a_stop_gives_the_running_job_back(manifest: Manifest) -> None:
    begun = threading.Event()

    def act(task: Task) -> None:
        begun.set()
        assert slot.stopped.wait(10)
        raise Interrupted("stopped")

    slot = Scripted("a", act)
    with pytest.raises(Interrupted):
        dispatch(manifest, slot).run(begun.is_set)
    assert manifest.counts()[WAITING] == 12 and not slot.ended
    again = Scripted("b", nothing)
    dispatch(manifest, again).run()
    assert len(again.ended) == 12


def test_a_full_disk_stops_everything_with_its_cause(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int, result: Result, seconds: float) -> None:
        raise LikenessError("The manifest cannot be written: database or disk is full")

    monkeypatch.setattr(manifest, "done", full)
    with pytest.raises(LikenessError, match="disk is full"):
        dispatch(manifest, Scripted("a", nothing)).run()

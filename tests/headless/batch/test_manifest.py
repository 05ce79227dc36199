"""The manifest keeps every job through kills, new plans and lost slots."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from likeness.core.errors import LikenessError
from likeness.headless.batch.checking import Job
from likeness.headless.batch.manifest import DONE, FAILED, MOST_LOSSES, RUNNING, WAITING, Manifest
from likeness.headless.batch.targets import Result


def jobs(count: int, first: int = 0) -> list[Job]:
    return [Job(key=f"key{n}", settings={"A.x": n}, place=f"line {n}") for n in range(first, count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


def test_equal_jobs_are_one_and_order_is_kept(path: Path) -> None:
    manifest = Manifest(path)
    planned = manifest.plan([*jobs(3), *jobs(2)])
    assert (planned.rows, planned.jobs, planned.finished) == (5, 3, 0)
    assert [r.settings["A.x"] for r in manifest.records()] == [0, 1, 2]
    assert [r.place for r in manifest.records()] == ["line 0", "line 1", "line 2"]


def test_a_plan_with_an_error_changes_nothing(path: Path) -> None:
    manifest = Manifest(path)
    manifest.plan(jobs(2))

    def wrong() -> object:
        yield from jobs(5)
        raise LikenessError("wrong")

    with pytest.raises(LikenessError, match="wrong"):
        manifest.plan(wrong())  # type: ignore[arg-type]
    manifest.close()
    manifest = Manifest(path)
    assert len(list(manifest.records())) == 2


def test_a_new_plan_keeps_what_is_done_and_tries_again_what_failed(path: Path) -> None:
    manifest = Manifest(path)
    manifest.plan(jobs(3))
    first, second = manifest.take("a"), manifest.take("a")
    assert first and second
    manifest.done(first.number, Result(made=[{"kind": "x", "path": "y"}]), 1.5)
    manifest.failed(second.number, "no", 1.0)
    manifest.close()
    manifest = Manifest(path)
    planned = manifest.plan(jobs(4))
    assert (planned.jobs, planned.finished) == (4, 1)
    assert [r.state for r in manifest.records()] == [DONE, WAITING, WAITING, WAITING]
    assert next(manifest.records(DONE)).made == [{"kind": "x", "path": "y"}]
    assert manifest.plan(jobs(4, first=2)).jobs == 2  # jobs that are not asked for are not run


def test_a_failed_job_waits_for_its_time(path: Path) -> None:
    manifest = Manifest(path)
    manifest.plan(jobs(1))
    record = manifest.take("a")
    assert record and manifest.take("b") is None
    manifest.again(record.number, "busy", 3600)
    assert manifest.take("a") is None and manifest.counts()[WAITING] == 1
    manifest.again(record.number, "busy", -1)
    again = manifest.take("a")
    assert again and again.attempts == 2 and again.ticket != record.ticket


def test_a_job_that_takes_slots_down_is_given_up(path: Path) -> None:
    manifest = Manifest(path)
    manifest.plan(jobs(1))
    for loss in range(1, MOST_LOSSES + 1):
        record = manifest.take("a")
        assert record
        assert manifest.lost(record.number, "a", "gone") is (loss < MOST_LOSSES)
    (record,) = manifest.records(FAILED)
    assert record.reason == "gone"


def test_after_a_kill_a_running_job_goes_back_to_its_own_slot(path: Path) -> None:
    manifest = Manifest(path)
    manifest.plan(jobs(2))
    had = manifest.take("server a")
    assert had
    manifest.close()  # as a kill leaves it: the job is still running
    manifest = Manifest(path)
    manifest.plan(jobs(2))
    manifest.keep_tickets(["server a", "server b"])
    other = manifest.take("server b")
    assert other and other.number != had.number
    same = manifest.take("server a")
    assert same and (same.number, same.ticket) == (had.number, had.ticket)
    manifest.back(other.number)
    manifest.close()
    manifest = Manifest(path)
    manifest.keep_tickets(["server c"])  # server a is not there any more
    assert {manifest.take("server c").number, manifest.take("server c").number} == {1, 2}  # type: ignore[union-attr]


def _fill(path: Path) -> None:
    manifest = Manifest(path)
    manifest.plan(jobs(50))
    for _ in range(20):
        record = manifest.take("a")
        assert record
        manifest.done(record.number, Result(), 0.0)
    manifest.take("a")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_loses_no_job(path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fill, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    counts = Manifest(path).counts()
    assert counts == {WAITING: 30, RUNNING: 0, DONE: 20, FAILED: 0}


def test_a_damaged_manifest_is_named(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(LikenessError, match=r"manifest\.sqlite cannot be opened"):
        Manifest(path)

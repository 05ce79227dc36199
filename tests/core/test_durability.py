"""The checkpoint contract: kills at every save point, refusing disks, and proof that these tests can fail."""

import errno
import os
import resource
import signal
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from likeness.core import checkpoint, paths, tensorfile
from likeness.core.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from likeness.core.errors import LikenessError
from likeness.core.paths import SAVE_POINTS, write_atomic


def save(folder: Path, step: int) -> None:
    tensors = {"weight": torch.full((64, 257), float(step)), "exp_avg": torch.full((9,), step / 3)}
    save_checkpoint(checkpoint_path(folder, step), tensors, {"step": step})
    prune_checkpoints(folder, keep=2)


def check_contract(folder: Path, *, at_least: int) -> None:
    """The newest checkpoint is complete and right, every file that is there is complete, nothing else is."""
    newest = newest_checkpoint(folder)
    assert newest is not None
    tensors, state = load_checkpoint(newest)
    assert state["step"] >= at_least
    assert bool((tensors["weight"] == float(state["step"])).all())
    for path in folder.iterdir():
        assert path in list_checkpoints(folder), f"orphan {path.name}"
        load_checkpoint(path)


def kill_and_check(folder: Path, die_at, point: str, nth: int = 1) -> None:
    for step in (1, 2):
        save(folder, step)
    die_at(lambda: save(folder, 3), point, nth)
    check_contract(folder, at_least=3 if point in SAVE_POINTS[6:] else 2)
    save(folder, 4)  # and the run goes on
    check_contract(folder, at_least=4)
    assert len(list(folder.iterdir())) == 2


# --- T3: kill -9 at every named save point -------------------------------------------------------


@pytest.mark.parametrize("point", SAVE_POINTS)
def test_a_kill_at_a_save_point_loses_nothing(tmp_path, die_at, point):
    for nth in (1, 2, 3) if point == "writing" else (1,):
        kill_and_check(tmp_path / str(nth), die_at, point, nth)


@pytest.mark.parametrize("point", SAVE_POINTS[:8])
def test_a_kill_while_overwriting_leaves_the_old_or_the_new(tmp_path, die_at, point):
    path = tmp_path / "loss.csv"
    write_atomic(path, "old " * 5000)
    die_at(lambda: write_atomic(path, "new " * 5000), point)
    assert path.read_text() in ("old " * 5000, "new " * 5000)
    write_atomic(path, "last")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.csv"] and path.read_text() == "last"


# --- T4: the tests above have teeth --------------------------------------------------------------


@contextmanager
def in_place(path, *, verify=None):
    with path.open("wb") as file:
        yield file
        paths.save_point("written")


def test_writing_in_place_is_caught(tmp_path, die_at, monkeypatch):
    monkeypatch.setattr(paths, "atomic_writer", in_place)
    with pytest.raises((AssertionError, LikenessError)):
        kill_and_check(tmp_path, die_at, "writing", 2)


def test_leaving_temporary_files_is_caught(tmp_path, die_at, monkeypatch):
    monkeypatch.setattr(paths, "remove_partials", lambda folder: None)
    with pytest.raises(AssertionError, match="orphan"):
        kill_and_check(tmp_path, die_at, "writing")


def test_pruning_before_saving_is_caught(tmp_path, die_at, monkeypatch):
    kept = checkpoint.save_checkpoint

    def prune_first(path, tensors, state):
        for old in list_checkpoints(path.parent) if path.parent.is_dir() else []:
            old.unlink()
        kept(path, tensors, state)

    monkeypatch.setitem(globals(), "save_checkpoint", prune_first)
    with pytest.raises(AssertionError):
        kill_and_check(tmp_path, die_at, "written")


def check_torn_is_refused(folder: Path) -> None:
    save(folder, 1)
    save(folder, 2)
    path = checkpoint_path(folder, 2)
    data = path.read_bytes()
    path.write_bytes(data[:-4096] + bytes(4096))  # what a power cut leaves of a file that was not synced
    assert newest_checkpoint(folder) == checkpoint_path(folder, 1)


def test_a_torn_file_is_refused(tmp_path):
    check_torn_is_refused(tmp_path)


def test_accepting_a_torn_file_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_digest", lambda tensors, metadata: "same")
    with pytest.raises(AssertionError):
        check_torn_is_refused(tmp_path)


def order_of_calls(folder: Path, monkeypatch) -> list[str]:
    calls = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle):
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def spy_replace(self, target):
        calls.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    save(folder, 1)
    return calls


RIGHT_ORDER = ["sync file", "replace", "sync folder"]


def test_content_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    assert order_of_calls(tmp_path, monkeypatch) == RIGHT_ORDER


@pytest.mark.parametrize("step", ["_sync", "sync_folder"])
def test_a_missing_sync_is_caught(tmp_path, monkeypatch, step):
    monkeypatch.setattr(paths, step, lambda target: None)
    assert order_of_calls(tmp_path, monkeypatch) != RIGHT_ORDER


# --- T6: a disk that refuses ---------------------------------------------------------------------

CAUSES = {
    errno.ENOSPC: "disk is full",
    errno.EDQUOT: "quota",
    errno.EACCES: "permission denied",
    errno.EROFS: "read-only",
    errno.EIO: "input/output error",
}


def check_refusal(folder: Path, cause: str) -> None:
    """The save failed naming file and cause, the checkpoint before is intact, no temporary file stays."""
    with pytest.raises(LikenessError, match=cause) as caught:
        save(folder, 2)
    assert "step_0000000" in str(caught.value)
    assert not [p for p in folder.iterdir() if p.suffix != ".safetensors"]
    assert load_checkpoint(checkpoint_path(folder, 1))[1] == {"step": 1}


@pytest.mark.parametrize("code", CAUSES)
@pytest.mark.parametrize("point", SAVE_POINTS[:8])
def test_an_error_at_a_save_point(tmp_path, monkeypatch, point, code):
    save(tmp_path, 1)

    def refuse(name):
        if name == point:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(paths, "save_point", refuse)
        check_refusal(tmp_path, CAUSES[code])
    save(tmp_path, 3)
    check_contract(tmp_path, at_least=3)


@pytest.mark.parametrize("code", CAUSES)
@pytest.mark.parametrize("call", ["open", "fsync", "fdopen"])
def test_an_error_of_a_system_call(tmp_path, monkeypatch, call, code):
    save(tmp_path, 1)

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    check_refusal(tmp_path, CAUSES[code])


@pytest.mark.parametrize("code", CAUSES)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_error_at_every_write(tmp_path, monkeypatch, nth, code):
    save(tmp_path, 1)
    fdopen = os.fdopen

    class Full:
        def __init__(self, file):
            self.file, self.writes = file, 0

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, data):
            self.writes += 1
            if self.writes == nth:
                raise OSError(code, os.strerror(code))
            return self.file.write(data)

    monkeypatch.setattr(os, "fdopen", lambda *args: Full(fdopen(*args)))
    check_refusal(tmp_path, CAUSES[code])


def test_a_real_limit_of_the_system(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        check_refusal(tmp_path, "larger than this disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_rename_that_fails(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refuse(self, target):
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(Path, "replace", refuse)
    check_refusal(tmp_path, "permission denied")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(LikenessError, match="runs"):
        write_atomic(tmp_path / "runs" / "a.json", "{}")


def test_a_folder_with_the_files_name(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(LikenessError, match=r"a\.json"):
        write_atomic(tmp_path / "a.json", "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_bytes_that_the_disk_changed_are_noticed(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def lie(name):
        if name == "synced":
            partial = next(p for p in tmp_path.iterdir() if p.name.endswith(paths.PARTIAL_SUFFIX))
            partial.write_bytes(partial.read_bytes()[:-1])

    monkeypatch.setattr(paths, "save_point", lie)
    check_refusal(tmp_path, "other bytes")


def test_an_interrupt_while_writing_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(name):
        if name == "writing":
            raise KeyboardInterrupt

    monkeypatch.setattr(paths, "save_point", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tensorfile.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_living_writers_file_is_not_an_orphan(tmp_path):
    with paths.atomic_writer(tmp_path / "a.json") as file:
        file.write(b"{}")
        write_atomic(tmp_path / "b.json", "{}")
        paths.remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_files_are_readable_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a.json", "{}")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644

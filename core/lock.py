"""Locks that die with their holder: the operating system's own, so that no process id has to be guessed."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import LikenessError, RunLocked

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_FAR_BYTE = 1 << 30  # Windows locks bytes against reading: lock one past the text, so that others can read it
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this handle alone; False when another handle, here or elsewhere, holds it.

    A file system without locks raises the OSError it gives.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(_FAR_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def still_named(file: IO[Any], path: Path) -> bool:
    """Whether ``path`` is this open file: it may have been removed between opening and locking."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder (made when missing) against every other process and thread.

    Raises RunLocked, naming the holder, when it is held. A dead holder's lock is reclaimed: the system
    let go of it when the process ended.
    """
    file, path = _acquire(folder)
    try:
        yield
    finally:
        _release(file, path)


def is_locked(folder: Path) -> bool:
    """Whether somebody holds ``folder`` now. What a dead holder left does not count."""
    try:
        with (folder / LOCK_NAME).open("r+", encoding="utf-8") as file:
            return not try_lock(file)
    except OSError:  # no lock file, or a disk without locks
        return False


def _acquire(folder: Path) -> tuple[IO[str], Path]:
    path = folder / LOCK_NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # the folder went away between the two lines
        except OSError as error:
            raise LikenessError(
                f"The run folder {folder} cannot be locked: {error.strerror or error}",
                fix="Choose a folder that can be written",
            ) from error
        try:
            _lock_or_raise(file, path)
        except BaseException:
            file.close()
            raise
        if still_named(file, path):
            _sign(file, path)
            return file, path
        file.close()  # the last holder removed the file while we waited at its door


def _lock_or_raise(file: IO[str], path: Path) -> None:
    try:
        free = try_lock(file)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        log.warning("%s: this file system has no locks; do not run twice in this folder", path.parent)
        return
    if not free:
        file.seek(0)
        raise RunLocked(
            f"The run folder {path.parent} is in use by {_holder(file.read())}",
            fix="Wait until that run ends, or stop it",
        )


def _sign(file: IO[str], path: Path) -> None:
    file.seek(0)
    if before := file.read():
        log.warning("%s: went on after %s ended without releasing it", path.parent, _holder(before))
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}, file)
    file.flush()


def _holder(text: str) -> str:
    try:
        note = json.loads(text)
        return f"process {note['pid']} on {note['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has locked and not yet signed


def _release(file: IO[str], path: Path) -> None:
    if fcntl is not None:  # removed while still held: a waiter sees that its handle has lost the name
        with suppress(FileNotFoundError):
            path.unlink()
        file.close()
        return
    file.close()  # Windows removes no open file; a waiter that has it open keeps it, and rightly so
    with suppress(OSError):
        path.unlink()

"""Names that stay where they belong, and files that are complete or not there."""

from __future__ import annotations

import errno
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from . import lock
from .errors import LikenessError

if sys.platform == "darwin":
    import fcntl

# --- names ---------------------------------------------------------------------------------------

MAX_NAME_BYTES = 120  # of the 255 that file systems allow: the rest is for suffixes and step numbers
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]|conin\$|conout\$")  # by Windows


def safe_name(text: str, *, what: str) -> str:
    """``text`` as one file name that every system takes, NFC-normalised; ``what`` names it in the error.

    Raises LikenessError rather than mending: a name that was changed silently is a file not found later.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if problem := _name_problem(name):
        raise LikenessError(
            f"The {what} {text[:80]!r} cannot be a file name: {problem}",
            expected="letters, digits, spaces, '-', '_' and '.'",
            fix=f"Choose another {what}",
        )
    return name


def slug(text: str, *, default: str = "subject") -> str:
    """Any text, such as a folder's name, as a safe name: what no system takes becomes ``_``."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    name = " ".join(_FORBIDDEN.sub("_", unicodedata.normalize("NFC", text)).split()).strip(" ._")
    name = name.encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip(" ._")
    if _is_reserved(name):
        name = f"{name.split('.')[0].strip()}_"
    return name or default


def inside(root: Path, relative: str, *, what: str) -> Path:
    """The resolved path of ``relative`` under ``root``, wherever symbolic links lead.

    Both kinds of slash separate on every system, so that a graph means the same everywhere. Raises
    LikenessError for what is absolute, climbs, or leaves ``root`` through a link.
    """
    problem = _relative_problem(relative)
    if not problem:
        try:
            top = root.resolve()
            path = (top / relative.replace("\\", "/")).resolve()
            if path.is_relative_to(top):
                return path
            problem = "it leaves the folder"
        except (OSError, ValueError, RuntimeError) as error:  # too long, not encodable, a loop of links
            problem = str(getattr(error, "strerror", None) or error)
    raise LikenessError(
        f"The {what} {relative[:80]!r} is not a path inside {root}: {problem}",
        expected="a relative path without '..'",
        fix=f"Choose another {what}, inside {root}",
    )


def _relative_problem(relative: str) -> str:
    windows = PureWindowsPath(relative)
    parts = re.split(r"[/\\]", relative)
    problems = {
        "it is empty": not relative.strip(),
        "it has control characters": bool(re.search(r"[\x00-\x1f]", relative)),
        "it is absolute": PurePosixPath(relative).is_absolute() or bool(windows.root),
        "it has a ':' (a drive or a stream)": ":" in relative,
        "it climbs with '..'": any(".." in part and not part.strip(". ") for part in parts),
        "it uses a name that Windows reserves": any(_is_reserved(part) for part in parts),
        "it is too long": len(relative) > 2000
        or any(len(part.encode("utf-8", "replace")) > 255 for part in parts),
    }
    return next((problem for problem, holds in problems.items() if holds), "")


def _name_problem(name: str) -> str:
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "it has half a character (a lone surrogate)"
    problems = {
        "it is empty": not name,
        "it is only dots": bool(name) and not name.strip("."),
        "it has a character that file names cannot have": bool(_FORBIDDEN.search(name)),
        "it starts with a dot or ends with one": name.startswith(".") or name.endswith((".", " ")),
        "Windows reserves it": _is_reserved(name),
        f"it is longer than {MAX_NAME_BYTES} bytes": length > MAX_NAME_BYTES,
    }
    return next((problem for problem, holds in problems.items() if holds), "")


def _is_reserved(name: str) -> bool:
    return bool(_RESERVED.fullmatch(name.split(".")[0].strip().lower()))


# --- files ---------------------------------------------------------------------------------------

PARTIAL_SUFFIX = ".likeness-partial"

SAVE_POINTS = (
    "before temp",
    "temp created",
    "writing",
    "written",
    "synced",
    "verified",
    "replaced",
    "folder synced",
    "pruning",
    "pruned",
)


def save_point(name: str) -> None:
    """A place where a kill or a full disk must do no harm. It does nothing; tests replace it with harm."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing (``atomic_writer``)."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_writer(path) as file:
        file.write(data)
        save_point("writing")


@contextmanager
def atomic_writer(path: Path, *, verify: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A file that gets its name only when it is complete: written beside, synced, verified, renamed.

    ``verify`` reads the finished temporary file and raises if it is not right. Whatever fails, the file that
    was there before is intact and no temporary file stays; a killed process's are removed by the next
    write in that folder. Raises LikenessError naming path and cause when the disk refuses.
    """
    try:
        save_point("before temp")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(path.parent)
        file, partial = _create_partial(path)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        with file:
            save_point("temp created")
            yield file
            save_point("written")
            _sync(file)
            save_point("synced")
            if verify is not None:
                verify(partial)
            save_point("verified")
            if os.name == "posix":  # renamed under its lock, so that nobody takes it for an orphan
                partial.replace(path)
        if os.name != "posix":
            partial.replace(path)  # Windows renames no open file
        save_point("replaced")
        sync_folder(path.parent)
        save_point("folder synced")
    except BaseException as error:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in ``folder``. A living writer's file is locked, and stays."""
    with os.scandir(folder) as entries:
        partials = [Path(e.path) for e in entries if e.name.endswith(PARTIAL_SUFFIX)]
    for partial in partials:
        with suppress(OSError), partial.open("r+b") as file:  # Windows: open elsewhere, so it is not ours
            if lock.try_lock(file) and os.name == "posix":
                partial.unlink(missing_ok=True)
        if os.name != "posix":
            with suppress(OSError):
                partial.unlink(missing_ok=True)


_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this disk or account allows",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOTDIR: "a part of its folder's path is a file",
    errno.EISDIR: "a folder has this name",
    errno.ENAMETOOLONG: "the name is too long",
}
_FIXES = {
    errno.ENOSPC: "Free some space and run again; the work goes on from the last checkpoint",
    errno.EDQUOT: "Free some space and run again; the work goes on from the last checkpoint",
    errno.EIO: "Check the disk, or choose a folder on another one",
}


def write_error(path: Path, error: OSError) -> LikenessError:
    """The one error of a failed write: which file, why, and that nothing half-written stayed."""
    code = error.errno or 0
    cause = _CAUSES.get(code, error.strerror or str(error))
    return LikenessError(
        f"Could not write {path}: {cause}",
        fix=_FIXES.get(code, "Choose a folder that can be written; nothing half-written was left"),
    )


def _create_partial(path: Path) -> tuple[BinaryIO, Path]:
    while True:
        partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        handle = os.open(partial, flags, 0o666)  # mkstemp's files are for the owner alone
        try:
            file = os.fdopen(handle, "wb")
        except BaseException:
            os.close(handle)
            partial.unlink()
            raise
        if os.name != "posix":
            return file, partial
        with suppress(OSError):  # no locks here: then nobody else's clean-up can take it for an orphan either
            if not lock.try_lock(file) or not lock.still_named(file, partial):
                file.close()  # a clean-up came between creating and locking
                continue
        return file, partial


def _sync(file: BinaryIO) -> None:
    file.flush()
    if sys.platform == "darwin":  # where fsync alone stops at the drive's cache
        fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
    else:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` last through a power cut."""
    if os.name != "posix":
        return  # Windows cannot open a folder; NTFS journals the rename
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks sync no folders
            raise
    finally:
        os.close(handle)

"""Captions beside photos: ``<stem>.txt``, ``captions.json``, ``metadata.jsonl``; {} means the subject."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError

MAX_FILE_BYTES = 16 << 20  # thousands of captions; a larger file is something else
_TEXT_SUFFIXES = (".txt", ".caption")  # kohya's two
_TABLES = ("captions.json", "metadata.jsonl")  # the second is Hugging Face's image folder
_NAME_KEYS = ("file_name", "file", "image", "path")
_TEXT_KEYS = ("text", "caption", "prompt")


class Captions:
    """The captions of one folder tree, each file read once. ``warnings`` gathers what was passed over.

    Only ``files`` are opened: the loader left out those that are links to somewhere else.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        self.root = root
        self.files = frozenset(files)
        self.warnings: list[str] = []
        self._tables: dict[Path, dict[str, str]] = {}

    def of(self, photo: Path) -> str | None:
        """A photo's caption: its own text file first, then the nearest table upwards to the root.

        Raises LikenessError naming the file when one is not text or not well formed.
        """
        for suffix in _TEXT_SUFFIXES:
            beside = photo.with_suffix(suffix)
            if beside in self.files:
                return self._clean(read_text(beside), beside)
        for folder in (photo.parent, *photo.parent.parents):
            table = self._table(folder)
            keys = (photo.relative_to(folder).as_posix(), photo.name, photo.stem)
            if key := next((key for key in keys if key in table), None):
                return self._clean(table[key], folder / key)
            if folder == self.root:
                return None
        return None

    def _clean(self, text: str, where: Path) -> str | None:
        caption = " ".join(text.split())
        if not caption:
            self.warnings.append(f"The caption in {where} is empty")
        return caption or None

    def _table(self, folder: Path) -> dict[str, str]:
        if folder not in self._tables:
            paths = [folder / name for name in _TABLES if folder / name in self.files]
            self._tables[folder] = {k: v for path in paths[::-1] for k, v in self._read(path).items()}
        return self._tables[folder]

    def _read(self, path: Path) -> dict[str, str]:
        text = read_text(path)
        try:
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            else:
                rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LikenessError(f"{path} is not well-formed JSON: {error}") from error
        items = rows.items() if isinstance(rows, Mapping) else _named(path, rows)
        return {name: self._caption(path, name, value) for name, value in items}

    def _caption(self, path: Path, name: str, value: Any) -> str:
        """A caption as text, as an object with one, or as several, of which the first is taken."""
        if isinstance(value, Mapping):
            value = next((value[key] for key in (*_TEXT_KEYS, "0") if key in value), None)
        if isinstance(value, list) and value:
            if len(value) > 1:
                self.warnings.append(f"{path} has {len(value)} captions for {name}: the first is used")
            value = value[0]
        if not isinstance(value, str):
            raise LikenessError(
                f"{path} has no caption for {name!r}",
                expected='{"photo.jpg": "a photo of {} on the beach", ...}',
            )
        return value


def read_text(path: Path) -> str:
    """A small UTF-8 file, with or without a byte order mark; LikenessError naming it otherwise."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise LikenessError(f"{path} is too large for captions", expected="at most 16 MiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LikenessError(f"Could not read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LikenessError(f"{path} is not UTF-8 text", fix="Save it again as UTF-8") from error
    if "\x00" in text:
        raise LikenessError(f"{path} is not text: it has null characters", fix="Save it again as UTF-8")
    return text


def _named(path: Path, rows: Any) -> Iterable[tuple[str, Any]]:
    """(file name, row) of a list of objects."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise LikenessError(f"{path} holds no captions", expected="an object, or a list of objects")
    for number, row in enumerate(rows, 1):
        name = next((row[key] for key in _NAME_KEYS if isinstance(row.get(key), str)), None)
        if name is None:
            raise LikenessError(f"{path}: entry {number} names no file", expected='"file_name"')
        yield name, row

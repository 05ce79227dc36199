"""A dataset with a split test set: many subjects, and for every test photo the captions that describe it.

The layout of PDST ("Towards More Accurate Personalized Image Generation", section 4 and appendix 11):

    ROOT/<subject>/train/*.jpg        what is learned
    ROOT/<subject>/test/*.jpg         what judges
    ROOT/<subject>/captions.json      {"00.jpg": {"0": "A {} on a rock.", "1": ...}, ...} of the test photos
    ROOT/<subject>/meta.json          {"class": "dog", "living": true}

``{}`` stands for the subject. ``captions.csv`` (photo, number, caption) may stand in the place of the JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..core.hashing import hash_json
from ..core.paths import slug, write_atomic
from ..core.tables import csv_text
from .captions import read_text
from .folder import load_folder, natural_key
from .subject import Subject

CAPTIONS_JSON, CAPTIONS_CSV, META = "captions.json", "captions.csv", "meta.json"
SLOT = "{}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One subject of a dataset. ``captions[i]`` are those of ``subject.held_out[i]``."""

    subject: Subject
    captions: tuple[tuple[str, ...], ...]
    living: bool | None = None
    folder: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def split(self) -> Subject:
        """The subject for a trainer and its monitor: each test photo with its first caption."""
        held_out = [
            replace(photo, caption=texts[0] if texts else None)
            for photo, texts in zip(self.subject.held_out, self.captions, strict=True)
        ]
        return replace(self.subject, held_out=tuple(held_out))

    @property
    def content_hash(self) -> str:
        digest: str = hash_json([self.subject.content_hash, self.captions])
        return digest


@dataclass(frozen=True, kw_only=True)
class Dataset:
    name: str
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def content_hash(self) -> str:
        digest: str = hash_json([entry.content_hash for entry in self.entries])
        return digest

    def num_captions(self) -> int:
        return sum(len(texts) for entry in self.entries for texts in entry.captions)

    def entry(self, name: str) -> Entry:
        """The subject of this name. LikenessError naming those that there are."""
        found = next((entry for entry in self.entries if entry.name == name), None)
        if found is None:
            raise LikenessError(
                f"The dataset {self.name} has no subject {name!r}",
                expected=f"one of {', '.join(entry.name for entry in self.entries)}",
            )
        return found


def load_dataset(root: Path, *, only: Sequence[str] = (), captioned: bool = True) -> Dataset:
    """Every subject below ``root``, or those named in ``only``, in natural order.

    ``captioned`` False admits test photos without captions: what a builder starts from. Raises LikenessError
    naming the folder or file for what has another layout; a caption without {} is refused, since it could
    not name the learned subject.
    """
    folders = _folders(Path(root))
    known = {folder.name for folder in folders}
    if missing := [name for name in only if name not in known]:
        raise LikenessError(
            f"{root} has no subject {missing[0]!r}", expected=f"one of {_some(sorted(known))}"
        )
    entries = [_entry(f, captioned) for f in folders if not only or f.name in only]
    warnings = [note for entry in entries for note in entry.subject.warnings]
    return Dataset(name=slug(Path(root).resolve().name), entries=tuple(entries), warnings=tuple(warnings))


def with_edits(dataset: Dataset, edits: str) -> Dataset:
    """The dataset with captions replaced: lines of ``subject/photo number: caption``.

    A caption left empty is removed; a number beyond the last is added. LikenessError names a line that fits
    nothing.
    """
    entries = list(dataset.entries)
    for line in filter(None, (line.strip() for line in edits.splitlines())):
        where, colon, text = line.partition(":")
        place, _, number = where.strip().rpartition(" ")
        name, _, photo = place.strip().rpartition("/")
        if not (colon and name and number.isdigit()):
            raise LikenessError(
                f"{line[:80]!r} is no edit of a caption", expected="subject/photo.jpg 3: A {} on a rock."
            )
        index = entries.index(dataset_entry := _named(entries, name, dataset))
        entries[index] = _edited(dataset_entry, photo, int(number), text.strip())
    return replace(dataset, entries=tuple(entries))


def save_captions(entry: Entry, folder: Path | None = None) -> Path:
    """Write ``captions.json`` as the paper has it, and the same as ``captions.csv``, for any editor."""
    target = folder or entry.folder
    if target is None:
        raise LikenessError(f"The subject {entry.name} has no folder to keep its captions in")
    table = {
        photo.path.name: {str(n): text for n, text in enumerate(texts)}
        for photo, texts in zip(entry.subject.held_out, entry.captions, strict=True)
    }
    lines = [(photo, n, text) for photo, texts in table.items() for n, text in texts.items()]
    write_atomic(target / CAPTIONS_CSV, csv_text([("photo", "number", "caption"), *lines]))
    write_atomic(target / CAPTIONS_JSON, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    return target / CAPTIONS_JSON


def listing(dataset: Dataset) -> str:
    """Every caption on a line of its own, in the form that ``with_edits`` reads back."""
    return "\n".join(
        f"{entry.name}/{photo.path.name} {number}: {text}"
        for entry in dataset.entries
        for photo, texts in zip(entry.subject.held_out, entry.captions, strict=True)
        for number, text in enumerate(texts)
    )


# --- reading ------------------------------------------------------------------------------------------


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise LikenessError(f"There is no dataset folder {root}", expected="ROOT/<subject>/train and test")
    folders = [p for p in root.iterdir() if (p / "train").is_dir() and not p.name.startswith(".")]
    if not folders:
        raise LikenessError(
            f"{root} has no subjects", expected="folders with train/ and test/ in them, as PDST has"
        )
    return sorted(folders, key=lambda p: natural_key(p.relative_to(root)))


def _entry(folder: Path, captioned: bool) -> Entry:
    meta = _meta(folder)
    subject = load_folder(folder, class_noun=meta["class"], name=slug(folder.name))
    if not subject.held_out:
        raise LikenessError(f"{folder} has no test photos", expected=f"pictures in {folder / 'test'}")
    # captions.json tells of test photos, and train/00.jpg may have the name of one
    photos = [p if _has_text(p.path) else replace(p, caption=None) for p in subject.photos]
    held_out = [replace(p, caption=None) for p in subject.held_out]
    subject = replace(subject, photos=tuple(photos), held_out=tuple(held_out))
    table = _table(folder)
    captions = tuple(_captions_of(photo.path, table, folder, captioned) for photo in subject.held_out)
    return Entry(subject=subject, captions=captions, living=meta.get("living"), folder=folder)


def _has_text(photo: Path) -> bool:
    """Whether a photo has a caption of its own beside it."""
    return any(photo.with_suffix(suffix).is_file() for suffix in (".txt", ".caption"))


def _meta(folder: Path) -> Mapping[str, Any]:
    meta = _json(folder / META)
    if not isinstance(meta, dict) or not isinstance(meta.get("class"), str) or not meta["class"].strip():
        raise LikenessError(f"{folder / META} names no class", expected='{"class": "dog"}')
    return meta


def _table(folder: Path) -> dict[str, tuple[str, ...]]:
    """Captions by file name; of JSON and CSV the one that was written last, so that either can be edited."""
    table, sheet = folder / CAPTIONS_JSON, folder / CAPTIONS_CSV
    written = [path for path in (table, sheet) if path.is_file()]
    if not written:
        return {}
    if max(written, key=lambda path: path.stat().st_mtime_ns) == sheet:
        return _csv_rows(sheet)
    return {Path(str(k)).name: tuple(v) for k, v in _json_rows(table)}


def _json_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    rows = _json(path)
    if not isinstance(rows, dict):
        raise LikenessError(f"{path} is not a table of captions", expected='{"00.jpg": {"0": "A {} ..."}}')
    for name, texts in rows.items():
        values = texts if isinstance(texts, list) else None
        if isinstance(texts, dict):
            values = [texts[key] for key in sorted(texts, key=lambda k: (len(str(k)), str(k)))]
        elif isinstance(texts, str):
            values = [texts]
        if values is None or not all(isinstance(text, str) for text in values):
            raise LikenessError(f"{path}: the captions of {name!r} are not texts")
        yield name, values


def _csv_rows(path: Path) -> dict[str, tuple[str, ...]]:
    table: dict[str, dict[int, str]] = {}
    for line, row in enumerate(csv.DictReader(io.StringIO(read_text(path))), 2):
        photo, number, caption = (row.get(key) for key in ("photo", "number", "caption"))
        if not photo or caption is None or not str(number).isdigit():
            raise LikenessError(f"{path}, line {line} is no caption", expected="columns photo,number,caption")
        table.setdefault(Path(photo).name, {})[int(str(number))] = caption
    return {photo: tuple(texts[n] for n in sorted(texts)) for photo, texts in table.items()}


def _captions_of(
    photo: Path, table: Mapping[str, tuple[str, ...]], folder: Path, captioned: bool
) -> tuple[str, ...]:
    texts = table.get(photo.name) or table.get(photo.stem) or ()
    texts = tuple(clean for text in texts if (clean := " ".join(text.split())))
    if captioned and not texts:
        raise LikenessError(
            f"The test photo {photo} has no caption in {folder / CAPTIONS_JSON}",
            fix="Write some, or let Caption Dataset make them",
        )
    if without := [text for text in texts if SLOT not in text]:
        raise LikenessError(
            f"A caption of {photo} does not say where the subject is: {without[0][:80]!r}",
            expected="{} in the place of the subject",
        )
    return texts


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise LikenessError(f"{path} is not well-formed JSON: {error}") from error


# --- editing ------------------------------------------------------------------------------------------


def _named(entries: Sequence[Entry], name: str, dataset: Dataset) -> Entry:
    return next((entry for entry in entries if entry.name == name), None) or dataset.entry(name)


def _edited(entry: Entry, photo: str, number: int, text: str) -> Entry:
    names = [p.path.name for p in entry.subject.held_out]
    if photo not in names:
        raise LikenessError(f"{entry.name} has no test photo {photo!r}", expected=f"one of {_some(names)}")
    if text and SLOT not in text:
        raise LikenessError(
            f"The caption {text[:80]!r} does not say where the subject is",
            expected="{} in the place of the subject",
        )
    captions = list(entry.captions)
    texts = list(captions[names.index(photo)])
    if number < len(texts):
        texts[number : number + 1] = [text] if text else []
    elif text:
        texts.append(text)
    captions[names.index(photo)] = tuple(texts)
    return replace(entry, captions=tuple(captions))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")

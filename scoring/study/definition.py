"""A study, as its JSON file defines it: methods, their pictures, the subjects' photos, and the prompts.

    {
      "format": "likeness study 1",
      "title": "Five subjects, five activities",
      "seed": 0,
      "raters": 7,
      "questions_per_rater": null,
      "methods": {"InstructBooth": "images/instructbooth", "DreamBooth": "images/dreambooth"},
      "compare": "InstructBooth",
      "subjects": {"cat": "photos/cat"},
      "items": [{"subject": "cat", "prompt": "a cat playing soccer", "images": "cat/playing soccer"}]
    }

``images`` is a picture or a folder of pictures below every method's folder; folders are paired by sorted
name, so they hold equally many. Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.errors import LikenessError
from ...core.paths import write_atomic

FORMAT = "likeness study 1"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
MAX_PHOTOS = 4  # of a subject beside a question: a paper's reference is one, more do not fit a phone


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt for one subject; ``images`` is its place below every method's folder."""

    subject: str
    prompt: str
    images: str


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A study's file, checked in itself. ``Study`` has found its pictures too."""

    title: str
    methods: Mapping[str, str]
    subjects: Mapping[str, str]
    items: tuple[Item, ...]
    compare: str = ""  # the method that is set against each of the others; default: the first
    raters: int = 7  # of each question (InstructBooth, section 5.3: "seven independent raters")
    questions_per_rater: int | None = None  # None: each rater answers all
    seed: int = 0

    def __post_init__(self) -> None:
        problem = next((told for told, wrong in self._problems().items() if wrong), "")
        if problem:
            raise LikenessError(f"The study {self.title!r} cannot be held: {problem}", fix="Edit its file")

    @property
    def target(self) -> str:
        return self.compare or next(iter(self.methods))

    def _problems(self) -> dict[str, bool]:
        unknown = sorted({item.subject for item in self.items} - set(self.subjects))
        per_rater = self.questions_per_rater
        places = [(item.subject, item.prompt, item.images) for item in self.items]
        return {
            "it has no title": not self.title.strip(),
            "it has no methods": not self.methods,
            "it has no items": not self.items,
            f"compare names {self.compare!r}, which is none of its methods": bool(self.compare)
            and self.compare not in self.methods,
            f"raters is {self.raters}; it takes 1 to 99": not 1 <= self.raters <= 99,
            f"questions_per_rater is {per_rater}; it takes 1 or more, or null": per_rater is not None
            and per_rater < 1,
            f"items name the subject {unknown[0] if unknown else ''!r}, which has no photos": bool(unknown),
            "an item has no prompt": any(not item.prompt.strip() for item in self.items),
            "the same item is there twice": len(set(places)) < len(places),
        }

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A file, and the hash of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of every method for the same item: what is judged, and compared."""

    subject: str
    prompt: str
    pictures: Mapping[str, Picture]  # by method


@dataclass(frozen=True, kw_only=True)
class Study:
    """A definition with all its pictures found."""

    path: Path
    definition: Definition
    photos: Mapping[str, tuple[Picture, ...]]  # by subject
    samples: tuple[Sample, ...]

    @property
    def ballots_path(self) -> Path:
        """Where the answers are kept: beside the definition."""
        return self.path.with_suffix(".ballots.sqlite")

    @property
    def pictures(self) -> list[Picture]:
        shown = [p for photos in self.photos.values() for p in photos]
        return shown + [p for sample in self.samples for p in sample.pictures.values()]


# --- reading --------------------------------------------------------------------------------------

_TYPES: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "methods": (dict,),
    "subjects": (dict,),
    "items": (list,),
    "compare": (str,),
    "raters": (int,),
    "questions_per_rater": (int, type(None)),
    "seed": (int,),
}
_REQUIRED = ("title", "methods", "subjects", "items")


def read_definition(path: Path) -> Definition:
    """Raises LikenessError naming the file and what in it is wrong."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LikenessError(
            f"There is no study {path}", fix="Make one with `likeness study create`"
        ) from error
    except (OSError, ValueError) as error:
        raise _wrong(path, f"it cannot be read as JSON ({error})") from error
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise _wrong(path, f'it lacks "format": "{FORMAT}"')
    _check_types(path, record)
    try:
        items = tuple(Item(**item) for item in record.pop("items"))
    except TypeError as error:
        raise _wrong(path, "an item is not an object of subject, prompt and images") from error
    if not all(isinstance(value, str) for item in items for value in asdict(item).values()):
        raise _wrong(path, "an item's subject, prompt and images must be texts")
    return Definition(items=items, **record)


def _check_types(path: Path, record: Mapping[str, Any]) -> None:
    for name in _REQUIRED:
        if name not in record:
            raise _wrong(path, f"{name} is missing")
    for name, value in record.items():
        if name not in _TYPES:
            raise _wrong(path, f"{name} is not known", f"{', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            kinds = " or ".join(kind.__name__ for kind in _TYPES[name])
            raise _wrong(path, f"{name} is {type(value).__name__}", kinds)
    for name in ("methods", "subjects"):
        if not all(isinstance(v, str) and k.strip() for k, v in record[name].items()):
            raise _wrong(path, f"{name} must give each name a folder")


def _wrong(path: Path, problem: str, expected: str = "") -> LikenessError:
    return LikenessError(f"{path} is not a study: {problem}", expected=expected, fix="See docs/study.md")


def open_study(path: Path) -> Study:
    """The definition with every picture found and hashed. LikenessError names what is missing."""
    definition = read_definition(path)
    root = path.parent
    photos = {
        name: _pictures(root / folder, f"the photos of {name}")[:MAX_PHOTOS]
        for name, folder in definition.subjects.items()
    }
    samples = [sample for item in definition.items for sample in _samples(root, definition, item)]
    return Study(path=path, definition=definition, photos=photos, samples=tuple(samples))


def _samples(root: Path, definition: Definition, item: Item) -> list[Sample]:
    found = {
        method: _pictures(root / folder / item.images, f"{method}'s pictures of {item.prompt!r}")
        for method, folder in definition.methods.items()
    }
    counts = {method: len(pictures) for method, pictures in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise LikenessError(
            f"The methods have different numbers of pictures of {item.prompt!r} ({item.subject}): {told}",
            expected="the same number of each, so that every picture has its counterpart",
            fix="Draw the missing ones or remove the surplus",
        )
    rows = zip(*found.values(), strict=True)
    return [
        Sample(subject=item.subject, prompt=item.prompt, pictures=dict(zip(found, row, strict=True)))
        for row in rows
    ]


def _pictures(place: Path, what: str) -> tuple[Picture, ...]:
    if place.is_dir():
        paths = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    else:
        paths = [place] if place.is_file() and place.suffix.lower() in SUFFIXES else []
    if not paths:
        raise LikenessError(f"There are no pictures at {place}", expected=f"{what}, as PNG, JPEG or WebP")
    try:
        return tuple(Picture(path=p, sha256=hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths)
    except OSError as error:
        raise LikenessError(f"{error.filename} cannot be read: {error.strerror}") from error


# --- making ---------------------------------------------------------------------------------------


def draft(
    path: Path,
    *,
    methods: Mapping[str, Path],
    photos: Path,
    title: str,
    compare: str = "",
    raters: int = 7,
    questions_per_rater: int | None = None,
    seed: int = 0,
) -> Study:
    """Write a definition from folders laid out METHOD/SUBJECT/PROMPT/*.png and PHOTOS/SUBJECT/*.png.

    A prompt is the text of ``prompt.txt`` in its folder, else the folder's name with spaces for ``_``. The
    first method's folders say which items there are. Raises LikenessError, and writes nothing, when the file
    exists or the study cannot be held.
    """
    if path.exists():
        raise LikenessError(f"{path} is already there", fix="Choose another name, or remove it first")
    if not methods:
        raise LikenessError("There are no methods to study", fix="Name folders with --method NAME=FOLDER")
    first = next(iter(methods.values()))
    items = tuple(_items(first))
    subjects = {item.subject: _near(photos / item.subject, path) for item in items}
    definition = Definition(
        title=title,
        methods={name: _near(folder, path) for name, folder in methods.items()},
        subjects=subjects,
        items=items,
        compare=compare or next(iter(methods)),
        raters=raters,
        questions_per_rater=questions_per_rater,
        seed=seed,
    )
    write_atomic(path, definition.to_json())
    try:
        return open_study(path)
    except LikenessError:
        path.unlink()
        raise


def _items(folder: Path) -> Sequence[Item]:
    if not folder.is_dir():
        raise LikenessError(f"There is no folder {folder}", expected="SUBJECT/PROMPT/*.png inside it")
    places = sorted(p for p in folder.glob("*/*") if p.is_dir())
    if not places:
        raise LikenessError(f"{folder} has no folders of pictures", expected="SUBJECT/PROMPT/*.png inside it")
    return [
        Item(subject=place.parent.name, prompt=_prompt(place), images=f"{place.parent.name}/{place.name}")
        for place in places
    ]


def _prompt(folder: Path) -> str:
    told = folder / "prompt.txt"
    text = told.read_text(encoding="utf-8").strip() if told.is_file() else ""
    return text or folder.name.replace("_", " ")


def _near(folder: Path, path: Path) -> str:
    """Relative to the definition where the folder is below it, so that the whole can be moved."""
    full, here = folder.absolute(), path.absolute().parent
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else full.as_posix()

"""A scene dataset on disk, laid out like Gen4Gen's MyCanvas: pictures, masks, captions, and where each is
from.

    dataset.json                       subjects, tokens, recipe, licence
    images/000000.png   captions/000000.txt   masks/000000-0-cat.png
    scenes/000000.json                 boxes, layout, caption, provenance, hashes: written last

A scene is there when its JSON is; files are written whole or not at all. Captions may be edited by hand.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import LikenessError
from ..core.hashing import hash_bytes, hash_file
from ..core.paths import inside, slug, write_atomic
from ..subjects.captions import read_text
from ..subjects.folder import read_photo
from ..subjects.subject import Photo, Subject, build_subject
from .recaption import Named, for_one_subject, mentions, token_of

log = logging.getLogger(__name__)

FORMAT = "likeness-scenes-1"
HEAD = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One subject of a dataset. ``photos`` are hashes of the photos that its cut-outs came from."""

    name: str
    noun: str
    token: str
    identifier: str = "sks"
    photos: tuple[str, ...] = ()

    @property
    def named(self) -> Named:
        return Named(token=self.token, noun=self.noun)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A subject in one scene: ``box`` is (left, top, right, bottom) in pixels of what is seen of it."""

    subject: str
    box: tuple[int, int, int, int]
    mask: str  # relative to the dataset
    mask_sha256: str
    photo_sha256: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture of a dataset. Paths are relative to it; ``caption`` is as its text file has it now."""

    index: int
    image: str
    width: int
    height: int
    caption: str
    scene: str
    shown: tuple[Shown, ...]
    record: Mapping[str, Any] = field(repr=False, compare=False)  # all that is known: layout, provenance


@dataclass(frozen=True, kw_only=True)
class SceneDataset:
    """A handle; scenes are read when they are asked for, so that a thousand cost no memory."""

    folder: Path
    members: tuple[Member, ...]
    key: str  # of the recipe and subjects
    licence: str = ""
    indices: tuple[int, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.indices)

    def scenes(self) -> Iterator[Scene]:
        for index in self.indices:
            yield read_scene(self.folder, index)

    def member(self, name: str) -> Member:
        """Raises LikenessError that lists the names there are."""
        found = next((member for member in self.members if member.name == name), None)
        if found is None:
            known = ", ".join(member.name for member in self.members)
            raise LikenessError(f"{self.folder.name} has no subject {name!r}", expected=known)
        return found


def member_of(subject: Subject) -> Member:
    return Member(
        name=subject.name,
        noun=subject.class_noun,
        token=token_of(subject.name),
        identifier=subject.identifier,
        photos=tuple(photo.sha256 for photo in subject.photos),
    )


# --- writing ------------------------------------------------------------------------------------------


def write_head(dataset: SceneDataset, recipe: Any) -> None:
    """``dataset.json``, once. LikenessError when the folder holds another dataset."""
    path = dataset.folder / HEAD
    if path.exists():
        found = _json(path)
        if found.get("key") != dataset.key:
            raise LikenessError(
                f"{dataset.folder} holds another dataset: its subjects or settings are not these",
                expected=f"key {dataset.key[:12]}, and it has {str(found.get('key'))[:12]}",
                fix="Choose another name, or move that folder away",
            )
        return
    record = {
        "format": FORMAT,
        "key": dataset.key,
        "licence": dataset.licence,
        "members": [asdict(member) for member in dataset.members],
        "recipe": recipe,
    }
    write_atomic(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def scene_paths(index: int, names: Sequence[str]) -> tuple[str, str, list[str]]:
    """A scene's picture, caption and masks, relative to the dataset."""
    stem = f"{index:06d}"
    masks = [f"masks/{stem}-{n}-{slug(name)}.png" for n, name in enumerate(names)]
    return f"images/{stem}.png", f"captions/{stem}.txt", masks


def scene_path(folder: Path, index: int) -> Path:
    return folder / "scenes" / f"{index:06d}.json"


def write_scene(folder: Path, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    """The files of one scene that are not there yet, then its JSON, which makes it count.

    A file that is there was written whole, by this build before it was stopped, or by hand: it is kept.
    """
    for relative, content in files.items():
        path = folder / relative
        if not path.exists():
            write_atomic(path, content)
    hashes = {relative: hash_bytes(content) for relative, content in files.items()}
    whole = {**record, "files": hashes}
    write_atomic(scene_path(folder, int(record["index"])), json.dumps(whole, indent=1, sort_keys=True) + "\n")


def is_whole(folder: Path, index: int) -> dict[str, Any] | None:
    """The scene's record when it and all of its files are there, else None: it is built again."""
    path = scene_path(folder, index)
    if not path.exists():
        return None
    try:
        record = _json(path)
        files = record["files"]
        whole = record.get("index") == index and all((folder / relative).is_file() for relative in files)
    except (LikenessError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): the scene is built again", path, error)
        return None
    if not whole:
        log.warning("Scene %d has lost a file: it is built again", index)
    return record if whole else None


# --- reading ------------------------------------------------------------------------------------------


def load_dataset(folder: Path, *, verify: bool = False) -> SceneDataset:
    """Open a dataset. Scenes whose files are half there are left out with a warning; with ``verify`` every
    file's content is compared too. Raises LikenessError when the folder is no dataset or has no whole scene.
    """
    head = _json(folder / HEAD)
    if head.get("format") != FORMAT:
        raise LikenessError(f"{folder} is no scene dataset", expected=f"{HEAD} of the format {FORMAT}")
    try:
        members = tuple(Member(**{**row, "photos": tuple(row["photos"])}) for row in head["members"])
        key, licence = str(head["key"]), str(head.get("licence", ""))
    except (KeyError, TypeError) as error:
        raise LikenessError(f"{folder / HEAD} is damaged: {error}") from error
    indices, warnings = [], []
    for path in sorted((folder / "scenes").glob("*.json")):
        if not path.stem.isdigit():
            continue
        record = is_whole(folder, int(path.stem))
        if record is None:
            warnings.append(f"scene {path.stem} is incomplete and was left out")
            continue
        warnings += _changes(folder, record, members, verify)
        indices.append(int(path.stem))
    for warning in warnings:
        log.warning("%s: %s", folder.name, warning)
    if not indices:
        raise LikenessError(f"{folder} has no whole scene", fix="Build the dataset again")
    return SceneDataset(
        folder=folder,
        members=members,
        key=key,
        licence=licence,
        indices=tuple(indices),
        warnings=tuple(warnings),
    )


def read_scene(folder: Path, index: int) -> Scene:
    """One scene. LikenessError naming the file when it is damaged or leads out of the folder."""
    path = scene_path(folder, index)
    record = _json(path)
    try:
        image, text, masks = record["image"], record["caption_file"], record["subjects"]
        for relative in (image, text, *(row["mask"] for row in masks)):
            inside(folder, relative, what="file of a scene")
        shown = tuple(
            Shown(
                subject=row["name"],
                box=tuple(int(v) for v in row["box"]),  # type: ignore[arg-type]
                mask=row["mask"],
                mask_sha256=row["mask_sha256"],
                photo_sha256=row["photo_sha256"],
            )
            for row in masks
        )
        caption = " ".join(read_text(folder / text).split())
        return Scene(
            index=index,
            image=image,
            width=int(record["width"]),
            height=int(record["height"]),
            caption=caption or record["caption"],
            scene=record["layout"]["scene"],
            shown=shown,
            record=record,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LikenessError(f"{path} is damaged: {error}", fix="Remove it and build again") from error


def _changes(
    folder: Path, record: Mapping[str, Any], members: Sequence[Member], verify: bool
) -> Iterator[str]:
    """What was changed by hand: a caption that drops a subject, pictures that are not what was written."""
    index, known = record["index"], {member.name: member for member in members}
    caption = read_text(folder / record["caption_file"])
    for row in record["subjects"]:
        member = known.get(row["name"])
        if member is None:
            yield f"scene {index} shows {row['name']}, which {HEAD} does not list"
        elif mentions(caption, member.named) == 0:
            yield f"the caption of scene {index} does not name {member.token}"
    if verify:
        for relative, digest in record["files"].items():
            if hash_file(folder / relative) != digest and not relative.startswith("captions/"):
                yield f"{relative} is not what was written"


def _json(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LikenessError(f"{path} is not well-formed JSON: {error}", fix="Build it again") from error
    if not isinstance(record, dict):
        raise LikenessError(f"{path} holds no object", fix="Build it again")
    return record


# --- what trainers take -------------------------------------------------------------------------------


def scene_photos(dataset: SceneDataset, *, subject: str | None = None) -> list[Photo]:
    """Scenes as photos with captions. With ``subject``: the scenes that show it, {} for it in captions, its
    own mask; the others by their nouns. Without: captions as they are, tokens and all."""
    named = {member.name: member.named for member in dataset.members}
    if subject is not None:
        dataset.member(subject)
    photos = []
    for scene in dataset.scenes():
        shown = {one.subject: one for one in scene.shown}
        if subject is not None and subject not in shown:
            continue
        mask, caption = None, scene.caption
        if subject is not None:
            mask = dataset.folder / shown[subject].mask
            others = [named[name] for name in shown if name != subject]
            caption = for_one_subject(caption, named[subject], others)
        photos.append(read_photo(dataset.folder / scene.image, mask, caption))
    return photos


def scene_subject(dataset: SceneDataset, name: str, *, held_out: Sequence[Photo] = ()) -> Subject:
    """One subject of the dataset for DreamBooth or Textual Inversion: its scenes are its photos."""
    member = dataset.member(name)
    return build_subject(
        name=member.name,
        class_noun=member.noun,
        identifier=member.identifier,
        description="",
        photos=scene_photos(dataset, subject=name),
        held_out=held_out,
    )

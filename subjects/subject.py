"""What is to be learned: a few photos of one thing, the words for it, and the photos kept aside to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import LikenessError
from ..core.hashing import hash_json
from . import images

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One picture on disk, with what is known of it. ``sha256`` is of the decoded upright RGB pixels, so that
    the same picture under another name is the same photo; ``mask_sha256`` likewise of the mask."""

    path: Path
    sha256: str
    width: int
    height: int
    caption: str | None = None  # {} stands for the subject
    mask_path: Path | None = None
    mask_sha256: str | None = None
    repeats: int = 1  # kohya's N of a folder N_name: how often an epoch shows it

    def open(self) -> Image:
        """The picture: upright by EXIF, any mode or depth to 8-bit RGB, alpha composited on white."""
        return images.open_picture(self.path)

    def mask(self) -> np.ndarray | None:
        """The subject's mask as float32 (H, W) in [0, 1] at the picture's size, or None."""
        if self.mask_path is None:
            return None
        return images.open_mask(self.mask_path, self.width, self.height)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to learn. ``photos`` train; ``held_out`` only ever judge. ``name`` is a safe file name."""

    name: str
    class_noun: str
    photos: tuple[Photo, ...]
    held_out: tuple[Photo, ...] = ()
    identifier: str = "sks"  # DreamBooth's rare token; Textual Inversion has its own placeholder
    description: str = ""  # InstructBooth's detail for a rare-looking subject: "triangular"
    split: str = field(default="", compare=False)  # how the held-out photos were chosen, in words
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def content_hash(self) -> str:
        """Of the pixels, masks, captions, repeats and words; not of paths or of the order on disk.

        The order of ``photos`` counts, since training sees them in it; loaders sort by name.
        """
        words = [self.class_noun, self.identifier, self.description]
        digest: str = hash_json(
            [words, [_content(p) for p in self.photos], [_content(p) for p in self.held_out]]
        )
        return digest


def build_subject(
    *,
    name: str,
    class_noun: str,
    identifier: str,
    description: str,
    photos: Sequence[Photo],
    held_out: Sequence[Photo] = (),
    split: str = "",
    warnings: Sequence[str] = (),
) -> Subject:
    """A Subject from what a loader found, checked: words, at least one photo, copies, a leak.

    A picture that is there twice is used once, with a warning; one that is both trained on and held out is
    a LikenessError, since it would make the proof worthless.
    """
    photos, copies = _without_copies(photos)
    held_out, held_out_copies = _without_copies(held_out)
    check_leak(photos, held_out)
    if not photos:
        raise LikenessError(f"The subject {name} has no photo to train on", expected="at least one photo")
    notes = [*warnings, *copies, *held_out_copies]
    if len(photos) == 1:
        notes.append("There is one photo: its background and pose will be learned with the subject")
    subject = Subject(
        name=name,
        class_noun=_words(class_noun, what="class noun", example="dog"),
        identifier=_words(identifier, what="identifier", example="sks"),
        description=" ".join(description.split()),
        photos=tuple(photos),
        held_out=tuple(held_out),
        split=split,
        warnings=(),
    )
    return _with_warnings(subject, [*notes, *_caption_warnings(subject)])


def check_leak(photos: Sequence[Photo], held_out: Sequence[Photo]) -> None:
    """Raise LikenessError when a held-out picture is also among those trained on."""
    trained = {photo.sha256: photo.path for photo in photos}
    for photo in held_out:
        if photo.sha256 in trained:
            raise LikenessError(
                f"The held-out photo {photo.path} is the same picture as {trained[photo.sha256]}, "
                "which is trained on",
                fix="Remove one of the two: a photo that was trained on proves nothing",
            )


def _content(photo: Photo) -> list[object]:
    return [photo.sha256, photo.mask_sha256, photo.caption, photo.repeats]


def _without_copies(photos: Sequence[Photo]) -> tuple[list[Photo], list[str]]:
    first: dict[str, Photo] = {}
    notes = []
    for photo in photos:
        if photo.sha256 in first:
            notes.append(f"{photo.path} is the same picture as {first[photo.sha256].path} and was left out")
        else:
            first[photo.sha256] = photo
    return list(first.values()), notes


def _words(text: str, *, what: str, example: str) -> str:
    words = " ".join(text.split())
    if not words:
        raise LikenessError(f"The {what} is empty", expected=f'a word such as "{example}"')
    return words


def _caption_warnings(subject: Subject) -> list[str]:
    names = (subject.class_noun.lower(), subject.identifier.lower(), "{}")
    return [
        f"The caption of {photo.path.name} has neither {{}} nor {subject.class_noun}: {photo.caption[:80]!r}"
        for photo in (*subject.photos, *subject.held_out)
        if photo.caption is not None and not any(name in photo.caption.lower() for name in names)
    ]


def _with_warnings(subject: Subject, warnings: Sequence[str]) -> Subject:
    return replace(subject, warnings=tuple(dict.fromkeys(warnings)))

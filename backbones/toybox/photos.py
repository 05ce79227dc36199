"""A subject of the toy world as a person would have it: a folder of photos with captions."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ...core.paths import write_atomic
from . import captions, render, world

TRAIN, HELD_OUT = 5, 10  # photos


def write_subject(folder: Path, *, noun: str, seed: int) -> list[Path]:
    """``folder/train`` and ``folder/held_out``: PNGs, each with its caption beside it, {} for the subject.

    The pictures are as ``world.subject_pictures`` draws them for evaluation: no caption occurs twice, and
    neither look nor captions were ever trained on. Raises LikenessError for a noun that Toybox has not.
    """
    instance = world.subject(noun, seed)
    pictures = world.subject_pictures(instance, TRAIN + HELD_OUT, seed)
    paths = []
    for number, picture in enumerate(pictures):
        part, place = ("train", number) if number < TRAIN else ("held_out", number - TRAIN)
        path = folder / part / f"{place:02d}.png"
        write_atomic(path, png(picture))
        write_atomic(path.with_suffix(".txt"), caption(picture) + "\n")
        paths.append(path)
    return paths


def caption(picture: world.Picture) -> str:
    """The exact caption with {} in the place of the subject: ``a photo of {} on the beach``."""
    noun = picture.things[0].noun
    article = "an" if noun[0] in "aeiou" else "a"
    return captions.caption(picture).replace(f"{article} {noun}", "{}", 1)


def png(picture: world.Picture) -> bytes:
    """As a file holds it."""
    buffer = io.BytesIO()
    Image.fromarray(render.image(picture)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

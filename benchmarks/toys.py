"""Subjects of the toy world, for benchmarks that need more of them than their pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..backbones.toybox import render, world
from ..subjects import Subject, load_folder


def masked_subject(folder: Path, noun: str, number: int, photos: int) -> Subject:
    """The ``number``-th of its noun, drawn into ``folder`` with its exact masks. It stands there and has
    nothing on: what covers a subject would be a hole in its cut-out."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(world.subject_pictures(world.subject(noun, number), photos, number)):
        thing = replace(picture.things[0], pose="standing", accessory="none", action="none")
        picture = replace(picture, things=(thing,))
        drawn = render.render(picture)
        Image.fromarray(drawn.image).save(folder / f"{n}.png")
        Image.fromarray((drawn.masks[0] * 255).astype(np.uint8)).save(folder / f"{n}_mask.png")
    return load_folder(folder, class_noun=noun)

"""A few small subjects with masks, and cut-outs, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from likeness.backbones.toybox import render, world
from likeness.composing.building import Cast, cast_of
from likeness.subjects import load_folder
from PIL import Image

SUBJECTS = (("rabbit", 1), ("car", 2), ("cup", 3))


def write_subject(folder: Path, noun: str, number: int, photos: int = 2) -> Path:
    folder.mkdir(parents=True)
    for n, picture in enumerate(world.subject_pictures(world.subject(noun, number), photos, number)):
        drawn = render.render(picture)
        Image.fromarray(drawn.image).save(folder / f"{n}.png")
        Image.fromarray((drawn.masks[0] * 255).astype(np.uint8)).save(folder / f"{n}_mask.png")
    return folder


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    root = tmp_path_factory.mktemp("subjects")
    return [load_folder(write_subject(root / f"{n}{k}", n, k), class_noun=n) for n, k in SUBJECTS]


@pytest.fixture(scope="session")
def cast(subjects: list[Any]) -> Cast:
    return cast_of(subjects)

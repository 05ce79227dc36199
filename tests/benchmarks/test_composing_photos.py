"""The benchmark on real photos sees what it is there to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from likeness.benchmarks import composing_photos
from likeness.core.errors import LikenessError
from PIL import Image, ImageDraw


def photos(folder: Path) -> Path:
    for name, colour in (("ball", (210, 40, 50)), ("cup2", (40, 60, 210))):
        (folder / name).mkdir(parents=True)
        for n in range(2):
            image = Image.effect_noise((96, 96), 20).convert("RGB")
            ImageDraw.Draw(image).ellipse((25 + n, 20, 70 + n, 75), fill=colour)
            image.save(folder / name / f"{n}.png")
    return folder


def test_a_changed_pixel_of_a_subject_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    cast, dataset = composing_photos.from_photos(photos(tmp_path / "photos"), tmp_path / "out", scenes=1)
    compared, worst = composing_photos.source_pixels(cast, dataset)
    assert compared > 1000 and worst == 0
    scene = next(dataset.scenes())
    path = dataset.folder / scene.image
    changed = np.array(Image.open(path))
    left, top, right, bottom = scene.shown[-1].box
    changed[(top + bottom) // 2, (left + right) // 2] ^= 4
    Image.fromarray(changed).save(path)
    assert composing_photos.source_pixels(cast, dataset) == (compared, 4)


def test_photos_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(composing_photos.PHOTOS, raising=False)
    with pytest.raises(LikenessError, match="names no folder"):
        composing_photos.run(quick=True)

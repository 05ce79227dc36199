"""Composing from real photos, end to end and without weights: GrabCut, rule-based layouts and captions.

    LIKENESS_PHOTOS=PHOTOS python -m likeness.benchmarks composing-photos
    python -m likeness.benchmarks.composing_photos PHOTOS OUT [BACKGROUNDS]

PHOTOS holds a folder of photos per subject, as DreamBench does; three of them are taken, spread over their
names. The second form leaves the dataset with its contact sheet in OUT, for the eye. About 2 minutes on 2
cores.
"""
# Shapes: H W pixels.

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..composing.backgrounds import DrawnBackgrounds, FolderBackgrounds
from ..composing.building import Cast, Makers, SceneRecipe, build_dataset, cast_of
from ..composing.compose import resampled
from ..composing.cutout import Cutout
from ..composing.dataset import Scene, SceneDataset, load_dataset
from ..composing.layout import pixels
from ..composing.sheet import statistics_of, write_overview
from ..core.errors import LikenessError
from ..subjects import Subject, load_folder
from ..subjects.segmenting import open_segmenter, segment_subject
from . import bar
from .composing import finish

SUBJECTS, SCENES = 3, 20
ERODED_PX = 2  # from a mask's edge inwards: there a pixel is the subject's alone
PHOTOS = "LIKENESS_PHOTOS"


def run(quick: bool) -> dict[str, Any]:
    """Raises LikenessError where the environment names no folder of photos."""
    photos = Path(os.environ.get(PHOTOS, ""))
    if PHOTOS not in os.environ or not photos.is_dir():
        raise LikenessError(
            f"{PHOTOS} names no folder", expected="a folder that holds a folder of photos for each subject"
        )
    with tempfile.TemporaryDirectory() as name:
        cast, dataset = from_photos(photos, Path(name), scenes=3 if quick else SCENES)
        known = statistics_of(dataset)
        compared, worst = source_pixels(cast, dataset)
    shown = {key: known[key] for key in ("scenes", "mean box area", "mean caption words", "rejected layouts")}
    return {
        "numbers": {**shown, "subjects": len(cast.subjects), "subject pixels compared": compared},
        "bars": [
            bar("boxes outside the canvas", value=known["boxes outside the canvas"], op="==", bar=0),
            bar(
                "subjects missing from a caption",
                value=known["subjects missing from a caption"],
                op="==",
                bar=0,
            ),
            bar("largest difference of a subject's pixel from its source", value=worst, op="==", bar=0),
            bar("subject pixels compared in a scene", value=compared / len(dataset), op=">=", bar=10_000),
        ],
        "seeds": [0],
    }


def from_photos(
    photos: Path, out: Path, *, scenes: int = SCENES, backgrounds: Path | None = None
) -> tuple[Cast, SceneDataset]:
    """Scenes at 1024 px from folders of photos, and their contact sheet."""
    folders = sorted(path for path in photos.iterdir() if path.is_dir())
    num = min(SUBJECTS, len(folders))
    spread = [folders[n * len(folders) // num] for n in range(num)]
    cast = cast_of([masked(folder, out / "masks") for folder in spread], most=3)
    source = FolderBackgrounds(backgrounds) if backgrounds else DrawnBackgrounds()
    recipe = SceneRecipe(count=scenes, most_subjects=len(spread), cutouts_per_subject=3)
    finish(build_dataset(out / "scenes", cast, recipe, Makers(backgrounds=source)))
    dataset = load_dataset(out / "scenes", verify=True)
    write_overview(dataset)
    return cast, dataset


def masked(folder: Path, store: Path) -> Subject:
    """The subject of a folder, named as DreamBench names it (dog6, duck_toy), with GrabCut's masks."""
    noun = folder.name.rstrip("0123456789").replace("_", " ").strip()
    *_, subject = segment_subject(load_folder(folder, class_noun=noun), open_segmenter("grabcut"), store)
    assert isinstance(subject, Subject)
    return subject


# --- the subjects' pixels ---------------------------------------------------------------------------------


def source_pixels(cast: Cast, dataset: SceneDataset) -> tuple[int, float]:
    """How many subject pixels of the dataset's pictures were compared with their cut-outs at their size, and
    the largest difference, of 255."""
    cutouts = {one.sha256: one for of_subject in cast.cutouts.values() for one in of_subject}
    compared, worst = 0, 0.0
    for scene in dataset.scenes():
        for difference_N in _differences(dataset, scene, cutouts):
            compared += len(difference_N)
            worst = max(worst, float(difference_N.max(initial=0)))
    return compared, worst


def _differences(
    dataset: SceneDataset, scene: Scene, cutouts: Mapping[str, Cutout]
) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    """Of each subject of a scene, pixel by pixel inside its eroded mask. A cut-out's size and place follow
    from its item's box: as large as fits, its foot in the middle of the box's lower edge."""
    picture_HW3 = np.asarray(Image.open(dataset.folder / scene.image).convert("RGB")).astype(np.int64)
    items = {item["subject"]: item for item in scene.record["layout"]["items"]}
    for row in scene.record["subjects"]:
        cutout = cutouts[row["cutout_sha256"]]
        x, y, width, height = pixels(items[row["name"]]["box"], scene.width, scene.height)
        scale = min(width / cutout.image.width, height / cutout.image.height)
        size = tuple(max(1, round(edge * scale)) for edge in cutout.image.size)
        left, top = round(x + (width - size[0]) / 2), round(y + height - size[1])
        source = Image.new("RGB", (scene.width, scene.height))
        source.paste(resampled(cutout, *size).convert("RGB"), (left, top))
        mask = Image.open(dataset.folder / row["mask"]).filter(ImageFilter.MinFilter(2 * ERODED_PX + 1))
        inside_HW = np.asarray(mask) == 255
        yield np.abs(picture_HW3 - np.asarray(source))[inside_HW].max(axis=1)


if __name__ == "__main__":
    from_photos(
        Path(sys.argv[1]), Path(sys.argv[2]), backgrounds=Path(sys.argv[3]) if len(sys.argv) > 3 else None
    )

"""Masks without weights: GrabCut and Toybox's grounding against exact masks, and on real photos to see.

    python -m likeness.benchmarks masks [--quick]                 IoU on Toybox, a few minutes
    python -m likeness.benchmarks.masks PHOTOS SHEET.png          a contact sheet of a folder of photo folders

PHOTOS holds a folder of photos per subject, as DreamBench does. Real photos have no exact masks: the sheet
is for the eye.
"""
# Shapes: H W pixels.

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..backbones.toybox import render, world
from ..scoring.metrics import bootstrap_interval
from ..subjects import load_folder
from ..subjects.segmenting import Segmenter, open_segmenter, segment_photo
from ..subjects.segmenting.preview import stacked, triptych
from . import bar

log = logging.getLogger(__name__)

SUBJECTS = range(300, 314)  # numbers of the subjects, one per noun; the method was tuned on numbers under 100
PICTURES = 10  # of each subject
BARS = {"grabcut": 0.80, "toybox": 0.85}  # median IoU
EDGE_PX = 192  # of a picture in the contact sheet


def iou(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Intersection over union of two masks; 1 for two empty ones."""
    union = float((a_HW | b_HW).sum())
    return float((a_HW & b_HW).sum()) / union if union else 1.0


def overlaps(segmenter: Segmenter, pictures: int) -> dict[str, list[float]]:
    """IoU of every picture's mask, by noun."""
    found: dict[str, list[float]] = {}
    for noun, number in zip(world.NOUNS, SUBJECTS, strict=True):
        drawn = world.subject_pictures(world.subject(noun, number), pictures, seed=number)
        found[noun] = []
        for picture in drawn:
            exact = render.render(picture)
            mask_HW = segment_photo(Image.fromarray(exact.image), noun, segmenter).mask_HW
            found[noun].append(iou(mask_HW >= 0.5, exact.masks[0]))
    return found


def run(quick: bool) -> dict[str, Any]:
    """The median over all pictures, with an interval over nouns."""
    numbers: dict[str, Any] = {}
    bars = []
    for name, least in BARS.items():
        by_noun = overlaps(open_segmenter(name), 2 if quick else PICTURES)
        every = [value for values in by_noun.values() for value in values]
        means = {noun: statistics.fmean(values) for noun, values in by_noun.items()}
        median = statistics.median(every)
        numbers[name] = {
            "median": median,
            "mean": statistics.fmean(every),
            "mean, interval over nouns": list(bootstrap_interval(list(means.values()))),
            "share under 0.5": sum(value < 0.5 for value in every) / len(every),
            "pictures": len(every),
            "by noun": means,
        }
        bars.append(bar(f"IoU with the exact mask, median, {name}", value=median, op=">=", bar=least))
    return {"numbers": numbers, "bars": bars, "seeds": [SUBJECTS.start]}


def contact_sheet(photos: Path, segmenter: Segmenter, *, per_subject: int = 1) -> Image.Image:
    """Photo, mask and cut-out of the first photos of every folder, two folders beside each other."""
    rows = list(_rows(photos, segmenter, per_subject))
    half = (len(rows) + 1) // 2
    columns = [stacked(rows[:half]), *([stacked(rows[half:])] if rows[half:] else [])]
    sheet = Image.new("RGB", (sum(c.width for c in columns), max(c.height for c in columns)), "white")
    left = 0
    for column in columns:
        sheet.paste(column, (left, 0))
        left += column.width
    return sheet


def _rows(photos: Path, segmenter: Segmenter, per_subject: int) -> Iterator[Image.Image]:
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        noun = folder.name.replace("_", " ").strip("0123456789")
        subject = load_folder(folder, class_noun=noun)
        for photo in subject.photos[:per_subject]:
            image = photo.open()
            image.thumbnail((768, 768), Image.Resampling.LANCZOS)
            found = segment_photo(image, noun, segmenter)
            log.info(
                "%s/%s: confidence %.2f %s", folder.name, photo.path.name, found.confidence, found.doubts
            )
            yield triptych(image, found, title=folder.name, edge=EDGE_PX)


def main(arguments: Sequence[str]) -> int:
    """A contact sheet; ``run`` is what the benchmark runner calls."""
    photos, sheet = map(Path, arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    contact_sheet(photos, open_segmenter("grabcut")).save(sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

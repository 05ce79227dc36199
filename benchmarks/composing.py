"""Composing: layout quality, speed beside the reference's composing step, and memory over a build.

It needs no files; ``composing_photos.py`` is the same on real photos. About 3 minutes on 2 cores, 1 with
``--quick``.
"""
# Shapes: H W pixels.

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..composing.backgrounds import DrawnBackgrounds
from ..composing.building import Cast, SceneRecipe, build_dataset, cast_of
from ..composing.compose import ComposeConfig, compose
from ..composing.cutout import Cutout
from ..composing.dataset import SceneDataset
from ..composing.layout import Layout, Thing
from ..composing.proposing import RuleBased, draw_layout
from ..composing.repaint import Progress
from ..composing.sheet import statistics_of
from ..composing.sizes import SIZES_CM
from ..composing.validation import Limits, overlap
from . import bar
from .toys import masked_subject

CANVAS_PX = 1024
SCENES_A_SECOND, TIMES_REFERENCE = 8.0, 3.0


def run(quick: bool) -> dict[str, Any]:
    """All of it on drawn cut-outs."""
    layouts = layout_quality(60 if quick else 500)
    with tempfile.TemporaryDirectory() as name:
        speed = composing_speed(Path(name), 6 if quick else 40)
        memory = memory_of_a_build(Path(name) / "build", 60 if quick else 1000)
    return {
        "numbers": {"layouts": layouts, "speed": speed, "memory": memory},
        "bars": list(bars(layouts, speed, memory)),
        "seeds": [0],
    }


def bars(layouts: dict[str, Any], speed: dict[str, Any], memory: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield bar("draws that found a layout", value=layouts["found"], op="==", bar=1.0)
    yield bar("largest overlap", value=layouts["largest overlap"], op="<=", bar=Limits().max_overlap)
    yield bar("largest ratio error", value=layouts["largest ratio error"], op="<=", bar=0.15)
    yield bar("draws with at most 3 tries", value=layouts["at most 3 tries"], op=">=", bar=0.95)
    yield bar("scenes a second on 2 threads", value=speed["scenes a second"], op=">=", bar=SCENES_A_SECOND)
    yield bar("times the reference's step", value=speed["times the reference"], op=">=", bar=TIMES_REFERENCE)
    yield bar("memory growth over a build, MiB", value=memory["growth_mib"], op="<=", bar=64.0)
    yield bar("boxes outside the canvas", value=memory["boxes outside"], op="==", bar=0)
    yield bar("subjects missing from a caption", value=memory["missing"], op="==", bar=0)


# --- layouts ------------------------------------------------------------------------------------------


def layout_quality(draws: int) -> dict[str, Any]:
    """Rule-based draws of 2 to 5 subjects of every size and shape."""
    overlaps, errors, tries = [], [], []
    rejected: Counter[str] = Counter()
    for number in range(draws):
        dice = random.Random(f"quality {number}")
        nouns = dice.sample(sorted(SIZES_CM), dice.randint(2, 5))
        things = [Thing(name=noun, noun=noun, aspect=dice.uniform(0.4, 2.2)) for noun in nouns]
        drawn = draw_layout(RuleBased(), things, seed=number)
        items = drawn.layout.items
        overlaps.append(max(overlap(a.box, b.box) for n, a in enumerate(items) for b in items[n + 1 :]))
        sizes = [max(item.box[2:]) / drawn.ratios[item.subject] for item in items]
        errors.append(max(sizes) / min(sizes) - 1)
        tries.append(drawn.tries)
        rejected.update(drawn.rejected)
    return {
        "draws": draws,
        "found": len(tries) / draws,
        "largest overlap": max(overlaps),
        "largest ratio error": max(errors),
        "at most 3 tries": sum(n <= 3 for n in tries) / draws,
        "rejected": dict(rejected),
    }


# --- speed --------------------------------------------------------------------------------------------


def drawn_cutouts() -> dict[str, Cutout]:
    """Three textured ovals as large as photos give them."""
    dice = np.random.default_rng(0)
    found = {}
    for noun, width, height in (("dog", 900, 800), ("cat", 700, 1000), ("can", 400, 900)):
        alpha = Image.new("L", (width, height))
        ImageDraw.Draw(alpha).ellipse((2, 2, width - 3, height - 3), fill=255)
        small = Image.fromarray(dice.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        image.putalpha(alpha)
        found[noun] = Cutout(
            image=image,
            subject=noun,
            noun=noun,
            photo_sha256="",
            sha256=noun,
            sharpness=1.0,
            completeness=1.0,
        )
    return found


def composing_speed(scratch: Path, rounds: int) -> dict[str, Any]:
    """Ours and the reference's step on the same layouts, in turns; then ours on two threads."""
    cutouts = drawn_cutouts()
    files = {name: save_as_reference(cutout, scratch) for name, cutout in cutouts.items()}
    things = [Thing(name=name, noun=name, aspect=cutout.aspect) for name, cutout in cutouts.items()]
    layouts = [draw_layout(RuleBased(), things, seed=n).layout for n in range(rounds)]
    background, _ = DrawnBackgrounds().picture("in a garden", CANVAS_PX, CANVAS_PX, seed=0)
    ours_s, theirs_s = [], []
    for layout in layouts:
        started = time.perf_counter()
        ours = compose(layout, cutouts, background)
        assert [one.box for one in ours.placed]
        ours_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        reference_step(layout, files)
        theirs_s.append(time.perf_counter() - started)
    with ThreadPoolExecutor(max_workers=2) as pool:
        started, busy = time.perf_counter(), time.process_time()
        list(pool.map(lambda layout: compose(layout, cutouts, background), layouts))
        together_s, together_cpu_s = time.perf_counter() - started, time.process_time() - busy
    median_ours, median_theirs = float(np.median(ours_s)), float(np.median(theirs_s))
    return {
        "ours_s": median_ours,
        "reference_s": median_theirs,
        "times the reference": median_theirs / median_ours,
        "scenes a second": rounds / together_s,
        "processor seconds a scene": together_cpu_s / rounds,  # tells a slow step from a busy machine
    }


def save_as_reference(cutout: Cutout, folder: Path) -> tuple[Path, Path]:
    """The two files that the reference's first stage leaves: foreground on black, and mask."""
    black = Image.new("RGB", cutout.image.size)
    alpha = cutout.image.getchannel("A")
    black.paste(cutout.image.convert("RGB"), mask=alpha)
    paths = (folder / f"{cutout.subject}_foreground.png", folder / f"{cutout.subject}_mask.png")
    black.save(paths[0])
    alpha.save(paths[1])
    return paths


def reference_step(layout: Layout, files: dict[str, tuple[Path, Path]]) -> tuple[Image.Image, Image.Image]:
    """The reference's pasting (steps 6 to 9 of its stage 2), told from its description: files read for every
    sample, tight box of mask > 70, long edge to the box's shorter side, pasted on a black canvas and on a
    mask.
    """
    canvas, mask_canvas = Image.new("RGB", (CANVAS_PX,) * 2), Image.new("L", (CANVAS_PX,) * 2)
    for item in layout.items:
        foreground, mask = (Image.open(path) for path in files[item.subject])
        image_HW3, mask_HW = np.array(foreground.convert("RGB")), np.array(mask.convert("L"))
        rows, columns = np.where(mask_HW > 70)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        crop = Image.fromarray(image_HW3[top:bottom, left:right])
        crop_mask = Image.fromarray(mask_HW[top:bottom, left:right])
        x, y, width, height = (round(v * CANVAS_PX) for v in item.box)
        scale = min(width, height) / max(crop.size)
        size = (max(1, int(crop.width * scale)), max(1, int(crop.height * scale)))
        crop = crop.resize(size, Image.Resampling.BICUBIC)
        crop_mask = crop_mask.resize(size, Image.Resampling.BICUBIC)
        canvas.paste(crop, (x, y), mask=crop_mask)
        mask_canvas.paste(crop_mask, (x, y), mask=crop_mask)
    return canvas, mask_canvas


# --- memory -------------------------------------------------------------------------------------------


def toy_cast(scratch: Path, subjects: Sequence[tuple[str, int]], num_photos: int = 4) -> Cast:
    """Subjects of the toy world with their exact masks."""
    return cast_of(
        [masked_subject(scratch / f"{noun}{number}", noun, number, num_photos) for noun, number in subjects]
    )


def memory_of_a_build(scratch: Path, scenes: int) -> dict[str, Any]:
    """Resident memory after a tenth of a build and at its end."""
    cast = toy_cast(scratch, (("rabbit", 1), ("car", 2), ("cup", 3)))
    recipe = SceneRecipe(count=scenes, canvas=ComposeConfig(width=256, height=256))
    levels: list[float] = []
    dataset = finish(
        build_dataset(scratch / "dataset", cast, recipe), lambda p: levels.append(resident_mib())
    )
    known = statistics_of(dataset)
    tenth = levels[max(1, len(levels) // 10)]
    return {
        "scenes": scenes,
        "after a tenth_mib": tenth,
        "at the end_mib": levels[-1],
        "growth_mib": levels[-1] - tenth,
        "boxes outside": known["boxes outside the canvas"],
        "missing": known["subjects missing from a caption"],
    }


def resident_mib() -> float:
    status = Path("/proc/self/statm")
    if not status.is_file():
        return float("nan")
    return int(status.read_text().split()[1]) * 4096 / 2**20


def finish(work: Any, seen: Any = lambda progress: None) -> SceneDataset:
    """Run a build to its end."""
    while True:
        try:
            progress: Progress = next(work)
        except StopIteration as end:
            dataset: SceneDataset = end.value
            return dataset
        seen(progress)

"""Looking at a dataset: a contact sheet with boxes, and numbers that show what is in it."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from typing import Any

from PIL import Image, ImageDraw

from ..core.paths import write_atomic
from .dataset import Scene, SceneDataset
from .recaption import mentions

_EDGE_PX = 256
_CAPTION_PX = 44
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def contact_sheet(dataset: SceneDataset, *, most: int = 100, columns: int = 5) -> Image.Image:
    """The first scenes, small, each with its boxes and its caption below. Memory does not grow with them."""
    num = min(len(dataset), most)
    columns = max(1, min(columns, num))
    rows = math.ceil(num / columns)
    sheet = Image.new("RGB", (columns * _EDGE_PX, rows * (_EDGE_PX + _CAPTION_PX)), "white")
    for place, scene in zip(range(num), dataset.scenes(), strict=False):
        cell = (place % columns * _EDGE_PX, place // columns * (_EDGE_PX + _CAPTION_PX))
        _draw_cell(sheet, dataset, scene, cell)
    return sheet


def _draw_cell(sheet: Image.Image, dataset: SceneDataset, scene: Scene, at: tuple[int, int]) -> None:
    with Image.open(dataset.folder / scene.image) as picture:
        small = picture.convert("RGB").resize(
            (_EDGE_PX, _EDGE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
    draw = ImageDraw.Draw(small)
    for number, one in enumerate(scene.shown):
        left, top, right, bottom = one.box
        scale_x, scale_y = _EDGE_PX / scene.width, _EDGE_PX / scene.height
        box = (left * scale_x, top * scale_y, right * scale_x - 1, bottom * scale_y - 1)
        draw.rectangle(box, outline=_COLOURS[number % len(_COLOURS)])
    sheet.paste(small, at)
    words, lines = scene.caption.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 42:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    text = "\n".join(lines[:4]).encode("ascii", "replace").decode()
    ImageDraw.Draw(sheet).multiline_text((at[0] + 3, at[1] + _EDGE_PX + 1), text, fill="black", font_size=10)


def statistics_of(dataset: SceneDataset) -> dict[str, Any]:
    """Counts and means over all scenes, and what must not be: boxes outside, subjects that no caption
    names."""
    per_subject: Counter[str] = Counter()
    places: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    areas, words, tries = [], [], []
    outside = unnamed = 0
    named = {member.name: member.named for member in dataset.members}
    for scene in dataset.scenes():
        places[scene.scene] += 1
        words.append(len(scene.caption.split()))
        made = scene.record.get("provenance", {})
        tries.append(int(made.get("tries", 0)))
        rejected.update(made.get("rejected", {}))
        for one in scene.shown:
            per_subject[one.subject] += 1
            left, top, right, bottom = one.box
            areas.append((right - left) * (bottom - top) / (scene.width * scene.height))
            outside += not (0 <= left < right <= scene.width and 0 <= top < bottom <= scene.height)
            unnamed += one.subject in named and mentions(scene.caption, named[one.subject]) == 0
    return {
        "scenes": len(words),
        "subjects": dict(sorted(per_subject.items())),
        "places": dict(sorted(places.items())),
        "mean box area": round(statistics.fmean(areas), 4),
        "mean caption words": round(statistics.fmean(words), 1),
        "mean layout tries": round(statistics.fmean(tries), 2),
        "rejected layouts": dict(sorted(rejected.items())),
        "boxes outside the canvas": outside,
        "subjects missing from a caption": unnamed,
    }


def write_overview(dataset: SceneDataset) -> None:
    """``contact-sheet.jpg`` and ``statistics.json`` in the dataset's folder."""
    import io

    buffer = io.BytesIO()
    contact_sheet(dataset).save(buffer, "JPEG", quality=88)
    write_atomic(dataset.folder / "contact-sheet.jpg", buffer.getvalue())
    text = json.dumps(statistics_of(dataset), indent=1, sort_keys=True)
    write_atomic(dataset.folder / "statistics.json", text + "\n")

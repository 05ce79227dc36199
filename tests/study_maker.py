"""A small study on disk, for the tests of its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from likeness.scoring.study.definition import Study, open_study
from PIL import Image

METHODS = ("Ours", "Theirs")


def make_study(folder: Path, *, samples: int = 2, names: tuple[str, ...] = METHODS, **settings: Any) -> Study:
    """``samples`` pictures of every method, half of them of each of two prompts and subjects."""
    items = []
    for n in range(min(samples, 2)):
        subject, prompt = ("cat", "dog")[n], f"a {('cat', 'dog')[n]} playing soccer"
        paint(folder / "photos" / subject / "0.bmp", (n, 0, 0))
        for m, method in enumerate(names):
            for k in range(n, samples, 2):
                paint(folder / method / subject / "soccer" / f"{k:03}.bmp", (k % 256, m, 1))
        items.append({"subject": subject, "prompt": prompt, "images": f"{subject}/soccer"})
    record: dict[str, Any] = {
        "format": "likeness study 1",
        "title": "Which is better?",
        "methods": {name: name for name in names},
        "subjects": {item["subject"]: f"photos/{item['subject']}" for item in items},
        "items": items,
    }
    path = folder / "study.json"
    path.write_text(json.dumps(record | settings), encoding="utf-8")
    return open_study(path)


def paint(path: Path, color: tuple[int, int, int], size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(path)

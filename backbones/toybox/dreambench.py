"""Toybox-DreamBench: DreamBench's layout, drawn instead of photographed.

Eight subjects (one live, as its classes go), 5 pictures each, and a prompt file in DreamBench's own form: 25
prompts of either kind, 20 of places or clothes and 5 of colours, all of them things that Toybox can draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.paths import write_atomic
from . import world
from .photos import png

PHOTOS = 5
FIRST = 700  # number of the first subject: presets were tuned on numbers under 100, Toybox-PDST has 400 on
NOUNS = ("cat", "car", "cup", "boat", "robot", "rocket", "umbrella", "house")
PROMPT_FILE = "prompts_and_classes.txt"

PLACES = [f"a {{0}} {{1}} {words}" for words in world.SCENES.values()]
AT_SUNSET = [f"{place} at sunset" for place in PLACES]
DRESSED = [f"a {{0}} {{1}} {words}" for words in world.ACCESSORIES.values() if words]
# None of these is among the activities that alignment practises on Toybox.
BUSY = [
    f"a {{0}} {{1}} {words}"
    for words in ("flying a kite", "reading a book", "sleeping", "upside down", "lying on its side")
]
COLOURED = [f"a {colour} {{0}} {{1}}" for colour in ("red", "purple", "white", "green", "yellow")]
OBJECT_PROMPTS = [*PLACES, *AT_SUNSET, *COLOURED]
LIVE_PROMPTS = [*PLACES, *DRESSED, *BUSY, *COLOURED]


def write_dreambench(root: Path, *, subjects: int = len(NOUNS)) -> Path:
    """Draw the first ``subjects`` below ``root``; the same bytes each time."""
    for number, noun in enumerate(NOUNS[:subjects]):
        instance = world.subject(noun, FIRST + number)
        for n, picture in enumerate(world.subject_pictures(instance, PHOTOS, instance.seed)):
            write_atomic(root / noun / f"{n:02d}.png", png(picture))
    write_atomic(root / PROMPT_FILE, prompt_file(NOUNS[:subjects]))
    return root


def prompt_file(nouns: Sequence[str]) -> str:
    """As DreamBench's own is written: a table of classes, then two Python lists."""
    classes = "\n".join(f"{noun},{noun}" for noun in nouns)
    parts = [
        f"Classes\n\nsubject_name,class\n{classes}",
        f"Prompts\n\nObject Prompts\n\n{_listed(OBJECT_PROMPTS)}",
        f"Live Subject Prompts\n\n{_listed(LIVE_PROMPTS)}",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(prompts: Sequence[str]) -> str:
    lines = ",\n".join(f"'{prompt}'.format(unique_token, class_token)" for prompt in prompts)
    return f"prompt_list = [\n{lines}\n]"

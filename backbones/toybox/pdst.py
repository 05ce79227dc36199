"""Toybox-PDST: a dataset with a split test set, drawn instead of photographed.

Twenty subjects, half of them living; 5 training and 10 test pictures each, 10 captions per test picture. In
half of the set (every other subject) all training pictures share one background, light and drawing: what a
method that learns photos rather than subjects will learn with them. Test pictures never share it.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

from ...core.paths import write_atomic
from . import captions, world
from .photos import png
from .world import Instance, Picture

SUBJECTS, TRAIN, TEST, CAPTIONS = 20, 5, 10, 10  # PDST's own counts
FIRST = 400  # number of the first subject: presets were tuned on numbers under 100


def write_dataset(root: Path, *, subjects: int = SUBJECTS, test: int = TEST, seed: int = 0) -> Path:
    """Draw the first ``subjects`` below ``root`` in PDST's layout; the same bytes each time."""
    for number, instance in enumerate(instances(seed)[:subjects]):
        folder = root / f"{number:02d}-{instance.noun}"
        shared = number % 2 == 0
        train, held_out = pictures(instance, shared=shared, test=test)
        _write(folder / "train", train)
        _write(folder / "test", held_out)
        table = {f"{n:02d}.png": _numbered(wordings(p)) for n, p in enumerate(held_out)}
        write_atomic(folder / "captions.json", json.dumps(table, indent=1) + "\n")
        meta = {
            "class": instance.noun,
            "living": instance.noun in world.LIVING,
            "shared_background": shared,
            "source": "Toybox-PDST, drawn",
        }
        write_atomic(folder / "meta.json", json.dumps(meta, indent=1) + "\n")
    return root


def instances(seed: int = 0) -> list[Instance]:
    """Two living, two things, and so on, so that either half of the set has both with a shared background."""
    living, things = itertools.cycle(world.LIVING), itertools.cycle(world.THINGS)
    nouns = [next(living if number // 2 % 2 == 0 else things) for number in range(SUBJECTS)]
    return [world.subject(noun, FIRST + 1000 * seed + number) for number, noun in enumerate(nouns)]


def pictures(instance: Instance, *, shared: bool, test: int = TEST) -> tuple[list[Picture], list[Picture]]:
    """Training and test pictures of a subject. The test pictures' captions were never trained on."""
    rng = random.Random(f"pdst|{instance.noun}|{instance.look.key}")
    train = [world.redraw(instance, rng) for _ in range(TRAIN)]
    if shared:
        first = train[0]
        train = [
            _named(replace(p, scene=first.scene, light=first.light, variant=first.variant)) for p in train
        ]
    kept = (p for p in world.subject_pictures(instance, 5 * test + 20, instance.seed) if len(p.named) > 1)
    elsewhere = (p for p in kept if not shared or p.scene != train[0].scene)
    return train, list(itertools.islice(elsewhere, test))


def wordings(picture: Picture, count: int = CAPTIONS) -> list[str]:
    """True captions that differ, the fullest first, {} in the noun's place: ``a photo of a {} in space``."""
    facts = sorted(picture.named)
    subsets = [s for size in range(len(facts), 0, -1) for s in itertools.combinations(facts, size)]
    texts = [
        _slotted(replace(picture, named=frozenset(subset), template=template))
        for subset in subsets
        for template in world.TEMPLATES
    ]
    return list(dict.fromkeys(texts))[:count]


def _slotted(picture: Picture) -> str:
    noun = picture.things[0].noun
    article = "an" if noun[0] in "aeiou" else "a"
    return captions.caption(picture).replace(f"{article} {noun}", "a {}", 1)


def _named(picture: Picture) -> Picture:
    """The same picture with its light told where it is not plain day."""
    named = (picture.named - {"light"}) | ({"light"} if picture.light != "day" else set())
    return replace(picture, named=frozenset(named))


def _numbered(texts: list[str]) -> dict[str, str]:
    return {str(number): text for number, text in enumerate(texts)}


def _write(folder: Path, some: list[Picture]) -> None:
    for number, picture in enumerate(some):
        write_atomic(folder / f"{number:02d}.png", png(picture))
        write_atomic(folder / f"{number:02d}.txt", _slotted(picture) + "\n")

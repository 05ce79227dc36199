"""Scenes of the built-in world, as its own pictures are: for a model that knows no other.

Toybox's things are all about equally tall, whatever they are, and its empty scenes are drawn. One or two
things stand where its training pictures have them; of more it has none, so they stand in two rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..backbones.toybox import render, world
from .backgrounds import Origin
from .layout import Box, Item, Layout, Thing, rounded
from .proposing import Proposal
from .recaption import article

ALONE, BESIDE = 38.0, 27.0  # px of Toybox's 64: how tall one thing is, and one of several
WIDEST = 30.0  # px, beside another


@dataclass(frozen=True)
class ToyboxProposer:
    """For Layout Scene: Toybox's sizes, relations and places."""

    name: str = "toybox"

    def propose(self, things: Sequence[Thing], *, seed: int, attempt: int) -> Proposal:
        dice = random.Random(f"toybox layout {seed} {attempt} {[thing.name for thing in things]}")
        boxes = {
            thing.name: _box(thing, middle, dice)
            for thing, middle in zip(things, _middles(len(things), dice), strict=True)
        }
        edges = {name: max(box[2:]) for name, box in boxes.items()}
        ratios = {name: edge / max(edges.values()) for name, edge in edges.items()}
        scene = world.SCENES[dice.choice(sorted(world.SCENES))]
        return Proposal(scene=scene, ratios=ratios, boxes=boxes)


def _middles(count: int, dice: random.Random) -> list[tuple[float, float, float]]:
    """Of each thing: where its middle is, in pixels, and how tall it may be."""
    if count == 1:
        return [(32.0, 39.0, ALONE)]
    if count == 2:
        return [(x, y, BESIDE) for x, y in world.PLACES_OF_TWO[dice.choice(sorted(world.RELATIONS))]]
    upper = count // 2 if dice.random() < 0.5 else count - count // 2
    middles = []
    for y, row in ((18.0, upper), (46.0, count - upper)):
        step = world.SIZE_PX / row
        middles += [(step * (n + 0.5), y, min(BESIDE, 0.94 * step)) for n in range(row)]
    dice.shuffle(middles)
    return middles


def _box(thing: Thing, middle: tuple[float, float, float], dice: random.Random) -> Box:
    x, y, most = middle
    tall = min(most, min(WIDEST, most * WIDEST / BESIDE) / thing.aspect) * dice.uniform(0.95, 1.0)
    wide = tall * thing.aspect
    sway_x, sway_y = dice.uniform(-1, 1), dice.uniform(-1, 1)
    left = min(max(x + sway_x - wide / 2, 1.0), world.SIZE_PX - 1.0 - wide)
    top = min(max(y + sway_y - tall / 2, 1.0), world.SIZE_PX - 1.0 - tall)
    return rounded(tuple(value / world.SIZE_PX for value in (left, top, wide, tall)))


@dataclass(frozen=True)
class ToyboxCaptioner:
    """For Recaption: "a photo of a rabbit to the left of a cup in the snow", as Toybox's captions are."""

    name: str = "toybox"

    def describe(self, image: Image.Image, layout: Layout, *, seed: int) -> str:
        dice = random.Random(f"toybox caption {seed}")
        items = dice.sample(layout.items, len(layout.items))
        nouns = [f"{article(item.noun)} {item.noun}" for item in items]
        if len(items) == 2 and dice.random() < 0.7:  # as often as Toybox's captions tell it
            things = f"{nouns[0]} {world.RELATIONS[_relation(items[0], items[1])]} {nouns[1]}"
        else:
            things = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        template = dice.choice([words for words in world.TEMPLATES if words])
        return " ".join(words for words in (template, things, layout.scene) if words)


def _relation(first: Item, second: Item) -> str:
    (x, y), (other_x, other_y) = ((i.box[0] + i.box[2] / 2, i.box[1] + i.box[3] / 2) for i in (first, second))
    if abs(x - other_x) > abs(y - other_y):
        return "left" if x < other_x else "right"
    return "above" if y < other_y else "below"


@dataclass(frozen=True)
class ToyboxBackgrounds:
    """For Compose Scene: Toybox's empty scenes of that place by day; of any, when it has none."""

    name: str = "toybox"

    def picture(self, scene: str, width: int, height: int, *, seed: int) -> tuple[Image.Image, Origin]:
        dice = random.Random(f"toybox background {seed}")
        known = [key for key, words in world.SCENES.items() if words == scene.strip()]
        key = dice.choice(known or sorted(world.SCENES))
        empty = world.Picture(things=(), scene=key, variant=dice.randrange(world.NUM_VARIANTS))
        image = Image.fromarray(render.image(empty)).resize((width, height), Image.Resampling.BICUBIC)
        return image, {"kind": "toybox", "scene": key, "variant": empty.variant}

"""Scenes of the built-in world: in its own proportions and words, for any number of things."""

from __future__ import annotations

import re

import numpy as np
import pytest
from likeness.backbones.toybox import render, world
from likeness.composing.layout import Item, Layout, Thing
from likeness.composing.proposing import draw_layout
from likeness.composing.recaption import caption_scene
from likeness.composing.toybox import BESIDE, ToyboxBackgrounds, ToyboxCaptioner, ToyboxProposer
from likeness.composing.validation import overlap
from PIL import Image

ASPECTS = {
    "rabbit": 0.7,
    "car": 1.4,
    "cup": 1.1,
    "house": 1.0,
    "rocket": 0.5,
    "boat": 1.3,
    "bird": 1.0,
    "bear": 0.8,
}


def things(count: int) -> list[Thing]:
    return [Thing(name=noun, noun=noun, aspect=aspect) for noun, aspect in list(ASPECTS.items())[:count]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_every_layout_holds_at_the_first_try(count: int) -> None:
    for seed in range(40):
        drawn = draw_layout(ToyboxProposer(), things(count), seed=seed)
        boxes = [item.box for item in drawn.layout.items]
        assert drawn.tries == 1 and drawn.layout.scene in world.SCENES.values()
        assert max([overlap(a, b) for n, a in enumerate(boxes) for b in boxes[n + 1 :]], default=0.0) < 0.15


@pytest.mark.parametrize("count", [2, 3])
def test_things_are_as_tall_as_in_its_pictures(count: int) -> None:
    for seed in range(20):
        layout = draw_layout(ToyboxProposer(), things(count), seed=seed).layout
        tall = [item.box[3] * world.SIZE_PX for item in layout.items if ASPECTS[item.noun] <= 1.1]
        assert all(0.94 * BESIDE <= height <= BESIDE for height in tall)


def pair(first: tuple[float, float], second: tuple[float, float]) -> Layout:
    boxes = [(x, y, 0.4, 0.4) for x, y in (first, second)]
    return Layout(
        scene="in the snow",
        items=tuple(Item(subject=n, noun=n, box=b) for n, b in zip(("cat", "umbrella"), boxes, strict=True)),
    )


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (
            ((0.05, 0.4), (0.55, 0.42)),
            ("a cat to the left of an umbrella", "an umbrella to the right of a cat"),
        ),
        (((0.3, 0.02), (0.33, 0.5)), ("a cat on top of an umbrella", "an umbrella under a cat")),
    ],
)
def test_two_things_are_told_in_its_words(places: tuple, words: tuple[str, str]) -> None:
    layout, picture = pair(*places), Image.new("RGB", (64, 64))
    told = {ToyboxCaptioner().describe(picture, layout, seed=seed) for seed in range(60)}
    inner = {re.sub(r"^(a photo|a picture|an image) of | in the snow$", "", text) for text in told}
    assert inner == {*words, "a cat and an umbrella", "an umbrella and a cat"}


def test_three_things_are_listed_with_their_tokens() -> None:
    layout = draw_layout(ToyboxProposer(), things(3), seed=0).layout
    caption, warnings = caption_scene(ToyboxCaptioner(), Image.new("RGB", (64, 64)), layout, seed=0)
    assert not warnings and all(caption.count(f"<{noun}> {noun}") == 1 for noun in ("rabbit", "car", "cup"))
    assert caption.endswith(layout.scene)


def test_backgrounds_are_its_empty_scenes() -> None:
    image, origin = ToyboxBackgrounds().picture("in the snow", 64, 64, seed=3)
    empty = world.Picture(things=(), scene="snow", variant=origin["variant"])
    assert origin["scene"] == "snow" and np.array_equal(np.asarray(image), render.image(empty))
    other, told = ToyboxBackgrounds().picture("on a farm", 96, 32, seed=3)
    assert other.size == (96, 32) and told["scene"] in world.SCENES

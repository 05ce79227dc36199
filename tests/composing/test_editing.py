"""A layout that a person has edited: taken as it is, or refused with all that is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from likeness.composing.editing import MAX_OVERLAP, MIN_EDGE, problems, read_edited, redrawn, things_in
from likeness.composing.layout import Layout, Thing
from likeness.composing.validation import overlap
from likeness.core.errors import LikenessError


def text(*boxes: list[float], locked: int = -1) -> str:
    items = [
        {"subject": f"s{n}", "noun": "cup", "box": box, "locked": n == locked} for n, box in enumerate(boxes)
    ]
    return json.dumps({"version": 1, "scene": "on a lawn", "items": items})


GOOD = text([0.1, 0.5, 0.3, 0.3], [0.25, 0.5, 0.3, 0.3], [0.0, 0.0, 1.0, 0.2])


def test_what_a_person_wants_is_taken_as_it_is() -> None:
    """More overlap than a proposal may have, things in the air, any order."""
    layout = read_edited(GOOD)
    assert [item.box for item in layout.items] == [
        (0.1, 0.5, 0.3, 0.3),
        (0.25, 0.5, 0.3, 0.3),
        (0.0, 0.0, 1.0, 0.2),
    ]
    assert overlap(layout.items[0].box, layout.items[1].box) == pytest.approx(0.5)


BAD = [
    ([[0.8, 0.5, 0.3, 0.3]], "s0 leaves the canvas"),
    ([[-0.1, 0.5, 0.3, 0.3]], "s0 leaves the canvas"),
    ([[0.1, 0.9, 0.3, 0.3]], "s0 leaves the canvas"),
    ([[0.1, 0.5, 0.04, 0.03]], "s0 is smaller than 5% of the canvas"),
    ([[0.1, 0.5, 0.3, 0.3], [0.15, 0.5, 0.3, 0.3]], "s0 and s1 overlap by 83%, more than 60%"),
    ([[0.1, 0.1, 0.8, 0.8], [0.2, 0.2, 0.1, 0.1]], "s0 and s1 overlap by 100%, more than 60%"),
]


@pytest.mark.parametrize(("boxes", "words"), BAD)
def test_what_cannot_be_composed_is_refused_in_words(boxes: list[list[float]], words: str) -> None:
    assert problems(Layout.from_json(text(*boxes))) == [words]
    with pytest.raises(LikenessError, match=words):
        read_edited(text(*boxes))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(LikenessError, match=r"leaves.*smaller.*overlap"):
        read_edited(text([0.9, 0.5, 0.3, 0.3], [0.1, 0.1, 0.04, 0.04], [0.1, 0.1, 0.04, 0.04]))


@pytest.mark.parametrize("change", [0.0, 1e-4])
def test_the_limits_are_limits_give_or_take_a_pixel(change: float) -> None:
    side = 0.4
    shift = side * (1 - MAX_OVERLAP) - change
    near = text([0.1, 0.1, side, side], [0.1 + shift, 0.1, side, side], [0.9, 0.9, MIN_EDGE, 0.01])
    assert problems(Layout.from_json(near)) == []


def test_a_layout_of_other_subjects_is_refused() -> None:
    with pytest.raises(LikenessError, match="other subjects"):
        read_edited(GOOD, [Thing(name="dog", noun="dog")])


def test_a_new_draw_leaves_what_is_locked() -> None:
    before = Layout.from_json(text([0.1, 0.6, 0.3, 0.3], [0.6, 0.6, 0.25, 0.3], locked=0))
    after = [redrawn(before, seed=seed).layout for seed in range(8)]
    assert {layout.item("s0").box for layout in after} == {before.item("s0").box}
    assert len({layout.item("s1").box for layout in after}) == 8
    assert {layout.scene for layout in after} == {"on a lawn"}
    assert redrawn(before, seed=3) == redrawn(before, seed=3)


def test_a_new_draw_keeps_what_is_turned_and_flipped() -> None:
    record = json.loads(text([0.1, 0.6, 0.3, 0.2], [0.6, 0.6, 0.2, 0.3]))
    record["items"][0] |= {"angle": -90.0, "flip": True}
    before = Layout.from_json(json.dumps(record))
    lying = [Thing(name="s0", noun="cup", aspect=0.5), Thing(name="s1", noun="cup", aspect=0.5)]
    after = redrawn(before, seed=1, things=lying).layout
    assert (after.item("s0").angle, after.item("s0").flip) == (-90.0, True)
    assert (after.item("s1").angle, after.item("s1").flip) == (0.0, False)
    shapes = {thing.name: pytest.approx(thing.aspect, rel=1e-3) for thing in things_in(after)}
    assert shapes == {"s0": 1.5, "s1": 0.5}


def test_a_new_draw_keeps_the_shapes() -> None:
    before = Layout.from_json(text([0.1, 0.6, 0.3, 0.2], [0.6, 0.6, 0.2, 0.3]))
    after = redrawn(before, seed=1).layout
    shapes: Any = [{t.name: pytest.approx(t.aspect, rel=1e-3) for t in things_in(one)} for one in (before,)]
    assert {t.name: t.aspect for t in things_in(after)} == shapes[0]

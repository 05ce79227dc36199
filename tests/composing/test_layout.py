"""Layouts: their text form, the rules that they keep to, mending, and drawing until one holds."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.composing import sizes
from likeness.composing.layout import MAX_ITEMS, Item, Layout, Thing, renamed, things_of
from likeness.composing.proposing import Proposal, RuleBased, draw_layout
from likeness.composing.validation import Limits, Rejected, check, inside, overlap, painted, repair
from likeness.core.errors import LikenessError

CAT, DOG = Thing(name="tom", noun="cat", aspect=0.8), Thing(name="rex", noun="dog", aspect=1.2)


def item(name: str = "tom", box: Any = (0.1, 0.5, 0.3, 0.4), noun: str = "cat", **more: Any) -> Item:
    return Item(subject=name, noun=noun, box=box, **more)


def layout(*items: Item) -> Layout:
    return Layout(scene="in a garden", items=items)


# --- text ---------------------------------------------------------------------------------------------


def test_there_and_back() -> None:
    one = layout(item(flip=True, angle=12.5, locked=True), item("rex", (0.5, 0.25, 0.4, 0.5), "dog"))
    assert Layout.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 2}', "null", '{"version": 1, "scene": "x", "items": []}', "[" * 100_000,
     "x" * 200_000, '{"version": 1, "scene": 5, "items": [{"subject": "a", "noun": "b", "box": [0,0,1,1]}]}'],
)  # fmt: skip
def test_text_that_is_no_layout(text: str) -> None:
    with pytest.raises(LikenessError, match="not a layout"):
        Layout.from_json(text)


@pytest.mark.parametrize(
    "box", [[0, 0, 1], [0, 0, 0, 1], [0, 0, -1, 1], ["a", 0, 1, 1], [0, 0, 1e9, 1], [True, 0, 1, 1], None,
    [0, 0, float("nan"), 1]] )  # fmt: skip
def test_boxes_that_are_none(box: Any) -> None:
    record = json.loads(layout(item()).to_json())
    record["items"][0]["box"] = box
    with pytest.raises(LikenessError, match="box"):
        Layout.from_json(json.dumps(record))


def test_a_subject_twice_and_too_many() -> None:
    with pytest.raises(LikenessError, match="same subject"):
        Layout.from_json(layout(item(), item()).to_json())
    with pytest.raises(LikenessError, match="items"):
        Layout.from_json(layout(*(item(f"s{n}") for n in range(MAX_ITEMS + 1))).to_json())
    for names in ([], [("a", "b", 1.0)] * 2, [(f"s{n}", "x", 1.0) for n in range(9)]):
        with pytest.raises(LikenessError):
            things_of(names)


def test_a_layout_of_other_subjects() -> None:
    with pytest.raises(LikenessError, match="rex missing, tom too many"):
        renamed(layout(item()), [DOG])
    assert renamed(layout(item(noun="kitten")), [CAT]).items[0].noun == "cat"


leaves = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
keys = st.sampled_from(["version", "scene", "items", "box", "subject"])


@settings(max_examples=30)
@given(st.recursive(leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(keys, x, max_size=4)))
def test_any_json_gives_a_layout_or_one_clear_error(value: Any) -> None:
    try:
        Layout.from_json(json.dumps(value))
    except LikenessError as error:
        assert "not a layout" in str(error)


# --- rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([item()], "missing subject"),
        ([item(box=(0.8, 0.5, 0.3, 0.4)), item("rex", (0.0, 0.5, 0.4, 0.4), "dog")], "outside the canvas"),
        ([item(box=(0.0, 0.8, 0.05, 0.05)), item("rex", (0.5, 0.8, 0.05, 0.05), "dog")], "too small"),
        ([item(box=(0.0, 0.3, 0.2, 0.21)), item("rex", (0.5, 0.2, 0.4, 0.7), "dog")], "size ratio"),
        ([item(box=(0.0, 0.01, 0.4, 0.4)), item("rex", (0.5, 0.5, 0.4, 0.4), "dog")], "in the air"),
        ([item(box=(0.1, 0.5, 0.4, 0.4)), item("rex", (0.3, 0.5, 0.4, 0.4), "dog")], "overlap"),
    ],
)
def test_each_rule_has_teeth(items: list[Item], reason: str) -> None:
    with pytest.raises(Rejected) as error:
        check(layout(*items), [CAT, DOG], {"tom": 1.0, "rex": 1.0}, Limits())
    assert error.value.reason == reason


def test_what_holds_passes() -> None:
    good = layout(item(box=(0.05, 0.5, 0.4, 0.4)), item("rex", (0.5, 0.5, 0.4, 0.4), "dog"))
    check(good, [CAT, DOG], {"tom": 1.0, "rex": 1.0}, Limits())


def test_overlap_by_hand() -> None:
    assert overlap((0, 0, 0.5, 0.5), (0.25, 0.25, 0.5, 0.5)) == pytest.approx(0.25)
    assert overlap((0, 0, 0.2, 0.2), (0.1, 0, 0.5, 0.2)) == pytest.approx(0.5)  # of the smaller
    assert overlap((0, 0, 0.2, 0.2), (0.3, 0, 0.5, 0.2)) == 0


@given(st.tuples(*[st.floats(-1, 2)] * 2, *[st.floats(0.05, 0.9)] * 2))
def test_moving_inside_keeps_the_size(box: Any) -> None:
    x, y, width, height = inside(box, Limits())
    assert (width, height) == (round(box[2], 5), round(box[3], 5))
    assert x >= 0 and y >= 0 and x + width <= 1.0001 and y + height <= 1.0001


def test_mending_sizes_places_and_feet() -> None:
    poor = layout(item(box=(0.9, 0.0, 0.2, 0.1)), item("rex", (0.6, 0.1, 0.6, 0.6), "dog"))
    ratios = {"tom": 0.5, "rex": 1.0}
    mended = repair(poor, [CAT, DOG], ratios, Limits())
    check(mended, [CAT, DOG], ratios, Limits())
    tom, rex = mended.item("tom").box, mended.item("rex").box
    assert tom[2] / tom[3] == pytest.approx(0.8, rel=1e-3) and rex[2] / rex[3] == pytest.approx(1.2, rel=1e-3)


def test_a_locked_item_stays() -> None:
    fixed = item("rex", (0.6, 0.5, 0.3, 0.3), "dog", locked=True)
    mended = repair(layout(item(), fixed), [CAT, DOG], {"tom": 0.5, "rex": 1.0}, Limits())
    assert mended.item("rex") == fixed
    loose = Limits(max_ratio_error=1.0)
    drawn = draw_layout(RuleBased(), [CAT, DOG], seed=3, locked=layout(item(), fixed), limits=loose)
    assert drawn.layout.item("rex").box == fixed.box


def test_painting_order() -> None:
    near, far = item("n", (0, 0.6, 0.2, 0.3)), item("f", (0, 0.3, 0.2, 0.3))
    hung = item("k", (0, 0.8, 0.1, 0.1), "kite")
    assert [i.subject for i in painted([near, far, hung])] == ["k", "f", "n"]


# --- sizes --------------------------------------------------------------------------------------------


def test_sizes_keep_their_order_and_stay_visible() -> None:
    nouns = ["cup", "cat", "dog", "car", "house"]
    found = sizes.ratios(nouns)
    assert found == sorted(found) and found[-1] == 1 and min(found) >= sizes.SMALLEST
    assert sizes.size_cm("fancy boot") == sizes.size_cm("boot")
    assert sizes.size_cm("Robot_Toys") == sizes.size_cm("robot toy")
    assert sizes.size_cm("gizmo") == sizes.UNKNOWN_CM and sizes.support("gizmo") == "ground"


# --- drawing ------------------------------------------------------------------------------------------


def some_things(seed: int) -> list[Thing]:
    """One to five things of the table, of any aspect that photos have."""
    dice = random.Random(seed)
    nouns = dice.sample(sorted(sizes.SIZES_CM), dice.randint(1, 5))
    return [Thing(name=noun, noun=noun, aspect=dice.uniform(0.4, 2.2)) for noun in nouns]


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_every_rule_based_draw_holds(seed: int) -> None:
    things = some_things(seed)
    drawn = draw_layout(RuleBased(), things, seed=seed)
    check(drawn.layout, things, drawn.ratios, Limits())
    assert drawn == draw_layout(RuleBased(), things, seed=seed)


def test_19_of_20_rule_based_draws_need_3_tries_at_most() -> None:
    tries = [draw_layout(RuleBased(), some_things(seed), seed=seed).tries for seed in range(200)]
    assert sum(count <= 3 for count in tries) >= 190


class Fixed:
    """A proposer that says the same."""

    name = "fixed"

    def __init__(self, *boxes: Any) -> None:
        self.boxes, self.asked = boxes, 0

    def propose(self, things: Any, *, seed: int, attempt: int) -> Proposal:
        self.asked += 1
        if not self.boxes:
            raise Rejected("no JSON object")
        names = ["tom", "rex"]
        boxes = dict(zip(names, self.boxes, strict=False))
        return Proposal(scene="on a hill", ratios=dict.fromkeys(names, 1.0), boxes=boxes)


def test_reasons_are_counted_and_the_fallback_answers(caplog: Any) -> None:
    with pytest.raises(LikenessError, match=r"no JSON object \(3 times\)"):
        draw_layout(Fixed(), [CAT, DOG], seed=0, max_tries=3)
    drawn = draw_layout(Fixed(), [CAT, DOG], seed=0, max_tries=3, fallback=RuleBased())
    assert drawn.proposer == "rules" and drawn.rejected == {"no JSON object": 3} and drawn.tries == 4
    assert "answers instead" in caplog.text and "rejected: no JSON object 3" in drawn.in_words()


def test_a_scene_that_was_asked_for_is_kept() -> None:
    maker = Fixed((0.0, 0.5, 0.4, 0.4), (0.5, 0.5, 0.4, 0.4))
    assert draw_layout(maker, [CAT, DOG], seed=0).layout.scene == "on a hill"
    assert draw_layout(maker, [CAT, DOG], seed=0, scene="at home").layout.scene == "at home"

"""What the page's layout editor asks for: another draw, or one clear sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.composing.layout import Layout
from likeness.core.errors import LikenessError
from likeness.nodes.layouts import redraw
from likeness.nodes.scenes.layout import LayoutScene

ITEMS = [
    {"subject": "rabbit", "noun": "rabbit", "box": [0.1, 0.6, 0.2, 0.3], "locked": True},
    {"subject": "car", "noun": "car", "box": [0.5, 0.6, 0.4, 0.2]},
]
LAYOUT = json.dumps({"version": 1, "scene": "on a lawn", "items": ITEMS})
THINGS = [
    {"subject": "rabbit", "noun": "rabbit", "aspect": 0.7, "picture": None},
    {"subject": "car", "noun": "car", "aspect": 3.0, "picture": None},
]


def ask(**changed: Any) -> dict[str, str]:
    return redraw(json.dumps({"layout": LAYOUT, "things": THINGS, "seed": 1} | changed))


def shape(answer: dict[str, str]) -> float:
    _, _, width, height = Layout.from_json(answer["layout"]).item("car").box
    return width / height


def test_another_draw_has_the_shapes_of_the_cut_outs() -> None:
    first, second = ask(), ask(seed=2)
    assert first == ask() and first["layout"] != second["layout"] and "try" in first["report"]
    assert Layout.from_json(first["layout"]).item("rabbit").box == (0.1, 0.6, 0.2, 0.3)
    assert shape(first) == pytest.approx(3.0, rel=1e-2)


@pytest.mark.parametrize("things", [[], THINGS[:1], "no list"])
def test_without_cut_outs_the_boxes_keep_their_own_shapes(things: Any) -> None:
    assert shape(ask(things=things)) == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1}, {"seed": True}, {"seed": "1"}, {"seed": 2**40}, {"layout": ""}, {"layout": "[]"},
        {"things": [{"subject": "car"}]}, {"things": [{**THINGS[0], "aspect": 0}]},
        {"things": [{**THINGS[0], "aspect": 1e9}]},
    ],
)  # fmt: skip
def test_what_asks_nothing_sensible_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LikenessError):
        ask(**wrong)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40) | st.dictionaries(st.sampled_from(["layout", "seed", "things"]), st.integers()))
def test_any_body_gives_one_clear_error(body: Any) -> None:
    with pytest.raises(LikenessError):
        redraw(body if isinstance(body, str) else json.dumps(body))


def test_a_bad_layout_is_refused_before_anything_runs() -> None:
    far = LAYOUT.replace("0.5, 0.6", "0.9, 0.6")
    assert LayoutScene.validate_inputs(proposer="rules", layout=LAYOUT) is True
    assert LayoutScene.validate_inputs(proposer="rules", layout=None) is True
    assert LayoutScene.validate_inputs(proposer="rules", layout="  ") is True
    assert "car leaves the canvas" in str(LayoutScene.validate_inputs(proposer="rules", layout=far))
    assert "not a layout" in str(LayoutScene.validate_inputs(proposer="rules", layout="{}"))

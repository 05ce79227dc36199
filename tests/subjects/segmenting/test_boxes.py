"""Which box the subject is in."""

from __future__ import annotations

import pytest
from likeness.core.errors import LikenessError
from likeness.subjects.segmenting.base import Box
from likeness.subjects.segmenting.boxes import choose, parse_boxes, parse_points


def box(x0: float, y0: float, x1: float, y1: float, label: str = "", score: float | None = None) -> Box:
    return Box(x0=x0, y0=y0, x1=x1, y1=y1, label=label, score=score)


SMALL, LARGE = box(0, 0, 10, 10, "cat", 0.9), box(20, 20, 60, 60, "cat", 0.3)


@pytest.mark.parametrize(("policy", "wanted"), [("largest", [LARGE]), ("best", [SMALL])])
def test_several_boxes_are_noted_and_one_is_taken(policy: str, wanted: list[Box]) -> None:
    boxes, notes = choose([SMALL, LARGE], "cat", 100, 100, policy)  # type: ignore[arg-type]
    assert boxes == wanted and "2 boxes" in notes[0]


def test_union_takes_all() -> None:
    assert choose([SMALL, LARGE], "cat", 100, 100, "union")[0] == [SMALL, LARGE]


def test_best_without_scores_is_the_largest() -> None:
    small, large = box(0, 0, 10, 10), box(0, 0, 20, 20)
    assert choose([small, large], "cat", 100, 100, "best")[0] == [large]


def test_a_box_of_the_whole_picture_goes_unless_it_is_the_only_one() -> None:
    whole = box(0, 0, 100, 100, "cat")
    assert choose([whole, SMALL], "cat", 100, 100, "largest") == ([SMALL], [])
    assert choose([whole], "cat", 100, 100, "largest") == ([whole], [])


def test_boxes_of_another_label_go_when_the_noun_has_one() -> None:
    assert choose([box(0, 0, 50, 50, "a sofa"), SMALL], "cat", 100, 100, "largest")[0] == [SMALL]


def test_nothing_found_is_said() -> None:
    outside = box(200, 200, 300, 300, "cat")
    assert choose([outside], "cat", 100, 100, "largest") == ([], ["no cat was found"])


def test_boxes_and_points_as_text() -> None:
    assert [b.corners for b in parse_boxes("1 2 3 4; [5, 6, 7, 8]")] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert [(p.x, p.y, p.inside) for p in parse_points("1 2\n3 4 0")] == [(1, 2, True), (3, 4, False)]


@pytest.mark.parametrize("text", ["1 2 3", "a b c d", "5 5 5 9"])
def test_what_is_no_box_is_named(text: str) -> None:
    with pytest.raises(LikenessError, match=text.split()[0]):
        parse_boxes(text)


@pytest.mark.parametrize("text", ["1", "1 2 7", "x y"])
def test_what_is_no_point_is_named(text: str) -> None:
    with pytest.raises(LikenessError, match="not a point"):
        parse_points(text)

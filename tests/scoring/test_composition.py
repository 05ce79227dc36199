"""CP-CLIP and TI-CLIP: assignment, missing and doubled subjects, boxes of no use, prompts without
identifiers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.scoring.composition import (
    Sought,
    assign,
    crop,
    plain_prompt,
    score_composition,
    score_compositions,
)

RED, GREEN, BLUE = torch.eye(3)
PICTURE = torch.zeros(3, 64, 64)
PICTURE[0, :, :32] = 1.0  # left half red, right half green
PICTURE[1, :, 32:] = 1.0
LEFT, RIGHT = (4.0, 20.0, 28.0, 44.0), (36.0, 20.0, 60.0, 44.0)


class Colours:
    """The mean colour of a crop, as a unit row."""

    id, label, weights_hash, preprocessing = "colours", "Colours", "", ""

    def encode(self, images: Any) -> Any:
        rows = torch.stack([image.flatten(1).mean(1) for image in images]) + 1e-6
        return rows / rows.norm(dim=1, keepdim=True)

    def encode_text(self, texts: Any) -> Any:
        return torch.stack([RED if "red" in text else BLUE for text in texts])


class Finds:
    """A detector that was told what to find."""

    id = "told"

    def __init__(self, **boxes: Any) -> None:
        self.boxes = boxes

    def detect(self, image: Any, noun: str) -> Any:
        return [(box, 0.9) for box in self.boxes.get(noun, [])]


def sought(name: str, noun: str, colour: Any, **more: Any) -> Sought:
    return Sought(name=name, noun=noun, features_MD=colour[None], **more)


TOM, REX = sought("tom", "cat", RED), sought("rex", "dog", GREEN)


def test_both_there_and_right() -> None:
    score = score_composition(PICTURE, [TOM, REX], Finds(cat=[LEFT], dog=[RIGHT]), Colours())
    assert score.cp_clip == pytest.approx(1, abs=1e-3) and score.presence == 1 and score.extra == 0


def test_one_missing_counts_zero() -> None:
    score = score_composition(PICTURE, [TOM, REX], Finds(cat=[LEFT]), Colours())
    assert score.cp_clip == pytest.approx(0.5, abs=1e-3) and score.presence == 0.5
    assert score.given_present == pytest.approx(1, abs=1e-3) and score.boxes["rex"] is None


def test_wrong_looks_count_less_than_one_missing() -> None:
    wrong = score_composition(PICTURE, [TOM, REX], Finds(cat=[RIGHT], dog=[LEFT]), Colours())
    assert wrong.presence == 1 and wrong.cp_clip == pytest.approx(0, abs=1e-3)
    nothing = score_composition(PICTURE, [TOM, REX], Finds(), Colours())
    assert nothing.cp_clip == 0 and math.isnan(nothing.given_present)


def test_two_of_a_noun_need_two_boxes() -> None:
    bob = sought("bob", "cat", GREEN)
    one = score_composition(PICTURE, [TOM, bob], Finds(cat=[LEFT]), Colours())
    assert one.presence == 0.5 and one.boxes["tom"] == LEFT
    two = score_composition(PICTURE, [TOM, bob], Finds(cat=[RIGHT, LEFT]), Colours())
    assert two.presence == 1 and two.boxes == {"tom": LEFT, "bob": RIGHT}
    twice = score_composition(PICTURE, [TOM, TOM], Finds(cat=[LEFT]), Colours())
    assert twice.presence == 0.5 and set(twice.similarity) == {"tom", "tom#1"}


def test_boxes_left_over_and_boxes_of_no_use() -> None:
    many = Finds(cat=[LEFT, RIGHT, (0.0, 0.0, 1.0, 1.0), (-50.0, 0.0, -3.0, 9.0)])
    score = score_composition(PICTURE, [TOM], many, Colours())
    assert score.extra == 1 and score.boxes["tom"] == LEFT
    with pytest.raises(LikenessError, match="No subject"):
        score_composition(PICTURE, [], many, Colours())


@given(
    st.lists(
        st.lists(st.sampled_from([-math.inf, -0.5, 0.1, 0.3, 0.7, 0.9]), min_size=4, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_the_assignment_is_the_best_there_is(values: Any) -> None:
    """Against every way to give four boxes to so many subjects."""

    def worth(chosen: Any) -> Any:
        taken = [values[n][b] for n, b in enumerate(chosen) if b is not None]
        return (len(taken), sum(taken))

    ways = [
        way
        for way in itertools.product([None, 0, 1, 2, 3], repeat=len(values))
        if len({b for b in way if b is not None}) == sum(b is not None for b in way)
        and all(b is None or values[n][b] > -math.inf for n, b in enumerate(way))
    ]
    ours = assign(values)
    assert tuple(ours) in ways
    assert worth(ours) == pytest.approx(max(map(worth, ways)))


def test_a_crop_is_square_and_inside() -> None:
    assert crop(PICTURE, (0.0, 0.0, 10.0, 30.0)).shape == (3, 30, 30)
    assert crop(PICTURE, (0.0, 0.0, 64.0, 64.0)).shape == (3, 64, 64)


def test_identifiers_are_left_out_of_ti_clip() -> None:
    words = [sought("rex", "dog", GREEN, word="<rex> dog"), sought("tom", "cat", RED, word="<tom> cat")]
    assert plain_prompt("a <rex> dog and <tom>", words) == "a dog and cat"

    class Pair:
        clip = dino = Colours()

    card = score_compositions([PICTURE] * 2, ["a red <tom> cat", "a <rex> dog"], words, Finds(), Pair())  # type: ignore[arg-type]
    assert [row.ti_clip for row in card.rows] == pytest.approx([0.7071, 0.0], abs=1e-3)
    assert card.prompts == ("a red cat", "a dog") and card.record()["means"]["cp_clip"][0] == 0
    assert "our reading" in card.protocol["definition"] and "CP-CLIP 0.000" in card.summary()

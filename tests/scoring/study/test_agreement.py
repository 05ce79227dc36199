"""Kappa and intervals, against numbers that were worked out elsewhere."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.scoring.study.agreement import fleiss_kappa, share_interval, wilson

# Fleiss (1971), the table of 14 raters on 10 subjects in 5 categories that every textbook has: 0.210.
FLEISS = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip


def rows(counts: list[tuple[int, ...]]) -> list[list[str]]:
    return [[str(j) for j, n in enumerate(row) for _ in range(n)] for row in counts]


def test_the_textbook_table() -> None:
    assert fleiss_kappa(rows(FLEISS)) == pytest.approx(0.2099, abs=5e-5)


def test_two_questions_by_hand() -> None:
    """P_i = 1, (4 + 1 - 3) / 6 = 1/3; p = 5/6, 1/6: P_e = 26/36; kappa = (2/3 - 13/18) / (5/18) = -0.2."""
    assert fleiss_kappa([["y", "y", "y"], ["y", "y", "n"]]) == pytest.approx(-0.2)


def test_full_agreement_is_one_and_full_disagreement_is_minus_one() -> None:
    assert fleiss_kappa([["y", "y"], ["n", "n"]]) == 1.0
    assert fleiss_kappa([["y", "n"], ["n", "y"]]) == -1.0


@pytest.mark.parametrize("answers", [[], [["y"], ["n"]], [["y", "y"], ["y", "y"]]])
def test_nothing_to_compare_is_no_number(answers: list[list[str]]) -> None:
    assert math.isnan(fleiss_kappa(answers))


def test_unequal_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        fleiss_kappa([["y", "y"], ["y"]])


@settings(max_examples=30)
@given(
    st.integers(2, 8).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from("ynp"), min_size=n, max_size=n), min_size=1, max_size=12)
    ),
    st.randoms(use_true_random=False),
)
def test_neither_order_nor_names_matter(answers: list[list[str]], chance: random.Random) -> None:
    kappa = fleiss_kappa(answers)
    mixed = [chance.sample(row, len(row)) for row in chance.sample(answers, len(answers))]
    renamed = [[{"y": "a", "n": "b", "p": "c"}[a] for a in row] for row in mixed]
    if math.isnan(kappa):
        assert len({a for row in answers for a in row}) == 1
    else:
        assert -1.0 <= kappa <= 1.0 + 1e-12
        assert fleiss_kappa(renamed) == pytest.approx(kappa, abs=1e-9)


def test_wilson_by_hand() -> None:
    """15 of 40: the interval that R's prop.test(15, 40, correct = FALSE) gives."""
    assert wilson(15 / 40, 40) == pytest.approx((0.2422, 0.5297), abs=5e-5)
    assert wilson(1.0, 10) == pytest.approx((0.72246, 1.0), abs=1e-5)


def test_independent_pictures_have_wilsons_interval() -> None:
    hits = [("one subject", n < 15) for n in range(40)]
    assert share_interval(hits) == pytest.approx(wilson(15 / 40, 40))


def test_pictures_that_stand_and_fall_together_count_as_one() -> None:
    """Four subjects of ten equal pictures: the clustered variance is 4/3 of that of four pictures."""
    hits = [(subject, subject < 2) for subject in range(4) for _ in range(10)]
    assert share_interval(hits) == pytest.approx(wilson(0.5, 3.0))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
def test_the_interval_holds_the_share_and_is_never_narrower_than_wilsons(
    hits: list[tuple[int, bool]],
) -> None:
    low, high = share_interval(hits)
    share = sum(hit for _, hit in hits) / len(hits)
    plain_low, plain_high = wilson(share, len(hits))
    assert 0.0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1.0
    assert high - low >= plain_high - plain_low - 1e-9


def test_no_pictures_no_interval() -> None:
    assert all(map(math.isnan, share_interval([])))

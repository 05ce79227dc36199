"""Cleaning masks: pieces, holes, rims and edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from likeness.core.errors import LikenessError
from likeness.subjects.segmenting.refine import (
    Refinement,
    fill_holes,
    grow,
    label,
    largest_component,
    refine,
)

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def picture(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def flooded(mask_HW: np.ndarray, *, corners: bool) -> list[int]:
    """Sizes of the pieces by flooding, pixel by pixel: slow and plain."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask_HW), strict=True)}
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if corners or abs(dy) + abs(dx) == 1]
    sizes = []
    while left:
        wave, size = [left.pop()], 0
        while wave:
            y, x = wave.pop()
            size += 1
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            wave += near
        sizes.append(size)
    return sorted(sizes)


@given(MASKS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_pieces_are_those_of_a_flood(mask_HW: np.ndarray, corners: bool) -> None:
    labels_HW, sizes = label(mask_HW, corners=corners)
    assert sorted(sizes.tolist()) == flooded(mask_HW, corners=corners)
    assert np.array_equal(labels_HW > 0, mask_HW)


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_filling_is_idempotent_and_only_adds(mask_HW: np.ndarray) -> None:
    once_HW = fill_holes(mask_HW)
    assert (once_HW >= mask_HW).all() and np.array_equal(fill_holes(once_HW), once_HW)


def test_the_larger_of_two_pieces_stays_and_its_hole_is_filled() -> None:
    mask_HW = picture("###...", "#.#..#", "###..#", "......")
    wanted_HW = picture("###...", "###...", "###...", "......")
    assert np.array_equal(largest_component(mask_HW), picture("###...", "#.#...", "###...", "......"))
    assert np.array_equal(refine(mask_HW.astype(np.float32), Refinement()) >= 0.5, wanted_HW)


def test_a_bay_that_reaches_the_edge_is_no_hole() -> None:
    mask_HW = picture("#.#", "#.#", "###")
    assert np.array_equal(fill_holes(mask_HW), mask_HW)


def test_growing_adds_a_rim_and_feathering_a_soft_edge() -> None:
    mask_HW = np.zeros((21, 21), bool)
    mask_HW[8:13, 8:13] = True
    assert grow(mask_HW, 2).sum() == 9 * 9
    soft_HW = refine(mask_HW.astype(np.float32), Refinement(feather_px=1.5))
    assert soft_HW[10, 10] > 0.7 and 0.2 < soft_HW[10, 7] < 0.8 and soft_HW[0, 0] == 0
    assert soft_HW.dtype == np.float32


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(LikenessError, match="-1"):
        Refinement(grow_px=-1)

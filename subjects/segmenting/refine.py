"""From a raw cut-out to a mask: the largest piece, without holes, a little wider, with a soft edge."""
# Shapes: H W pixels.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ...core.errors import LikenessError
from .base import Mask

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What is done to a cut-out. Sizes are in pixels of the photo."""

    fill_holes: bool = True
    largest_component: bool = True  # a training photo shows one subject
    grow_px: int = 0  # outward; 4 keeps a rim of background, as some pipelines do
    feather_px: float = 0.0  # standard deviation of the soft edge

    def __post_init__(self) -> None:
        if not 0 <= self.grow_px <= 256 or not 0 <= self.feather_px <= 256:
            raise LikenessError(
                f"A mask cannot grow by {self.grow_px} px and be feathered by {self.feather_px:g} px",
                expected="0 to 256 each",
            )


def refine(mask_HW: Mask, how: Refinement) -> Mask:
    """The cleaned mask, float32 (H, W) in [0, 1]."""
    solid_HW = mask_HW >= 0.5
    if how.largest_component:
        solid_HW = largest_component(solid_HW)
    if how.fill_holes:
        solid_HW = fill_holes(solid_HW)
    if how.grow_px:
        solid_HW = grow(solid_HW, how.grow_px)
    return feather(solid_HW, how.feather_px)


def largest_component(mask_HW: Bools) -> Bools:
    """The largest piece whose pixels touch by an edge or a corner; the first of two that are equal."""
    labels_HW, sizes = label(mask_HW, corners=True)
    largest_HW: Bools = labels_HW == 1 + (int(np.argmax(sizes)) if len(sizes) else 0)
    return largest_HW


def fill_holes(mask_HW: Bools) -> Bools:
    """The mask with every piece of background that does not reach the picture's edge."""
    around_HW = np.pad(~mask_HW, 1, constant_values=True)
    labels_HW, _ = label(around_HW, corners=False)
    filled_HW: Bools = (labels_HW != labels_HW[0, 0])[1:-1, 1:-1]
    return filled_HW


def grow(mask_HW: Bools, by_px: int) -> Bools:
    """Every pixel within ``by_px`` of the mask, in a square neighbourhood."""
    image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * by_px + 1))) > 0


def feather(mask_HW: Bools, sigma_px: float) -> Mask:
    """A gaussian edge of this standard deviation; 0 keeps it sharp."""
    image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    if sigma_px > 0:
        image = image.filter(ImageFilter.GaussianBlur(sigma_px))
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def label(mask_HW: Bools, *, corners: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Connected pieces: labels from 1 (0 outside), and the size of each in pixels.

    By runs: every row's stretches are joined with those of the row above that they touch, so that the cost
    is in the outline and not in the area.
    """
    rows, starts, ends = _runs(mask_HW)
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for above, below in _touching(rows, starts, ends, reach=1 if corners else 0):
        a, b = root(above), root(below)
        parent[max(a, b)] = min(a, b)
    _, pieces = np.unique([root(run) for run in range(len(rows))], return_inverse=True)
    labels_HW = np.zeros(mask_HW.shape, np.int64)
    sizes = (
        np.bincount(pieces, weights=ends - starts).astype(np.int64) if len(rows) else np.zeros(0, np.int64)
    )
    for row, start, end, piece in zip(rows, starts, ends, pieces, strict=True):
        labels_HW[row, start:end] = piece + 1
    return labels_HW, sizes


def _runs(mask_HW: Bools) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, start and end of every stretch, row after row."""
    steps = np.diff(np.pad(mask_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return rows, starts, ends


def _touching(
    rows: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], *, reach: int
) -> list[tuple[int, int]]:
    """Pairs of runs in neighbouring rows that overlap, or with ``reach`` 1 meet at a corner."""
    first = np.searchsorted(rows, np.arange(int(rows.max()) + 3 if len(rows) else 1))
    pairs = []
    for row in range(1, len(first) - 2):
        above, below = int(first[row - 1]), int(first[row])
        while above < first[row] and below < first[row + 1]:
            if starts[above] < ends[below] + reach and starts[below] < ends[above] + reach:
                pairs.append((above, below))
            if ends[above] < ends[below]:
                above += 1
            else:
                below += 1
    return pairs

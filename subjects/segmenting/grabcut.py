"""GrabCut (Rother, Kolmogorov and Blake 2004): colours in a box against colours outside it, cut by a graph.

It needs no weights: OpenCV's implementation, twice, where the second pass starts from the tight box around
what the first one found; all of it at three sizes of the photo, which vote. One size alone is a matter of
luck: each loses photos that the other two cut well. How far they agree is the confidence. Where a locator
has seen an outline, the cut begins from that.
"""
# Shapes: H W pixels of the photo, h w of the working copy.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.packages import require
from .base import Box, Cut, Mask, Point
from .refine import Bools, fill_holes, label, largest_component

WORK_EDGE_PX = (192, 256)  # the long edge it works at: smaller photos are enlarged, larger ones reduced
SIZES = (0.6, 0.8, 1.0)  # of that edge, which vote
ITERATIONS = 5
MARGIN = 0.06  # of the frame that is background where no box is given
GROWN = 0.06  # of a box's size that is added on each side: boxes cut ears off
# Radius of the ellipse whose pixels begin as foreground: in a box that was found, and in the bare frame.
CORE_FOUND, CORE_FRAME = 1.0, 0.8  # the best of 0.65 to 1.5 on Toybox subjects that no benchmark uses
SURE = 0.8  # of a locator's outline: beyond it a pixel is certain
BINS = 16  # per channel, of the colours that occur outside a box
PIECE = 0.1  # of the largest piece: smaller ones are dirt
STRING = 0.05  # of the long edge: what hangs on something thinner is not the subject, such as a balloon
POINT_RADIUS = 0.02  # of the long edge: what a point says of its neighbourhood


class GrabCut:
    id = "opencv-grabcut"
    needs_prompt = False

    def __init__(self) -> None:
        self._cv2: Any = require("cv2", purpose="GrabCut", install="opencv-python-headless")

    def cut(self, image: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Cut:
        """The union over boxes. Without one the subject is looked for in the middle of the frame."""
        if not boxes:
            return self._cut_one(image, _middle(image.width, image.height), points, found=False)
        cuts = [self._cut_one(image, box, points, found=True) for box in boxes]
        mask_HW = np.maximum.reduce([cut.mask_HW for cut in cuts])
        return Cut(mask_HW=mask_HW, confidence=min(cut.confidence for cut in cuts))

    def _cut_one(self, image: Image.Image, box: Box, points: Sequence[Point], *, found: bool) -> Cut:
        """The mean of what it finds at each size: at least a half where most of them find the subject."""
        edge = max(image.size)
        scales = [size * _scale(edge) for size in SIZES]
        found_at = [self._cut_at(image, scale, box, points, found=found) for scale in scales]
        votes = [_resized(solid_hw, image) for solid_hw in found_at]
        mask_HW = np.add.reduce(votes) / np.float32(len(votes))
        agreed_HW = mask_HW >= 0.5
        agreement = [_overlap(vote_HW >= 0.5, agreed_HW) for vote_HW in votes]
        return Cut(mask_HW=mask_HW, confidence=float(np.mean(agreement)))

    def _cut_at(
        self, image: Image.Image, scale: float, box: Box, points: Sequence[Point], *, found: bool
    ) -> Bools:
        """Two passes at one size."""
        size = (max(round(image.width * scale), 8), max(round(image.height * scale), 8))
        pixels_hw3 = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        seeds_hw = self._point_seeds(size, points, scale)
        core = CORE_FOUND if found else CORE_FRAME
        outline_hw = None if box.outline_HW is None else _shrunk(box.outline_HW, size)
        box = _scaled(_grown(box) if found else box, scale)
        first_hw = self._pass(pixels_hw3, box, core, seeds_hw, outline_hw)
        tight = _tight(first_hw)
        if tight is None:
            return first_hw
        second_hw = self._pass(pixels_hw3, _inside(_grown(tight), box), core, seeds_hw, outline_hw)
        return _without_hangers(self._cv2, second_hw) if seeds_hw is None else second_hw

    def _pass(
        self,
        pixels_hw3: NDArray[np.uint8],
        box: Box,
        core: float,
        seeds_hw: NDArray[np.uint8] | None,
        outline_hw: Mask | None,
    ) -> Bools:
        """One GrabCut from a box: outside it is background for certain."""
        cv2 = self._cv2
        if outline_hw is None:
            labels_hw = _labels(cv2, pixels_hw3, box, core)
        else:
            labels_hw = _outlined(cv2, outline_hw, box)
        if seeds_hw is not None:
            labels_hw = np.where(seeds_hw < 255, seeds_hw, labels_hw).astype(np.uint8)
        if not _has_both(cv2, labels_hw):
            return np.isin(labels_hw, (cv2.GC_FGD, cv2.GC_PR_FGD))
        cv2.setRNGSeed(0)  # its k-means draws by lot
        colours = cv2.cvtColor(np.ascontiguousarray(pixels_hw3), cv2.COLOR_RGB2BGR)
        cv2.grabCut(
            colours,
            labels_hw,
            None,
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            ITERATIONS,
            cv2.GC_INIT_WITH_MASK,
        )
        solid_hw = np.isin(labels_hw, (cv2.GC_FGD, cv2.GC_PR_FGD))
        return fill_holes(_pieces(solid_hw))

    def _point_seeds(
        self, size: tuple[int, int], points: Sequence[Point], scale: float
    ) -> NDArray[np.uint8] | None:
        """Discs of certain foreground and background; 255 where no point says anything."""
        if not points:
            return None
        y_hw, x_hw = np.mgrid[: size[1], : size[0]]
        seeds_hw = np.full((size[1], size[0]), 255, np.uint8)
        radius = max(POINT_RADIUS * max(size), 1.5)
        for point in points:
            near_hw = (x_hw - point.x * scale) ** 2 + (y_hw - point.y * scale) ** 2 <= radius**2
            seeds_hw[near_hw] = self._cv2.GC_FGD if point.inside else self._cv2.GC_BGD
        return seeds_hw


def _labels(cv2: Any, pixels_hw3: NDArray[np.uint8], box: Box, core: float) -> NDArray[np.uint8]:
    """Background outside the box; in it an ellipse of likely foreground, and in that, as certain foreground,
    what has a colour that the background has nowhere."""
    height, width = pixels_hw3.shape[:2]
    y_hw, x_hw = np.mgrid[:height, :width] + 0.5
    dx_hw = np.abs(x_hw - (box.x0 + box.x1) / 2) / max(box.width / 2, 1)
    dy_hw = np.abs(y_hw - (box.y0 + box.y1) / 2) / max(box.height / 2, 1)
    labels_hw = np.full((height, width), cv2.GC_BGD, np.uint8)
    inside_hw = np.maximum(dx_hw, dy_hw) < 1
    labels_hw[inside_hw] = cv2.GC_PR_BGD
    middle_hw = inside_hw & (np.hypot(dx_hw, dy_hw) < core)
    labels_hw[middle_hw] = cv2.GC_PR_FGD
    strange_hw = (middle_hw & _unseen(pixels_hw3, ~inside_hw)).astype(np.uint8)
    speckless_hw = cv2.morphologyEx(strange_hw, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    labels_hw[speckless_hw > 0] = cv2.GC_FGD
    return labels_hw


def _outlined(cv2: Any, outline_hw: Mask, box: Box) -> NDArray[np.uint8]:
    """What the locator saw, in the box: certain where it was sure."""
    labels_hw = np.full(outline_hw.shape, cv2.GC_PR_BGD, np.uint8)
    labels_hw[outline_hw >= 0.5] = cv2.GC_PR_FGD
    labels_hw[outline_hw >= SURE] = cv2.GC_FGD
    labels_hw[(outline_hw <= 1 - SURE) | ~_in_box(outline_hw.shape, box)] = cv2.GC_BGD
    return labels_hw


def _in_box(shape: tuple[int, ...], box: Box) -> Bools:
    y_hw, x_hw = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside_hw: Bools = (box.x0 < x_hw) & (x_hw < box.x1) & (box.y0 < y_hw) & (y_hw < box.y1)
    return inside_hw


def _shrunk(outline_HW: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(Image.fromarray(outline_HW).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


def _unseen(pixels_hw3: NDArray[np.uint8], outside_hw: Bools) -> Bools:
    """Pixels whose colour, or one next to it, occurs nowhere outside."""
    bins_hw3 = (pixels_hw3.astype(np.int64) * BINS) >> 8
    seen = np.zeros((BINS + 2,) * 3, bool)  # with a border, so that neighbours need no wrapping
    seen[tuple((bins_hw3[outside_hw] + 1).T)] = True
    for axis in range(3):
        seen = seen | np.roll(seen, 1, axis) | np.roll(seen, -1, axis)
    unseen_hw: Bools = ~seen[tuple(np.moveaxis(bins_hw3 + 1, 2, 0))]
    return unseen_hw


def _pieces(solid_hw: Bools) -> Bools:
    """Every piece that is not small beside the largest."""
    labels_hw, sizes = label(solid_hw, corners=True)
    kept = 1 + np.flatnonzero(sizes >= PIECE * sizes.max(initial=0))
    return np.isin(labels_hw, kept)


def _without_hangers(cv2: Any, solid_hw: Bools) -> Bools:
    """The mask without the lumps that only something thin ties to its body, such as a kite on its line. What
    is thin to its end, such as a leg or a tail, stays."""
    width = round(STRING * max(solid_hw.shape)) | 1
    thin, wider = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (w, w)) for w in (width, width + 2))
    lumps_hw = cv2.morphologyEx(solid_hw.astype(np.uint8), cv2.MORPH_OPEN, thin) > 0
    if not lumps_hw.any():
        return solid_hw
    body_hw = largest_component(lumps_hw)
    hangers_hw = cv2.dilate((lumps_hw & ~body_hw).astype(np.uint8), wider) > 0
    near_body_hw = cv2.dilate(body_hw.astype(np.uint8), thin) > 0
    return largest_component(solid_hw & (near_body_hw | ~hangers_hw))


def _has_both(cv2: Any, labels_hw: NDArray[np.uint8]) -> bool:
    """GrabCut's colour models need some pixels on either side."""
    front = int(np.isin(labels_hw, (cv2.GC_FGD, cv2.GC_PR_FGD)).sum())
    return 8 <= front <= labels_hw.size - 8


def _middle(width: int, height: int) -> Box:
    return Box(x0=width * MARGIN, y0=height * MARGIN, x1=width * (1 - MARGIN), y1=height * (1 - MARGIN))


def _scale(edge_px: int) -> float:
    low, high = WORK_EDGE_PX
    return min(max(edge_px, low), high) / edge_px


def _scaled(box: Box, scale: float) -> Box:
    return Box(x0=box.x0 * scale, y0=box.y0 * scale, x1=box.x1 * scale, y1=box.y1 * scale)


def _grown(box: Box) -> Box:
    dx, dy = box.width * GROWN, box.height * GROWN
    return Box(x0=box.x0 - dx, y0=box.y0 - dy, x1=box.x1 + dx, y1=box.y1 + dy)


def _inside(box: Box, outer: Box) -> Box:
    return Box(
        x0=max(box.x0, outer.x0),
        y0=max(box.y0, outer.y0),
        x1=min(box.x1, outer.x1),
        y1=min(box.y1, outer.y1),
    )


def _tight(mask_hw: Bools) -> Box | None:
    ys, xs = np.nonzero(mask_hw)
    if not len(xs):
        return None
    return Box(x0=xs.min(), y0=ys.min(), x1=xs.max() + 1, y1=ys.max() + 1)


def _resized(mask_hw: Bools, image: Image.Image) -> Mask:
    grey = Image.fromarray(mask_hw.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float32) / np.float32(255)


def _overlap(a_hw: Bools, b_hw: Bools) -> float:
    """Intersection over union."""
    union = int((a_hw | b_hw).sum())
    return float((a_hw & b_hw).sum() / union) if union else 0.0

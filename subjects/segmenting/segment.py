"""Every training photo of a subject gets a mask, or a reason why it has none.

A mask that is empty, full or doubtful is never passed on in silence: it is noted in ``Subject.warnings``, and
an empty or full one is left out, so that the photo counts as all subject. Held-out photos are left alone:
they judge, and nothing is tuned on them.
"""
# Shapes: B masks, H W pixels of a photo.

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ...core.errors import LikenessError
from .. import images
from ..sources import quantise, store_png
from ..subject import Photo, Subject
from .base import Box, Cut, Mask, Point
from .boxes import Policy, choose
from .methods import Segmenter
from .refine import Refinement, refine

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """What is looked for, and when a mask is in doubt."""

    policy: Policy = "largest"  # ours: the paper does not say how several boxes are resolved
    boxes: tuple[Box, ...] = ()  # given ones, for every photo; the locator is then not asked
    points: tuple[Point, ...] = ()
    refinement: Refinement = field(default_factory=Refinement)
    least_confidence: float = 0.6  # below it a mask is flagged; ours
    least_share: float = 0.005  # of the photo: less is no subject; ours
    most_share: float = 0.98  # of the photo: more is no cut-out; ours
    keep_masks: bool = True  # a photo that came with a mask keeps it
    when_unsure: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        for name in ("least_confidence", "least_share", "most_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise LikenessError(f"{name} is {getattr(self, name)}", expected="0 to 1")


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """One photo's mask. ``doubts`` says in words what is wrong with it; ``usable`` whether it is kept."""

    mask_HW: Mask
    boxes: tuple[Box, ...]
    confidence: float
    doubts: tuple[str, ...]
    usable: bool


class Progress(NamedTuple):
    done: int
    total: int


def segment_subject(
    subject: Subject,
    segmenter: Segmenter | None,
    store: Path,
    config: SegmentConfig | None = None,
    *,
    masks_BHW: Tensor | None = None,
) -> Iterator[Progress | Segmentation | Subject]:
    """Give the training photos masks, kept as PNG in ``store``: yields progress, each photo's segmentation,
    and the subject last.

    ``masks_BHW`` (one for all photos, or one each) override everything; ``segmenter`` may then be None.
    Raises LikenessError when no photo gets a mask, and with ``when_unsure`` "stop" at the first doubt.
    """
    config = config or SegmentConfig()
    given = _given(masks_BHW, subject.photos)
    photos, doubts = [], []
    for number, photo in enumerate(subject.photos):
        yield Progress(number, len(subject.photos))
        found = _one(photo, segmenter, subject.class_noun, config, None if given is None else given[number])
        if found.doubts and config.when_unsure == "stop":
            raise _unsure(photo, found)
        doubts += [f"Mask of {photo.path.name}: {doubt}" for doubt in found.doubts]
        photos.append(_with_mask(photo, found, store))
        yield found
    if not any(photo.mask_path for photo in photos):
        raise _nothing(subject, doubts)
    yield Progress(len(photos), len(photos))
    for doubt in doubts:
        log.warning("%s", doubt)
    warnings = tuple(dict.fromkeys([*subject.warnings, *doubts]))
    yield replace(subject, photos=tuple(photos), warnings=warnings)


def segment_photo(
    image: Image.Image, noun: str, segmenter: Segmenter, config: SegmentConfig | None = None
) -> Segmentation:
    """Find, cut out, clean and judge the subject in one RGB picture."""
    config = config or SegmentConfig()
    boxes, doubts = _boxes(image, noun, segmenter, config)
    lost = not boxes and not config.points and (segmenter.locator or segmenter.masker.needs_prompt)
    if lost:
        nothing = np.zeros((image.height, image.width), np.float32)
        return Segmentation(mask_HW=nothing, boxes=(), confidence=0.0, doubts=tuple(doubts), usable=False)
    cut = segmenter.masker.cut(image, boxes, config.points)
    return _judged(cut, boxes, doubts, config)


# --- parts --------------------------------------------------------------------------------------------


def _one(
    photo: Photo, segmenter: Segmenter | None, noun: str, config: SegmentConfig, given_HW: Mask | None
) -> Segmentation:
    own_HW = given_HW if given_HW is not None else (photo.mask() if config.keep_masks else None)
    if own_HW is not None:
        plain = replace(config, refinement=Refinement(fill_holes=False, largest_component=False))
        found = _judged(Cut(mask_HW=own_HW, confidence=1.0), [], [], plain)
        return replace(found, mask_HW=own_HW)  # as it was drawn, soft edges and all
    if segmenter is None:
        raise LikenessError(
            f"{photo.path.name} has no mask, and no segmentation method was chosen",
            fix="Choose a method, or link masks",
        )
    return segment_photo(photo.open(), noun, segmenter, config)


def _boxes(
    image: Image.Image, noun: str, segmenter: Segmenter, config: SegmentConfig
) -> tuple[list[Box], list[str]]:
    if config.boxes:
        boxes = [box.within(*image.size) for box in config.boxes]
        outside = [box for box in boxes if box.area == 0]
        notes = [f"{len(outside)} of the given boxes lie outside the photo"] if outside else []
        return [box for box in boxes if box.area > 0], notes
    if segmenter.locator is not None:
        return choose(segmenter.locator.locate(image, noun), noun, *image.size, config.policy)
    if segmenter.masker.needs_prompt and not config.points:
        raise LikenessError(
            f"The method {segmenter.name} has to be told where the subject is",
            expected="boxes or points",
            fix="Give some, or choose a method that finds it, such as florence2+sam2",
        )
    return [], []


def _judged(cut: Cut, boxes: Sequence[Box], doubts: Sequence[str], config: SegmentConfig) -> Segmentation:
    if cut.mask_HW.shape and not np.isfinite(cut.mask_HW).all():
        cut = Cut(mask_HW=np.nan_to_num(cut.mask_HW), confidence=0.0)
    mask_HW = refine(cut.mask_HW, config.refinement)
    share = float((mask_HW >= 0.5).mean())
    said = list(doubts)
    usable = config.least_share <= share <= config.most_share
    if share < config.least_share:
        said.append(f"it is empty ({share:.1%} of the photo): the photo counts as all subject")
    elif share > config.most_share:
        said.append(f"it is the whole photo ({share:.1%}): the photo counts as all subject")
    elif not cut.confidence >= config.least_confidence:  # NaN is no confidence
        said.append(f"low confidence ({cut.confidence:.2f}): look at it")
    return Segmentation(
        mask_HW=mask_HW, boxes=tuple(boxes), confidence=cut.confidence, doubts=tuple(said), usable=usable
    )


def _with_mask(photo: Photo, found: Segmentation, store: Path) -> Photo:
    if not found.usable:
        return replace(photo, mask_path=None, mask_sha256=None)
    pixels_HW = np.round(found.mask_HW * 255).astype(np.uint8)
    path = store_png(store, pixels_HW)
    return replace(photo, mask_path=path, mask_sha256=images.mask_hash(found.mask_HW))


def _given(masks_BHW: Tensor | None, photos: Sequence[Photo]) -> list[Mask] | None:
    """Linked masks at their photos' sizes."""
    if masks_BHW is None:
        return None
    if masks_BHW.ndim != 3 or masks_BHW.shape[0] not in (1, len(photos)) or masks_BHW.numel() == 0:
        raise LikenessError(
            f"The masks have the shape {tuple(masks_BHW.shape)}",
            expected=f"(number, height, width) with one mask, or one for each of the {len(photos)} photos",
        )
    values_BHW, notes = quantise(masks_BHW, what="masks")
    for note in notes:
        log.warning("%s", note)
    values_BHW = np.broadcast_to(values_BHW, (len(photos), *values_BHW.shape[1:]))
    return [_fitted(values_HW, photo) for values_HW, photo in zip(values_BHW, photos, strict=True)]


def _fitted(values_HW: np.ndarray, photo: Photo) -> Mask:
    height, width = values_HW.shape
    if abs(width * photo.height - height * photo.width) >= max(photo.width, photo.height):
        raise LikenessError(
            f"A mask is {width} x {height} pixels and its photo {photo.path.name} "
            f"{photo.width} x {photo.height}",
            expected="a mask of its photo's size, or of the same shape",
        )
    mask = Image.fromarray(np.ascontiguousarray(values_HW))
    if mask.size != (photo.width, photo.height):
        mask = mask.resize((photo.width, photo.height), Image.Resampling.BILINEAR)
    return np.asarray(mask, dtype=np.float32) / np.float32(255)


def _unsure(photo: Photo, found: Segmentation) -> LikenessError:
    return LikenessError(
        f"The mask of {photo.path.name} is in doubt: {'; '.join(found.doubts)}",
        fix="Link a mask for it, choose another method, or let doubtful masks pass with a warning",
    )


def _nothing(subject: Subject, doubts: Sequence[str]) -> LikenessError:
    return LikenessError(
        f"No {subject.class_noun} was found in any of the {len(subject.photos)} photos of {subject.name}"
        + (f" ({doubts[0]})" if doubts else ""),
        fix="Check the class noun, choose another method, or link masks",
    )

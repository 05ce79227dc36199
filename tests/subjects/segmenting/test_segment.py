"""A subject gets masks, and every doubt is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.subjects import Subject, load_folder
from likeness.subjects.segmenting import (
    METHODS,
    Box,
    Cut,
    Point,
    Progress,
    Segmentation,
    SegmentConfig,
    Segmenter,
    open_segmenter,
    segment_photo,
    segment_subject,
)
from likeness.subjects.segmenting.preview import triptych
from PIL import Image, ImageDraw


def photo(size: tuple[int, int] = (80, 60), box: tuple[int, ...] = (25, 15, 55, 45)) -> Image.Image:
    image = Image.new("RGB", size, (70, 130, 60))
    ImageDraw.Draw(image).ellipse(box, fill=(210, 40, 50))
    return image


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = tmp_path / "ball"
    (folder / "held_out").mkdir(parents=True)
    for n in range(3):
        photo(box=(20 + 3 * n, 12, 52 + 3 * n, 44)).save(folder / f"{n}.png")
    photo(box=(10, 10, 30, 30)).save(folder / "held_out" / "9.png")
    return load_folder(folder, class_noun="ball")


class Fixed:
    """A masker that always answers the same."""

    id, needs_prompt = "fixed", False

    def __init__(self, value: float = 0.0, confidence: float = 1.0, part: float = 1.0) -> None:
        self.value, self.confidence, self.part = value, confidence, part

    def cut(self, image: Image.Image, boxes: Sequence[Box], points: Sequence[Point]) -> Cut:
        mask_HW = np.zeros((image.height, image.width), np.float32)
        mask_HW[: int(image.height * self.part)] = self.value
        return Cut(mask_HW=mask_HW, confidence=self.confidence)


class Nothing:
    id = "nothing"

    def locate(self, image: Image.Image, noun: str) -> list[Box]:
        return []


def using(masker: Any, locator: Any = None) -> Segmenter:
    return Segmenter(name="test", locator=locator, masker=masker)


def run(*args: Any, **more: Any) -> tuple[Subject, list[Segmentation]]:
    *items, last = segment_subject(*args, **more)
    assert isinstance(last, Subject) and any(isinstance(i, Progress) for i in items)
    return last, [i for i in items if isinstance(i, Segmentation)]


def test_grabcut_begins_from_the_outline_that_a_locator_saw() -> None:
    """Two like balls in one box: colours cannot tell them apart, an outline can."""
    image = photo(box=(10, 15, 36, 45))
    ImageDraw.Draw(image).ellipse((44, 15, 70, 45), fill=(210, 40, 50))
    left_HW = np.full((60, 80), 0.3, np.float32)
    left_HW[:, 40:] = 0.0
    left_HW[20:40, 15:31] = 0.95
    masker, found = open_segmenter("grabcut").masker, []
    for outline_HW in (left_HW, left_HW[:, ::-1].copy()):
        cut = masker.cut(image, [Box(x0=8, y0=13, x1=72, y1=47, outline_HW=outline_HW)], [])
        found.append((bool(cut.mask_HW[22, 23] >= 0.5), bool(cut.mask_HW[22, 57] >= 0.5)))
    assert found == [(True, False), (False, True)]


def test_grabcut_cuts_a_ball_out_of_a_lawn(subject: Subject, tmp_path: Path) -> None:
    masked, found = run(subject, open_segmenter("grabcut"), tmp_path / "store")
    assert len(found) == 3 and not masked.warnings
    for one in masked.photos:
        exact_HW = np.asarray(one.open())[..., 0] > 140
        own_HW = one.mask()
        assert own_HW is not None
        both, either = (own_HW > 0.5) & exact_HW, (own_HW > 0.5) | exact_HW
        assert both.sum() / either.sum() > 0.9
    assert masked.content_hash != subject.content_hash
    assert masked.held_out == subject.held_out  # they judge; nothing is tuned on them


def test_grabcut_is_the_same_twice_and_heeds_a_box() -> None:
    segmenter, image = open_segmenter("grabcut"), photo()
    first, second = (segment_photo(image, "ball", segmenter).mask_HW for _ in range(2))
    assert np.array_equal(first, second)
    aside = SegmentConfig(boxes=(Box(x0=0, y0=0, x1=12, y1=12),))
    assert not segment_photo(image, "ball", segmenter, aside).mask_HW[20:, 20:].any()


def test_grabcut_lets_go_of_what_hangs_on_a_string() -> None:
    """A balloon on its string goes; a tail of the same width stays."""
    image = photo(size=(192, 192), box=(60, 80, 130, 160))
    draw = ImageDraw.Draw(image)
    draw.line((95, 85, 95, 40), fill=(210, 40, 50), width=4)
    draw.ellipse((80, 20, 110, 50), fill=(210, 40, 50))
    draw.line((125, 120, 160, 120), fill=(210, 40, 50), width=4)
    mask_HW = segment_photo(image, "ball", open_segmenter("grabcut")).mask_HW
    assert mask_HW[120, 95] and mask_HW[120, 150] and not mask_HW[30, 95]


@pytest.mark.parametrize(
    ("masker", "doubt", "kept"),
    [
        (Fixed(0.0), "empty", False),
        (Fixed(1.0), "whole photo", False),
        (Fixed(1.0, confidence=0.2, part=0.5), "low confidence", True),
        (Fixed(1.0, confidence=float("nan"), part=0.5), "low confidence", True),
        (Fixed(float("nan"), part=0.5), "empty", False),
    ],
)
def test_doubtful_masks_are_never_passed_on_in_silence(masker: Fixed, doubt: str, kept: bool) -> None:
    found = segment_photo(photo(), "ball", using(masker))
    assert doubt in found.doubts[0] and found.usable is kept


def test_a_doubt_is_a_warning_of_the_subject_or_stops(subject: Subject, tmp_path: Path) -> None:
    unsure = using(Fixed(1.0, confidence=0.2, part=0.5))
    masked, _ = run(subject, unsure, tmp_path)
    assert sum("low confidence" in warning for warning in masked.warnings) == 3
    with pytest.raises(LikenessError, match="in doubt"):
        run(subject, unsure, tmp_path, SegmentConfig(when_unsure="stop"))


def test_no_subject_in_any_photo_is_an_error(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="No ball was found"):
        run(subject, using(Fixed(1.0, part=0.5), Nothing()), tmp_path)


def test_a_photo_without_the_subject_is_left_without_a_mask(subject: Subject, tmp_path: Path) -> None:
    class Once(Nothing):
        calls = 0

        def locate(self, image: Image.Image, noun: str) -> list[Box]:
            self.calls += 1
            return [] if self.calls == 2 else [Box(x0=1, y0=1, x1=30, y1=30)]

    masked, _ = run(subject, using(Fixed(1.0, part=0.5), Once()), tmp_path)
    assert [one.mask_path is not None for one in masked.photos] == [True, False, True]
    assert any("no ball was found" in warning for warning in masked.warnings)


def test_linked_masks_override_everything(subject: Subject, tmp_path: Path) -> None:
    mask_HW = torch.zeros(60, 80)
    mask_HW[10:20, 10:20] = 0.5
    masked, _ = run(subject, None, tmp_path, masks_BHW=mask_HW[None])
    own_HW = masked.photos[2].mask()
    assert own_HW is not None and own_HW[15, 15] == pytest.approx(128 / 255) and own_HW[30, 30] == 0


@pytest.mark.parametrize("shape", [(2, 60, 80), (60, 80), (3, 80, 60)])
def test_masks_of_the_wrong_size_or_count_are_named(
    subject: Subject, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with pytest.raises(LikenessError, match=r"[Mm]ask"):
        run(subject, None, tmp_path, masks_BHW=torch.ones(shape))


def test_a_photo_keeps_the_mask_that_it_came_with(subject: Subject, tmp_path: Path) -> None:
    half = torch.zeros(1, 60, 80)
    half[:, :30] = 1
    before, _ = run(subject, None, tmp_path, masks_BHW=half)
    kept, _ = run(before, using(Fixed(1.0, part=0.25)), tmp_path)
    assert kept.content_hash == before.content_hash
    anew, _ = run(before, using(Fixed(1.0, part=0.25)), tmp_path, SegmentConfig(keep_masks=False))
    assert anew.content_hash != before.content_hash


def test_the_preview_shows_three_pictures_and_words() -> None:
    found = segment_photo(photo(), "ball", using(Fixed(1.0, part=0.5)))
    sheet = triptych(photo(), found, title="ball", edge=64)
    assert sheet.size == (192, 84)
    assert sheet.getpixel((96, 20)) == (255, 255, 255) and sheet.getpixel((96, 50)) == (0, 0, 0)


def test_unknown_methods_and_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match="grabcut"):
        open_segmenter("scissors")
    for name in sorted(set(METHODS) - {"grabcut", "toybox"}):
        with pytest.raises(LikenessError, match="never downloads"):
            open_segmenter(name, models=[tmp_path])
    needy = Fixed(1.0)
    needy.needs_prompt = True
    with pytest.raises(LikenessError, match="boxes or points"):
        segment_photo(photo(), "ball", using(needy))


def test_toyboxs_grounding_finds_its_own_nouns_only() -> None:
    from likeness.backbones.toybox import render, world

    picture = world.subject_pictures(world.subject("car", 3), 1, 3)[0]
    exact = render.render(picture)
    segmenter = open_segmenter("toybox")
    found = segment_photo(Image.fromarray(exact.image).resize((128, 128)), "car", segmenter)
    assert found.boxes and found.boxes[0].x1 > 64  # in pixels of the photo, not of Toybox
    with pytest.raises(LikenessError, match="rabbit"):
        segment_photo(Image.fromarray(exact.image), "submarine", segmenter)

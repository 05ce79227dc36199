"""Cut-outs and composing: exact pixels, exact masks and boxes, no fringes; captions that name everyone
once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.composing.backgrounds import DrawnBackgrounds, FolderBackgrounds, NoiseBackgrounds
from likeness.composing.compose import ComposeConfig, compose, inside_canvas, on_background, resampled, varied
from likeness.composing.cutout import Cutout, best_cutouts, cut_out, decontaminated, sharpness, write_cutout
from likeness.composing.layout import Item, Layout
from likeness.composing.recaption import (
    Named,
    PromptingStrategies,
    RuleCaptioner,
    caption_scene,
    for_one_subject,
    mentions,
    names_of,
    tidy,
    with_tokens,
)
from likeness.composing.repaint import RepaintConfig, identity_kept, judge, keep_mask, seam_energy
from likeness.core.errors import LikenessError
from likeness.subjects.folder import read_photo
from PIL import Image, ImageDraw, ImageFilter

CANVAS = ComposeConfig(width=160, height=120)


def disc(
    name: str = "a", size: int = 90, colour: tuple[int, int, int] = (200, 40, 40), noun: str = ""
) -> Cutout:
    """A textured disc with a soft edge."""
    alpha = Image.new("L", (size, size))
    ImageDraw.Draw(alpha).ellipse((4, 4, size - 5, size - 5), fill=255)
    noise = np.random.default_rng(size).integers(-30, 30, (size, size, 3)) + np.array(colour)
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    image.putalpha(alpha.filter(ImageFilter.GaussianBlur(1)))
    return Cutout(
        image=image, subject=name, noun=noun or name, photo_sha256=name, sha256=name, sharpness=1.0,
        completeness=1.0,
    )  # fmt: skip


def scene(*items: Item, where: str = "in a garden") -> Layout:
    return Layout(scene=where, items=items)


def at(name: str, *box: float, **more: Any) -> Item:
    return Item(subject=name, noun=name, box=box, **more)  # type: ignore[arg-type]


GREY = Image.new("RGB", (160, 120), (90, 90, 90))


# --- cutting out --------------------------------------------------------------------------------------


def photo(tmp_path: Path, mask: np.ndarray, colour: int = 0) -> Any:
    height, width = mask.shape
    rgb = np.full((height, width, 3), colour, np.uint8)
    rgb[mask > 0.5] = (220, 60, 30)
    Image.fromarray(rgb).save(tmp_path / "p.png")
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "p_mask.png")
    return read_photo(tmp_path / "p.png", tmp_path / "p_mask.png", None)


def test_a_soft_edge_has_no_fringe_of_the_old_background(tmp_path: Path) -> None:
    """Red on black through a blurred mask: everything that shows is red."""
    mask = np.zeros((60, 60), np.float32)
    mask[15:45, 15:45] = 1
    soft = (
        np.asarray(Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5)))
        / 255.0
    )
    cutout = cut_out(photo(tmp_path, soft), subject="a", noun="cube")
    rgba = np.asarray(cutout.image).astype(int)
    seen = rgba[..., 3] > 20
    assert (abs(rgba[seen][:, :3] - (220, 60, 30)) <= 6).all()
    assert 30 <= cutout.image.width <= 38


def test_solid_pixels_keep_every_bit() -> None:
    cutout = disc()
    alpha = cutout.image.getchannel("A")
    again = decontaminated(cutout.image.convert("RGB"), alpha)
    solid = np.asarray(alpha) >= 243
    assert np.array_equal(np.asarray(again)[solid], np.asarray(cutout.image)[solid])


def test_masks_that_say_nothing(tmp_path: Path) -> None:
    for value, words in ((0.0, "is empty"), (1.0, "fills the whole photo")):
        with pytest.raises(LikenessError, match=words):
            cut_out(photo(tmp_path, np.full((20, 20), value, np.float32)), subject="a", noun="b")
    plain = read_photo(tmp_path / "p.png", None, None)
    with pytest.raises(LikenessError, match="no mask"):
        cut_out(plain, subject="a", noun="b")


def test_the_best_cutouts_come_first(subjects: list[Any], tmp_path: Path) -> None:
    found = best_cutouts(subjects[0])
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert best_cutouts(subjects[0], most=1) == found[:1]
    blurred = found[0].image.filter(ImageFilter.GaussianBlur(3))
    assert sharpness(blurred) < sharpness(found[0].image)
    path = write_cutout(found[0], tmp_path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(found[0].image))


def test_a_slipped_mask_comes_last(tmp_path: Path) -> None:
    """Three photos of one red thing; the mask of the first shows the wall instead, which is as sharp."""
    from likeness.subjects.subject import Subject

    mask = np.zeros((40, 40), np.float32)
    mask[10:30, 10:30] = 1
    photos = []
    for n in range(3):
        folder = tmp_path / str(n)
        folder.mkdir()
        noise = np.random.default_rng(n).integers(0, 60, (40, 40, 3)).astype(np.uint8)
        noise[..., 2] += 190
        noise[10:30, 10:30] = noise[10:30, 10:30, ::-1]
        Image.fromarray(noise).save(folder / "p.png")
        shown = np.roll(mask, -9, axis=0) if n == 0 else mask
        Image.fromarray((shown * 255).astype(np.uint8)).save(folder / "m.png")
        photos.append(read_photo(folder / "p.png", folder / "m.png", None))
    subject = Subject(name="a", class_noun="b", photos=tuple(photos))
    found = best_cutouts(subject)
    assert found[-1].photo_sha256 == photos[0].sha256 and found[-1].agreement < found[0].agreement


def test_a_subject_that_its_photo_cuts_off_counts_less(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.float32)
    mask[10:30, 10:30] = 1
    whole = cut_out(photo(tmp_path, mask), subject="a", noun="b")
    cut = cut_out(photo(tmp_path, np.roll(mask, 10, axis=0)), subject="a", noun="b")
    assert whole.completeness == 1 and cut.completeness < 0.2


# --- composing ----------------------------------------------------------------------------------------


def test_subject_pixels_are_the_resampled_source() -> None:
    cutout = disc()
    made = compose(scene(at("a", 0.2, 0.3, 0.4, 0.6)), {"a": cutout}, GREY, CANVAS)
    one = made.placed[0]
    source = resampled(cutout, one.layer.width, one.layer.height)
    eroded = np.asarray(one.alpha.filter(ImageFilter.MinFilter(3))) == 255
    box = (one.left, one.top, one.left + one.layer.width, one.top + one.layer.height)
    assert eroded.sum() > 500
    assert np.array_equal(np.asarray(made.image.crop(box))[eroded], np.asarray(source)[..., :3][eroded])


def test_shadows_and_neighbours_touch_no_subject() -> None:
    items = (at("a", 0.05, 0.2, 0.45, 0.6), at("b", 0.5, 0.3, 0.45, 0.6))
    cutouts = {"a": disc(), "b": disc("b", 70, (30, 60, 200))}
    dark = compose(scene(*items), cutouts, GREY, ComposeConfig(width=160, height=120, shadow=1.0))
    none = compose(scene(*items), cutouts, GREY, ComposeConfig(width=160, height=120, shadow=0.0))
    solid = np.asarray(dark.foreground) == 255
    assert np.array_equal(np.asarray(dark.image)[solid], np.asarray(none.image)[solid])
    assert not np.array_equal(np.asarray(dark.image), np.asarray(none.image))


def test_boxes_and_masks_are_what_is_seen() -> None:
    """The front disc covers a part of the one behind; both masks together are the foreground."""
    items = (at("a", 0.1, 0.2, 0.5, 0.6), at("b", 0.35, 0.3, 0.5, 0.65))
    made = compose(scene(*items), {"a": disc(), "b": disc("b", 70)}, GREY, CANVAS)
    back, front = (np.asarray(one.mask(160, 120)).astype(int) for one in made.placed)
    assert (back + front <= 256).all() and back[front == 255].max() == 0
    assert (np.asarray(made.foreground) == np.minimum(back + front, 255)).all()
    for one, mask in zip(made.placed, (back, front), strict=True):
        rows, columns = np.nonzero(mask >= 128)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@settings(max_examples=25)
@given(st.floats(0, 0.7), st.floats(0, 0.7), st.floats(0.1, 0.9), st.floats(-180, 180), st.booleans())
def test_nothing_leaves_the_canvas(x: float, y: float, size: float, angle: float, flip: bool) -> None:
    item = at("a", x, y, size, size, angle=angle, flip=flip)
    made = compose(scene(item), {"a": disc(size=40)}, GREY, CANVAS)
    assert inside_canvas(made.placed, 160, 120)


def test_flip_turn_and_anchor() -> None:
    cutout = disc()
    plain, flipped = (
        compose(scene(at("a", 0.2, 0.2, 0.5, 0.6, flip=f)), {"a": cutout}, GREY, CANVAS)
        for f in (False, True)
    )
    assert np.array_equal(np.asarray(plain.placed[0].layer)[:, ::-1], np.asarray(flipped.placed[0].layer))
    tall = scene(at("a", 0.0, 0.0, 0.25, 1.0))
    tops = [
        compose(tall, {"a": cutout}, GREY, ComposeConfig(width=160, height=120, anchor=a)).placed[0].top
        for a in ("foot", "center", "corner")
    ]
    assert tops == [80, 40, 0]


def test_things_are_varied_by_seed_and_locked_ones_are_not() -> None:
    before = scene(at("a", 0, 0, 0.3, 0.3), at("b", 0, 0, 0.3, 0.3, locked=True))
    after = varied(before, seed=1, flip=1.0, rotate=1.0)
    assert after.items[0].flip and after.items[0].angle and after.items[1] == before.items[1]
    assert after == varied(before, seed=1, flip=1.0, rotate=1.0) and varied(before, seed=1) == before


def test_harmonising_moves_towards_the_background() -> None:
    config = ComposeConfig(width=160, height=120, harmonise=1.0)
    night = Image.new("RGB", (160, 120), (10, 10, 40))
    bright, dark = (
        compose(scene(at("a", 0.2, 0.2, 0.5, 0.6)), {"a": disc()}, night, c).placed[0].layer
        for c in (CANVAS, config)
    )
    assert np.asarray(dark)[..., :3].mean() < 0.8 * np.asarray(bright)[..., :3].mean()


def test_what_cannot_be_composed() -> None:
    with pytest.raises(LikenessError, match="no cut-out of b"):
        compose(scene(at("b", 0, 0, 1, 1)), {}, GREY, CANVAS)
    hidden = scene(at("a", 0.4, 0.5, 0.1, 0.1), at("b", 0.2, 0.2, 0.6, 0.8))
    with pytest.raises(LikenessError, match="hidden"):
        compose(hidden, {"a": disc(), "b": disc("b")}, GREY, CANVAS)
    for bad in ({"width": 3}, {"shadow": 2.0}, {"anchor": "x"}):
        with pytest.raises(LikenessError):
            ComposeConfig(**bad)  # type: ignore[arg-type]


# --- backgrounds --------------------------------------------------------------------------------------


def test_backgrounds_are_functions_of_scene_and_seed(tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(LikenessError, match="no background pictures"):
        FolderBackgrounds(tmp_path / "none")
    Image.new("RGB", (50, 200), (1, 2, 3)).save(tmp_path / "beach.png")
    Image.new("RGB", (400, 300), (9, 9, 9)).save(tmp_path / "other.png")
    for source in (DrawnBackgrounds(), NoiseBackgrounds(), FolderBackgrounds(tmp_path)):
        first, origin = source.picture("on a beach", 80, 60, seed=4)
        again, _ = source.picture("on a beach", 80, 60, seed=4)
        assert first.size == (80, 60) and first.mode == "RGB" and origin["kind"]
        assert first.tobytes() == again.tobytes()
    assert origin["file"] == "beach.png" and "enlarged" in caplog.text  # named like the scene; too small


# --- repainting ---------------------------------------------------------------------------------------


def test_the_mask_keeps_the_inner_half_of_the_blurred_edge() -> None:
    whole = Image.new("L", (40, 40))
    whole.paste(255, (10, 10, 30, 30))
    keep = np.asarray(keep_mask(whole, 3))
    assert keep[20, 20] == 255 and keep[20, 10] < 60 and keep[20, 9] == 0 and keep[5, 5] == 0
    assert 0 < keep[20, 11] < keep[20, 12] <= 255


def test_the_gate_sees_drift_and_seams() -> None:
    made = compose(scene(at("a", 0.3, 0.2, 0.4, 0.6)), {"a": disc()}, GREY, CANVAS)
    smooth, _ = DrawnBackgrounds().picture("in a garden", 160, 120, seed=0)
    back = on_background(made, smooth)
    assert identity_kept(back, made) > 0.99 and identity_kept(smooth, made) < 0.9
    assert judge(back, made, RepaintConfig()).reasons == ()
    assert "identity" in judge(smooth, made, RepaintConfig()).reasons
    ringed = smooth.copy()  # the background was pasted around the subject
    halo = made.foreground.filter(ImageFilter.MaxFilter(5)).point([0] * 9 + [255] * 247)
    ringed.paste((255, 255, 255), mask=halo)
    assert seam_energy(on_background(made, ringed), made.foreground) > 3 * seam_energy(back, made.foreground)


# --- captions -----------------------------------------------------------------------------------------

REX, BO = Named(token="<rex>", noun="dog", x=0.2), Named(token="<bo>", noun="dog", x=0.8)
TOM = Named(token="<tom>", noun="cat", x=0.5)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("two dogs and a cat in a garden", "a <rex> dog and a <bo> dog and a <tom> cat in a garden"),
        ("a cat between a dog and a dog", "a <tom> cat between a <rex> dog and a <bo> dog"),
        ("The cat sees dogs; the cat runs", "The <tom> cat sees a <rex> dog and a <bo> dog; it runs"),
        ("a hotdog and catnip", "a hotdog and catnip, with a <tom> cat, with a <rex> dog, with a <bo> dog"),
    ],
)
def test_everyone_is_named_once(text: str, caption: str) -> None:
    assert with_tokens(text, [BO, TOM, REX])[0] == caption


@given(st.text(alphabet="adogcats ,.x[](){}<>\n\x00\x01", max_size=60))
def test_whatever_a_model_writes_everyone_is_named_once(text: str) -> None:
    caption, _ = with_tokens(tidy(text), [REX, BO, TOM])
    assert [mentions(caption, named) for named in (REX, BO, TOM)] == [1, 1, 1]
    assert not set(caption) & set("(){}[]\x00\x01")


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.floats(0.02, 0.6)] * 2), min_size=1, max_size=5), st.integers(0, 9))
def test_rule_based_captions_say_everything(corners: Any, seed: int) -> None:
    nouns = ["dog", "dog", "apple", "cat", "cup"][: len(corners)]
    items = tuple(
        Item(subject=f"s{n}", noun=noun, box=(x, y, 0.3, 0.3))
        for n, (noun, (x, y)) in enumerate(zip(nouns, corners, strict=True))
    )
    caption, warnings = caption_scene(RuleCaptioner(), GREY, scene(*items), seed=seed)
    assert not warnings and "garden" in caption
    assert all(mentions(caption, named) == 1 for named in names_of(scene(*items)))


def test_the_strategies() -> None:
    one = scene(at("a", 0.1, 0.5, 0.3, 0.3), at("b", 0.6, 0.5, 0.3, 0.3))
    told = PromptingStrategies(composition_token="<scene>", repeat_tokens=True, background=False)
    caption, _ = caption_scene(RuleCaptioner(), GREY, one, told)
    assert caption.startswith("<scene> ") and caption.endswith("<a> a and <b> b") and "garden" not in caption


def test_a_caption_for_one_subject() -> None:
    assert for_one_subject("a <rex> dog and a <tom> cat", TOM, [REX]) == "a dog and {}"

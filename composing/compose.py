"""Compose Scene: cut-outs on a background where a layout says, masks and boxes kept exactly.

Gen4Gen (Yeh et al. 2024), its composing step. Every pixel where a subject is opaque is its own, resampled and
nothing else: shadows fall on the background only, and colour is matched only when asked for.
"""
# Pixels of the canvas throughout; boxes are (left, top, right, bottom), right and bottom exclusive.

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops

from ..core.errors import LikenessError
from . import sizes
from .cutout import Cutout
from .layout import Item, Layout, pixels

PixelBox = tuple[int, int, int, int]
_VISIBLE = 128  # alpha from which a pixel counts as the subject's


@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """How cut-outs are put on a background."""

    width: int = 1024  # the reference's canvas
    height: int = 1024
    shadow: float = 0.35  # darkness of the shadow where a thing stands; ours, the reference has none
    harmonise: float = 0.0  # share of the way to the background's light and colour; changes subject pixels
    anchor: str = "foot"  # "foot" stands in its box, "center", or "corner" as the reference

    def __post_init__(self) -> None:
        if not (16 <= self.width <= 8192 and 16 <= self.height <= 8192):
            raise LikenessError(
                f"A canvas of {self.width} x {self.height} pixels", expected="16 to 8192 each"
            )
        if not (0 <= self.shadow <= 1 and 0 <= self.harmonise <= 1):
            raise LikenessError("shadow and harmonise are shares", expected="numbers from 0 to 1")
        if self.anchor not in ("foot", "center", "corner"):
            raise LikenessError(f"anchor is {self.anchor!r}", expected="foot, center or corner")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One subject in the picture: ``layer`` (RGBA) is all of it as it was painted, ``alpha`` what is seen of
    it, both with their top left at (left, top)."""

    subject: str
    noun: str
    left: int
    top: int
    layer: Image.Image = field(repr=False)
    alpha: Image.Image = field(repr=False)
    cutout_sha256: str

    @property
    def box(self) -> PixelBox:
        """The tight box of what is seen; (0, 0, 0, 0) when nothing is."""
        inner = self.alpha.point(_THRESHOLD).getbbox()
        if inner is None:
            return (0, 0, 0, 0)
        return (self.left + inner[0], self.top + inner[1], self.left + inner[2], self.top + inner[3])

    def mask(self, width: int, height: int) -> Image.Image:
        """On the whole canvas, 8 bits."""
        mask = Image.new("L", (width, height))
        mask.paste(self.alpha, (self.left, self.top))
        return mask


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A composed picture, and where everything is in it, in painting order."""

    image: Image.Image = field(repr=False)
    layout: Layout
    placed: tuple[Placed, ...]
    background: Mapping[str, object] = field(default_factory=dict)  # where it came from

    @property
    def foreground(self) -> Image.Image:
        """All subjects' masks together (the lightest of each, where the reference squares soft edges)."""
        width, height = self.image.size
        whole = Image.new("L", (width, height))
        for one in self.placed:
            box = (one.left, one.top, one.left + one.alpha.width, one.top + one.alpha.height)
            whole.paste(ImageChops.add(whole.crop(box), one.alpha), box)
        return whole


def compose(
    layout: Layout,
    cutouts: Mapping[str, Cutout],
    background: Image.Image,
    config: ComposeConfig | None = None,
    *,
    origin: Mapping[str, object] | None = None,
) -> Composition:
    """Paint a layout's items, the first at the back. ``cutouts`` are by subject, ``background`` is RGB of the
    canvas's size.

    Raises LikenessError for a subject without cut-out, or one that the others hide.
    """
    config = config or ComposeConfig()
    missing = [item.subject for item in layout.items if item.subject not in cutouts]
    if missing:
        raise LikenessError(f"There is no cut-out of {', '.join(missing)}", expected="one for each subject")
    canvas = background.copy()
    if canvas.size != (config.width, config.height) or canvas.mode != "RGB":
        raise ValueError("the background must be RGB and of the canvas's size")
    things = [_put(item, cutouts[item.subject], config) for item in layout.items]
    for item, thing in zip(layout.items, things, strict=True):
        if config.shadow > 0 and sizes.support(item.noun) in ("ground", "table"):
            _cast(canvas, thing, config.shadow)
    placed: list[Placed] = []
    for item, (image, left, top) in zip(layout.items, things, strict=True):
        if config.harmonise > 0:
            image = harmonised(image, canvas, (left, top), config.harmonise)
        alpha = image.getchannel("A")
        canvas.paste(image.convert("RGB"), (left, top), alpha)
        placed = [_hidden(one, left, top, alpha) for one in placed]
        placed.append(
            Placed(
                subject=item.subject,
                noun=item.noun,
                left=left,
                top=top,
                layer=image,
                alpha=alpha,
                cutout_sha256=cutouts[item.subject].sha256,
            )
        )
    for one in placed:
        if one.box == (0, 0, 0, 0):
            raise LikenessError(f"{one.subject} is hidden behind the others", fix="Move its box")
    return Composition(image=canvas, layout=layout, placed=tuple(placed), background=dict(origin or {}))


def on_background(composition: Composition, background: Image.Image) -> Image.Image:
    """The same subjects, pixel for pixel, on another background of the canvas's size."""
    canvas = background.convert("RGB")
    for one in composition.placed:
        canvas.paste(one.layer.convert("RGB"), (one.left, one.top), one.layer.getchannel("A"))
    return canvas


def varied(
    layout: Layout, *, seed: int, flip: float = 0.0, rotate: float = 0.0, degrees: float = 5.0
) -> Layout:
    """The layout with things mirrored and turned by lot (the reference: half of them, up to 5 degrees, both
    off by default). What is turned already stays as it is."""
    dice = random.Random(f"vary {seed}")
    items = []
    for item in layout.items:
        mirrored, turned, angle = (
            dice.random() < flip,
            dice.random() < rotate,
            dice.uniform(-degrees, degrees),
        )
        items.append(
            item
            if item.locked
            else replace(
                item,
                flip=item.flip or mirrored,
                angle=round(angle, 2) if turned and not item.angle else item.angle,
            )
        )
    return replace(layout, items=tuple(items))


# --- one thing ----------------------------------------------------------------------------------------

_Thing = tuple[Image.Image, int, int]  # RGBA, left, top
_THRESHOLD = [0] * _VISIBLE + [255] * (256 - _VISIBLE)


def _put(item: Item, cutout: Cutout, config: ComposeConfig) -> _Thing:
    """The cut-out at its size, mirrored and turned, and where its top left comes to lie."""
    x, y, width, height = pixels(item.box, config.width, config.height)
    image = cutout.image
    spread = _turned_size(image.width, image.height, item.angle)
    if config.anchor == "corner":  # the reference: the long edge is the box's shorter side
        scale = min(width, height) / max(spread)
    else:
        scale = min(width / spread[0], height / spread[1])
    scale = min(scale, config.width / spread[0], config.height / spread[1])
    image = resampled(cutout, max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if item.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if item.angle:
        image = image.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
    share_x, share_y = {"foot": (0.5, 1.0), "center": (0.5, 0.5), "corner": (0.0, 0.0)}[config.anchor]
    left = round(x + (width - image.width) * share_x)
    top = round(y + (height - image.height) * share_y)
    return (
        image,
        min(max(left, 0), max(config.width - image.width, 0)),
        min(max(top, 0), max(config.height - image.height, 0)),
    )


def resampled(cutout: Cutout, width: int, height: int) -> Image.Image:
    """A cut-out at another size: bicubic from the smallest of its levels that is as large, with colours
    weighted by alpha, so that no background bleeds in."""
    if cutout.image.size == (width, height):
        return cutout.image
    fitting = [level for level in cutout.levels if level.width >= width and level.height >= height]
    source = (fitting or cutout.levels[:1])[-1]
    return source.resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")


def _turned_size(width: int, height: int, angle: float) -> tuple[float, float]:
    sine, cosine = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
    return (width * cosine + height * sine, width * sine + height * cosine)


def _hidden(one: Placed, left: int, top: int, alpha: Image.Image) -> Placed:
    """What is still seen of ``one`` once something with ``alpha`` stands before it."""
    box = (
        max(one.left, left),
        max(one.top, top),
        min(one.left + one.alpha.width, left + alpha.width),
        min(one.top + one.alpha.height, top + alpha.height),
    )
    if box[0] >= box[2] or box[1] >= box[3]:
        return one
    inner = (box[0] - one.left, box[1] - one.top, box[2] - one.left, box[3] - one.top)
    cover = alpha.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))
    seen = one.alpha.copy()
    seen.paste(ImageChops.multiply(seen.crop(inner), ImageChops.invert(cover)), inner)
    return replace(one, alpha=seen)


# --- light --------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _spot(strength_percent: int) -> Image.Image:
    """A soft dark ellipse, 8 bits."""
    y, x = np.mgrid[-1:1:32j, -1:1:96j]
    spot = np.exp(-3.5 * (x * x + y * y)) * np.clip(1.2 - np.hypot(x, y), 0, 1)
    return Image.fromarray(np.round(spot * 2.55 * strength_percent).clip(0, 255).astype(np.uint8))


def _cast(canvas: Image.Image, thing: _Thing, strength: float) -> None:
    """A contact shadow around the feet, on the canvas as it is: before any subject is painted."""
    image, left, top = thing
    feet = image.getchannel("A").crop((0, round(image.height * 0.9), image.width, image.height)).getbbox()
    if feet is None:
        return
    width = max(4, round((feet[2] - feet[0]) * 1.3))
    height = max(3, round(width * 0.28))
    middle_x, foot_y = left + (feet[0] + feet[2]) // 2, top + image.height
    mask = _spot(round(strength * 100)).resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste((12, 10, 8), (middle_x - width // 2, foot_y - round(height * 0.6)), mask)


def harmonised(image: Image.Image, canvas: Image.Image, at: tuple[int, int], strength: float) -> Image.Image:
    """Brightness, contrast and tint moved towards the background under the thing: mean and spread of each
    channel (Reinhard et al. 2001, in RGB), ``strength`` of the way."""
    rgba_HW4 = np.asarray(image).astype(np.float32)
    region = canvas.crop((at[0], at[1], at[0] + image.width, at[1] + image.height))
    around_HW3 = np.asarray(region.convert("RGB"), dtype=np.float32)
    solid = rgba_HW4[..., 3] > 200
    if not solid.any():
        return image
    own_N3 = rgba_HW4[..., :3][solid]
    mean_3, std_3 = own_N3.mean(0), own_N3.std(0) + 1e-3
    want_3, spread_3 = around_HW3.mean((0, 1)), around_HW3.std((0, 1)) + 1e-3
    gain_3 = np.clip(spread_3 / std_3, 0.7, 1.4) ** (strength * 0.5)
    rgba_HW4[..., :3] = (rgba_HW4[..., :3] - mean_3) * gain_3 + mean_3 + strength * 0.5 * (want_3 - mean_3)
    return Image.fromarray(np.round(rgba_HW4).clip(0, 255).astype(np.uint8))


def inside_canvas(placed: Sequence[Placed], width: int, height: int) -> bool:
    """Whether no box leaves the canvas."""
    return all(
        one.left >= 0
        and one.top >= 0
        and one.left + one.alpha.width <= width
        and one.top + one.alpha.height <= height
        for one in placed
    )

"""Draws a ``Picture``: 64 x 64 RGB from four-fold oversampling, with exact masks and boxes.

Deterministic: the same picture gives the same bytes. About 1 to 2 ms each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import props, scenery, world
from .shapes import PLANS, Plan, Points, Shape, ellipse, star
from .world import SIZE_PX, Picture, Thing

OVER = 4
_BIG = SIZE_PX * OVER
_THING_TINTS = {"day": (1, 1, 1), "sunset": (1.0, 0.93, 0.86), "night": (0.8, 0.83, 0.94)}
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Rendering:
    """``image`` uint8 (64, 64, 3); per thing what is seen of it: ``masks`` bool (N, 64, 64) and ``boxes``
    int (N, 4) as x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def render(picture: Picture) -> Rendering:
    """Draw a picture with its masks and boxes."""
    canvas, ids = _draw(picture, Image.new("L", (_BIG, _BIG), 0))
    cells = np.asarray(ids).reshape(SIZE_PX, OVER, SIZE_PX, OVER)
    masks = np.stack([(cells == i + 1).mean(axis=(1, 3)) >= 0.5 for i in range(len(picture.things))])
    return Rendering(_shrink(canvas), masks, np.stack([mask_box(mask) for mask in masks]))


def image(picture: Picture) -> NDArray[np.uint8]:
    """Only the pixels, (64, 64, 3) uint8: the same as ``render(picture).image``, sooner."""
    return _shrink(_draw(picture, None)[0])


def images(pictures: Iterable[Picture]) -> Iterator[NDArray[np.uint8]]:
    """Only the pixels of many pictures."""
    return (image(picture) for picture in pictures)


def mask_box(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The tight box of a mask, x0 y0 x1 y1; zeros for an empty one."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0])


def _shrink(canvas: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(canvas.reduce(OVER))


def _draw(picture: Picture, ids: Image.Image | None) -> tuple[Image.Image, Image.Image]:
    canvas = scenery.backdrop(picture.scene, picture.light, picture.variant, _BIG).copy()
    brush = _Brush(canvas, ids, picture.light)
    for thing in picture.things:
        _shadow(brush, thing, alone=len(picture.things) == 1)
    for number, thing in enumerate(picture.things, start=1):
        _draw_thing(brush, thing, number)
    return canvas, brush.ids or canvas


class _Brush:
    """Fills polygons given in big pixels on the canvas and writes who owns them into the id map."""

    def __init__(self, canvas: Image.Image, ids: Image.Image | None, light: str) -> None:
        self.canvas, self.ids = canvas, ids
        self.draw = ImageDraw.Draw(canvas)
        self.draw_ids = ImageDraw.Draw(ids) if ids else None
        self.tint = _THING_TINTS[light]

    def colour(self, rgb: Rgb) -> Rgb:
        r, g, b = (round(c * t) for c, t in zip(rgb, self.tint, strict=True))
        return r, g, b

    def fill(self, points: Points, rgb: Rgb, owner: int, line: Rgb | None = None) -> None:
        self.draw.polygon(points, fill=self.colour(rgb))
        if line is not None:
            self.draw.line([*points, points[0]], fill=self.colour(line), width=4)
        if self.draw_ids:
            self.draw_ids.polygon(points, fill=owner)

    def fill_with(self, points: Points, texture: Image.Image, owner: int, line: Rgb) -> None:
        """Fill from a texture of the canvas's size."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        frame = (
            max(int(min(xs)), 0),
            max(int(min(ys)), 0),
            min(int(max(xs)) + 2, _BIG),
            min(int(max(ys)) + 2, _BIG),
        )
        if frame[0] < frame[2] and frame[1] < frame[3]:
            stencil = Image.new("L", (frame[2] - frame[0], frame[3] - frame[1]), 0)
            ImageDraw.Draw(stencil).polygon([(x - frame[0], y - frame[1]) for x, y in points], fill=255)
            self.canvas.paste(texture.crop(frame), frame[:2], stencil)
        self.draw.line([*points, points[0]], fill=self.colour(line), width=4)
        if self.draw_ids:
            self.draw_ids.polygon(points, fill=owner)


def _frame(thing: Thing) -> Callable[[Points], Points]:
    """From the thing's own units to big pixels: mirror, turn, scale, move."""
    turn = math.radians({"upside down": 180, "lying": 90}.get(thing.pose, 0))
    c, s = math.cos(turn), math.sin(turn)
    scale, flip = thing.half_px * OVER, -1 if thing.mirrored else 1
    cx, cy = thing.x_px * OVER, thing.y_px * OVER
    return lambda points: [
        (cx + scale * flip * (x * c - y * s), cy + scale * (x * s + y * c)) for x, y in points
    ]


def _draw_thing(brush: _Brush, thing: Thing, number: int) -> None:
    plan, to_px = PLANS[thing.noun](thing.look.stretch, thing.look.girth), _frame(thing)
    look = thing.look
    skin, second = _rgb(look.colour), _rgb(look.colour2)
    trim = _shade(skin, 0.72) if look.pattern == "plain" else second
    line = _shade(skin, 0.45)
    texture = _texture(brush, thing, plan, to_px)
    paints = {"skin": skin, "trim": trim}
    for shape in plan.shapes:
        if shape.paint == "body":
            brush.fill_with(to_px(shape.points), texture, number, line)
        else:
            named = isinstance(shape.paint, str)
            paint = paints[shape.paint] if isinstance(shape.paint, str) else shape.paint
            brush.fill(to_px(shape.points), paint, number, line if named else None)
    if plan.living:
        _add(brush, props.eyes(plan, asleep=thing.action == "sleeping"), to_px, number)
    _add(brush, props.ACCESSORIES[thing.accessory](plan), to_px, 0)
    _add(brush, props.ACTIONS[thing.action](plan), to_px, 0)


def _add(brush: _Brush, shapes: list[Shape], to_px: Callable[[Points], Points], owner: int) -> None:
    for shape in shapes:
        brush.fill(to_px(shape.points), shape.paint, owner)  # type: ignore[arg-type]


def _shadow(brush: _Brush, thing: Thing, alone: bool) -> None:
    """A soft dark ellipse on the ground; it stays there when the thing jumps."""
    ground = 61.0 if alone else thing.y_px + thing.half_px
    under = brush.canvas.getpixel((int(thing.x_px * OVER), min(int(ground * OVER), _BIG - 1)))
    assert isinstance(under, tuple)  # an RGB canvas
    points = ellipse(thing.x_px * OVER, ground * OVER, thing.half_px * OVER * 0.8, 2.2 * OVER)
    brush.draw.polygon(points, fill=tuple(round(c * 0.72) for c in under))


def _texture(brush: _Brush, thing: Thing, plan: Plan, to_px: Callable[[Points], Points]) -> Image.Image:
    """The pattern and the mark over the whole canvas, in the thing's frame; shapes cut it out."""
    look = thing.look
    first, second = brush.colour(_rgb(look.colour)), brush.colour(_rgb(look.colour2))
    sheet = Image.new("RGB", (_BIG, _BIG), first)
    draw = ImageDraw.Draw(sheet)
    c, s = math.cos(math.radians(look.turn)), math.sin(math.radians(look.turn))
    mx, my = plan.middle
    for points in _PATTERNS[look.pattern](1.0 / thing.half_px):
        draw.polygon(to_px([(mx + x * c - y * s, my + x * s + y * c) for x, y in points]), fill=second)
    for points in _MARKS[look.mark](mx, my):
        draw.polygon(to_px(points), fill=brush.colour(_rgb(look.mark_colour)))
    return sheet


def _bar(x: float, wide: float) -> Points:
    return [(x, -3), (x + wide, -3), (x + wide, 3), (x, 3)]


def _stripes(px: float) -> list[Points]:
    return [_bar((i * 10 - 2.5) * px, 5 * px) for i in range(-4, 5)]


def _dots(px: float) -> list[Points]:
    return [
        ellipse((i * 10 + 5 * (j % 2)) * px, j * 7 * px, 2.9 * px, 2.9 * px, count=14)
        for i in range(-3, 4)
        for j in range(-4, 5)
    ]


def _checks(px: float) -> list[Points]:
    return [
        [((i + a) * 6 * px, (j + b) * 6 * px) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
        for i in range(-5, 5)
        for j in range(-6, 6)
        if (i + j) % 2
    ]


_PATTERNS: dict[str, Callable[[float], list[Points]]] = {
    "plain": lambda px: [],
    "striped": _stripes,
    "dotted": _dots,
    "checked": _checks,
    "two-tone": lambda px: [_bar(0, 3)],
}
_MARKS: dict[str, Callable[[float, float], list[Points]]] = {
    "none": lambda x, y: [],
    "star": lambda x, y: [star(x, y, 0.36)],
    "patch": lambda x, y: [ellipse(x - 0.22, y - 0.08, 0.3, 0.34)],
    "spots": lambda x, y: [
        ellipse(x + a, y + b, 0.15, 0.15) for a, b in ((-0.26, 0.1), (0.26, 0.1), (0, -0.2))
    ],
    "band": lambda x, y: [[(x - 2, y - 0.14), (x + 2, y - 0.14), (x + 2, y + 0.14), (x - 2, y + 0.14)]],
}


def _rgb(name: str) -> Rgb:
    return world.COLOURS.get(name) or world.ODD_COLOURS[name]


def _shade(rgb: Rgb, by: float) -> Rgb:
    r, g, b = (round(c * by) for c in rgb)
    return r, g, b

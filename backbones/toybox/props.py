"""What things wear, hold and play with: accessories and actions as polygons in the thing's own units."""

from __future__ import annotations

from collections.abc import Callable

from .shapes import INK, PAPER, Plan, Points, Shape, box, ellipse, ring

RED, GOLD, SKY, PLUM = (222, 40, 50), (255, 206, 40), (80, 170, 240), (150, 50, 160)


def _hat(p: Plan) -> list[Shape]:
    x, y = p.top
    return [
        Shape(box(x - 0.3, y - 0.5, x + 0.3, y + 0.04), INK),
        Shape(box(x - 0.3, y - 0.14, x + 0.3, y), RED),
        Shape(box(x - 0.5, y - 0.02, x + 0.5, y + 0.12), INK),
    ]


def _crown(p: Plan) -> list[Shape]:
    x, y = p.top
    spikes = [
        (-0.38, -0.46),
        (-0.2, -0.16),
        (0, -0.52),
        (0.2, -0.16),
        (0.38, -0.46),
        (0.36, 0.1),
        (-0.36, 0.1),
    ]
    return [Shape([(x + a, y + b) for a, b in spikes], GOLD), Shape(ellipse(x, y - 0.04, 0.09, 0.09), RED)]


def _sunglasses(p: Plan) -> list[Shape]:
    x, y, apart = p.eyes
    apart = apart or 0.2
    lenses = [Shape(ellipse(x + d, y, 0.21, 0.19), (16, 16, 20)) for d in (-apart, apart)]
    return [Shape(box(x - apart, y - 0.1, x + apart, y), (16, 16, 20)), *lenses]


def _scarf(p: Plan) -> list[Shape]:
    x, y, wide = p.neck
    tail = [(x + 0.1, y), (x + 0.36, y), (x + 0.42, y + 0.5), (x + 0.14, y + 0.5)]
    return [
        Shape(box(x - wide, y - 0.12, x + wide, y + 0.12), SKY),
        Shape(tail, SKY),
        Shape([(x + 0.125, y + 0.3), (x + 0.39, y + 0.3), (x + 0.42, y + 0.5), (x + 0.14, y + 0.5)], PAPER),
    ]


def _balloon(p: Plan) -> list[Shape]:
    hx, hy = p.hand
    string = [(hx, hy), (hx + 0.06, hy), (1.06, -0.7), (1.0, -0.7)]
    return [Shape(string, INK), Shape(ellipse(1.02, -1.0, 0.34, 0.4), (236, 60, 150))]


def _ball(p: Plan) -> list[Shape]:
    return [Shape(ellipse(0.98, 0.76, 0.32, 0.32), PAPER), Shape(ellipse(0.98, 0.76, 0.32, 0.12), RED)]


def _flag(p: Plan) -> list[Shape]:
    return [
        Shape(box(-1.04, -0.8, -0.94, 0.8), (90, 60, 40)),
        Shape(box(-0.94, -0.8, -0.3, -0.56), RED),
        Shape(box(-0.94, -0.56, -0.3, -0.32), PAPER),
        Shape([(-1.04, 0.3), (-0.5, 0.2), (-0.5, 0.36), (-1.04, 0.42)], INK),
    ]


def _kite(p: Plan) -> list[Shape]:
    diamond: Points = [(-1.1, -1.4), (-0.7, -1.06), (-1.1, -0.56), (-1.5, -1.06)]
    string: Points = [(-1.13, -0.6), (-1.06, -0.6), (-0.4, 0.4), (-0.48, 0.42)]
    return [
        Shape(string, INK),
        Shape(diamond, GOLD),
        Shape([(-1.1, -1.4), (-0.7, -1.06), (-1.1, -1.06)], PLUM),
        Shape([(-1.1, -0.56), (-1.5, -1.06), (-1.1, -1.06)], PLUM),
    ]


def _skateboard(p: Plan) -> list[Shape]:
    wheels = [Shape(ellipse(x, 1.22, 0.14, 0.14), INK) for x in (-0.5, 0.5)]
    return [
        *wheels,
        Shape(
            [(-1.0, 0.92), (-0.85, 1.0), (0.85, 1.0), (1.0, 0.92), (0.9, 1.14), (-0.9, 1.14)], (230, 60, 160)
        ),
    ]


def _book(p: Plan) -> list[Shape]:
    pages = [[(0, 0.36), (x * 0.56, 0.26), (x * 0.56, 0.72), (0, 0.84)] for x in (-1, 1)]
    cover: Points = [(-0.64, 0.24), (0, 0.34), (0.64, 0.24), (0.64, 0.8), (0, 0.92), (-0.64, 0.8)]
    return [
        Shape(cover, (30, 110, 60)),
        *[Shape(page, PAPER) for page in pages],
        Shape(box(-0.04, 0.34, 0.04, 0.86), INK),
    ]


def _letter_z(x: float, y: float, r: float) -> Points:
    t = 0.38 * r
    return [
        (x - r, y - r),
        (x + r, y - r),
        (x + r, y - r + t),
        (x - 0.3 * r, y + r - t),
        (x + r, y + r - t),
        (x + r, y + r),
        (x - r, y + r),
        (x - r, y + r - t),
        (x + 0.3 * r, y - r + t),
        (x - r, y - r + t),
    ]


def _sleeping(p: Plan) -> list[Shape]:
    return [
        Shape(_letter_z(1.16, -1.08, 0.3), (60, 60, 200)),
        Shape(_letter_z(0.8, -0.6, 0.2), (60, 60, 200)),
    ]


ACCESSORIES: dict[str, Callable[[Plan], list[Shape]]] = {
    "none": lambda p: [],
    "hat": _hat,
    "crown": _crown,
    "sunglasses": _sunglasses,
    "scarf": _scarf,
    "balloon": _balloon,
}
ACTIONS: dict[str, Callable[[Plan], list[Shape]]] = {
    "none": lambda p: [],
    "ball": _ball,
    "flag": _flag,
    "kite": _kite,
    "skateboard": _skateboard,
    "book": _book,
    "sleeping": _sleeping,
}


def eyes(p: Plan, asleep: bool) -> list[Shape]:
    """Open eyes, or the closed lids of a sleeper."""
    x, y, apart = p.eyes
    places = [x] if p.profile else [x - apart, x + apart]
    if asleep:
        return [Shape(ring(a, y - 0.04, 0.16, 0.14, 0.08, 0, 180), INK) for a in places]
    return [
        s
        for a in places
        for s in (Shape(ellipse(a, y, 0.17, 0.17), PAPER), Shape(ellipse(a, y + 0.01, 0.1, 0.11), INK))
    ]

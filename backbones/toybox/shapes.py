"""The silhouettes: every noun as a list of polygons in its own units.

Units: x to the right, y down, the thing fills about [-1, 1] x [-1, 1] with its feet at y = 1.
Paints: ``body`` takes the pattern and the marks, ``skin`` the first colour, ``trim`` the second colour
(a darker first one when the pattern is plain); a tuple is a fixed RGB colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

Points = list[tuple[float, float]]
Paint = str | tuple[int, int, int]
INK = (30, 28, 34)
PAPER = (250, 250, 250)
GLASS = (190, 226, 244)


@dataclass(frozen=True)
class Shape:
    points: Points
    paint: Paint


@dataclass(frozen=True)
class Plan:
    """Where things are worn and held: top of the head, eyes (x, y, half distance), neck (x, y, half width),
    middle of the body (marks), hand."""

    shapes: list[Shape]
    top: tuple[float, float]
    eyes: tuple[float, float, float]
    neck: tuple[float, float, float]
    middle: tuple[float, float]
    hand: tuple[float, float]
    living: bool = True
    profile: bool = False  # seen from the side: one eye


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, count: int = 28) -> Points:
    """An ellipse as a polygon; ``turn`` in degrees."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(cx + rx * x * c - ry * y * s, cy + rx * x * s + ry * y * c) for x, y in _circle(count)]


@lru_cache(maxsize=8)
def _circle(count: int) -> Points:
    return [(math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)) for i in range(count)]


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, count: int = 18) -> Points:
    """Points along an ellipse from ``start`` to ``stop`` degrees (0 is right, 90 is down)."""
    angles = (math.radians(start + (stop - start) * i / (count - 1)) for i in range(count))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def ring(cx: float, cy: float, rx: float, ry: float, wide: float, start: float, stop: float) -> Points:
    """A bent bar of width ``wide`` along an arc."""
    inner = arc(cx, cy, rx - wide, ry - wide, start, stop)
    return arc(cx, cy, rx, ry, start, stop) + inner[::-1]


def star(cx: float, cy: float, r: float) -> Points:
    return [
        (
            cx + (r if i % 2 == 0 else 0.45 * r) * math.sin(math.pi * i / 5),
            cy - (r if i % 2 == 0 else 0.45 * r) * math.cos(math.pi * i / 5),
        )
        for i in range(10)
    ]


def _rabbit(s: float, g: float) -> Plan:
    ear, w = 0.36 + 0.16 * s, 1 + 0.22 * g
    shapes = [Shape(ellipse(x, -0.42 - ear, 0.15, ear, t), "skin") for x, t in ((-0.24, -10), (0.24, 10))]
    shapes += [
        Shape(ellipse(x, -0.42 - ear, 0.06, ear * 0.7, t), (250, 180, 200))
        for x, t in ((-0.24, -10), (0.24, 10))
    ]
    shapes += [Shape(ellipse(0, 0.48, 0.56 * w, 0.5), "body")]
    shapes += [Shape(ellipse(x, 0.9, 0.24, 0.13), "skin") for x in (-0.32, 0.32)]
    shapes += [
        Shape(ellipse(0, -0.16, 0.46, 0.36), "skin"),
        Shape(ellipse(0, 0.03, 0.08, 0.06), (250, 120, 150)),
    ]
    return Plan(shapes, (0, -0.45), (0, -0.2, 0.2), (0, 0.2, 0.4), (0, 0.55), (0.6 * w, 0.4))


def _cat(s: float, g: float) -> Plan:
    tail, w = 0.5 + 0.25 * s, 1 + 0.22 * g
    shapes = [Shape(ring(0.5 * w, 0.7 - tail, 0.42, tail, 0.17, -60, 90), "skin")]
    shapes += [Shape([(x, -0.9), (x - 0.26, -0.25), (x + 0.26, -0.25)], "skin") for x in (-0.36, 0.36)]
    shapes += [
        Shape([(x, -0.72), (x - 0.12, -0.4), (x + 0.12, -0.4)], (250, 180, 200)) for x in (-0.36, 0.36)
    ]
    shapes += [Shape([(-0.3 * w, 0), (0.3 * w, 0), (0.5 * w, 1), (-0.5 * w, 1)], "body")]
    shapes += [Shape(ellipse(x, 0.92, 0.19, 0.11), "skin") for x in (-0.25, 0.25)]
    shapes += [
        Shape(ellipse(0, -0.2, 0.58, 0.38), "skin"),
        Shape([(-0.09, -0.1), (0.09, -0.1), (0, 0.01)], (250, 120, 150)),
    ]
    return Plan(shapes, (0, -0.5), (0, -0.25, 0.25), (0, 0.16, 0.36), (0, 0.58), (0.5 * w, 0.4))


def _bear(s: float, g: float) -> Plan:
    ear, w = 0.19 + 0.07 * s, 1 + 0.15 * g
    shapes = [Shape(ellipse(x, -0.74, ear, ear), "skin") for x in (-0.42, 0.42)]
    shapes += [Shape(ellipse(x * w, 0.3, 0.2, 0.38, t), "skin") for x, t in ((-0.66, 25), (0.66, -25))]
    shapes += [Shape(ellipse(x, 0.86, 0.28, 0.16), "skin") for x in (-0.42, 0.42)]
    shapes += [Shape(ellipse(0, 0.42, 0.64 * w, 0.54), "body"), Shape(ellipse(0, -0.38, 0.52, 0.42), "skin")]
    shapes += [
        Shape(ellipse(0, -0.22, 0.25, 0.19), (240, 214, 180)),
        Shape(ellipse(0, -0.28, 0.11, 0.08), INK),
    ]
    return Plan(shapes, (0, -0.74), (0, -0.5, 0.24), (0, 0.02, 0.46), (0, 0.48), (0.75 * w, 0.4))


def _bird(s: float, g: float) -> Plan:
    beak, h = 0.34 + 0.2 * s, 1 + 0.2 * g
    shapes = [Shape(box(x - 0.05, 0.5, x + 0.05, 0.95), (240, 150, 30)) for x in (-0.12, 0.2)]
    shapes += [Shape(box(x - 0.06, 0.9, x + 0.22, 1.0), (240, 150, 30)) for x in (-0.12, 0.2)]
    shapes += [Shape([(-0.4, 0.0), (-1.0, -0.25), (-0.98, 0.2), (-0.4, 0.4)], "trim")]
    shapes += [Shape([(0.62, -0.66), (0.68 + beak, -0.46), (0.62, -0.32)], (250, 170, 30))]
    shapes += [
        Shape(ellipse(0, 0.18, 0.66, 0.46 * h), "body"),
        Shape(ellipse(0.4, -0.48, 0.36, 0.34), "skin"),
    ]
    shapes += [Shape(ellipse(-0.3, 0.12, 0.34, 0.17, 20), "trim")]
    return Plan(
        shapes, (0.38, -0.8), (0.48, -0.54, 0.0), (0.3, -0.16, 0.32), (0.15, 0.3), (0.55, 0.3), profile=True
    )


def _fish(s: float, g: float) -> Plan:
    tail, h = 0.36 + 0.16 * s, 1 + 0.2 * g
    shapes = [
        Shape([(-0.4, 0.1), (-0.66 - tail, -0.42), (-0.55 - tail * 0.5, 0.1), (-0.66 - tail, 0.62)], "trim")
    ]
    shapes += [Shape([(-0.3, -0.3), (0.0, -0.85 * h), (0.4, -0.3)], "trim")]
    shapes += [Shape([(-0.1, 0.5), (0.1, 0.9), (0.3, 0.5)], "trim")]
    shapes += [
        Shape(ellipse(0.15, 0.1, 0.78, 0.52 * h), "body"),
        Shape(arc(0.15, 0.1, 0.78, 0.52 * h, -50, 50), "skin"),
    ]
    shapes += [Shape([(0.95, 0.2), (0.72, 0.24), (0.74, 0.34)], INK)]
    return Plan(
        shapes, (0.3, -0.4), (0.62, -0.04, 0.0), (0.3, 0.1, 0.42), (0.0, 0.14), (0.5, 0.5), profile=True
    )


def _turtle(s: float, g: float) -> Plan:
    neck, h = 0.12 * s, 1 + 0.18 * g
    shapes = [Shape(box(x - 0.14, 0.5, x + 0.14, 1.0), "skin") for x in (-0.5, 0.34)]
    shapes += [
        Shape([(-0.75, 0.45), (-1.1, 0.62), (-0.75, 0.66)], "skin"),
        Shape(box(0.4, 0.2, 0.85 + neck, 0.5), "skin"),
    ]
    shapes += [Shape(ellipse(0.88 + neck, 0.16, 0.26, 0.25), "skin")]
    shapes += [Shape([(-0.88, 0.62), *arc(-0.08, 0.5, 0.78, 1.12 * h, 180, 360), (0.72, 0.62)], "body")]
    shapes += [Shape(box(-0.9, 0.5, 0.74, 0.68), "trim")]
    return Plan(
        shapes,
        (0.88 + neck, -0.05),
        (0.95 + neck, 0.11, 0.0),
        (0.62, 0.38, 0.22),
        (-0.08, 0.05),
        (0.6, 0.6),
        profile=True,
    )


def _elephant(s: float, g: float) -> Plan:
    trunk, ear = 0.32 + 0.12 * s, 1 + 0.2 * g
    shapes = [Shape(ellipse(x * ear, -0.34, 0.36 * ear, 0.5), "trim") for x in (-0.58, 0.58)]
    shapes += [Shape(box(x - 0.17, 0.5, x + 0.17, 1.0), "skin") for x in (-0.34, 0.34)]
    shapes += [Shape(ellipse(0, 0.42, 0.62, 0.46), "body"), Shape(ellipse(0, -0.38, 0.46, 0.44), "skin")]
    shapes += [Shape(box(-0.13, -0.25, 0.13, 0.02 + trunk), "skin")]
    shapes += [Shape(ring(0.16, 0.0 + trunk, 0.29, 0.26, 0.24, 20, 180), "skin")]
    return Plan(shapes, (0, -0.78), (0, -0.48, 0.25), (0, -0.02, 0.42), (0.0, 0.5), (0.6, 0.3))


def _car(s: float, g: float) -> Plan:
    r, roof = 0.27 + 0.07 * s, -0.55 - 0.18 * g
    shapes = [Shape([(-0.75, 0.0), (-0.5, roof), (0.32, roof), (0.66, 0.0)], "skin")]
    shapes += [Shape([(-0.56, -0.02), (-0.4, roof + 0.14), (-0.1, roof + 0.14), (-0.1, -0.02)], GLASS)]
    shapes += [Shape([(0.02, -0.02), (0.02, roof + 0.14), (0.24, roof + 0.14), (0.48, -0.02)], GLASS)]
    shapes += [
        Shape([(-1.0, 0.1), (-0.9, -0.04), (0.8, -0.04), (1.02, 0.2), (1.02, 0.66), (-1.0, 0.66)], "body")
    ]
    shapes += [Shape(ellipse(x, 0.7, r, r), INK) for x in (-0.54, 0.54)]
    shapes += [Shape(ellipse(x, 0.7, r * 0.45, r * 0.45), (200, 204, 208)) for x in (-0.54, 0.54)]
    shapes += [Shape(ellipse(0.94, 0.2, 0.09, 0.1), (255, 240, 150))]
    return Plan(
        shapes, (-0.1, roof), (-0.02, -0.22, 0.26), (0, 0.02, 0.6), (0, 0.3), (0.95, 0.3), living=False
    )


def _cup(s: float, g: float) -> Plan:
    r, w = 0.34 + 0.12 * s, 1 + 0.15 * g
    shapes = [Shape(ring(0.46 * w, 0.05, r + 0.16, r + 0.1, 0.16, -100, 100), "skin")]
    shapes += [Shape([(-0.72 * w, -0.68), (0.52 * w, -0.68), (0.38 * w, 0.98), (-0.58 * w, 0.98)], "body")]
    shapes += [
        Shape(ellipse(-0.1 * w, -0.68, 0.62 * w, 0.16), "skin"),
        Shape(ellipse(-0.1 * w, -0.67, 0.5 * w, 0.09), (96, 56, 34)),
    ]
    return Plan(
        shapes,
        (-0.1 * w, -0.78),
        (-0.1, -0.2, 0.26),
        (-0.1, 0.12, 0.52),
        (-0.1, 0.3),
        (0.6, 0.3),
        living=False,
    )


def _boat(s: float, g: float) -> Plan:
    top, w = -0.82 - 0.16 * s, 1 + 0.15 * g
    shapes = [Shape(box(-0.08, top, 0.04, 0.5), (110, 70, 40))]
    shapes += [Shape([(0.08, top + 0.06), (0.08, 0.32), (0.82 * w, 0.32)], "body")]
    shapes += [Shape([(-0.12, top + 0.3), (-0.12, 0.32), (-0.66 * w, 0.32)], "trim")]
    shapes += [Shape([(-1.02, 0.44), (1.02, 0.44), (0.68, 0.98), (-0.7, 0.98)], "body")]
    shapes += [Shape(box(-1.02, 0.4, 1.02, 0.54), "skin")]
    return Plan(shapes, (-0.02, top), (0.0, 0.2, 0.24), (0, 0.5, 0.7), (0, 0.76), (0.8, 0.5), living=False)


def _rocket(s: float, g: float) -> Plan:
    fin, w = 0.34 + 0.18 * s, 1 + 0.22 * g
    shapes = [Shape([(-0.26, 0.66), (0.26, 0.66), (0.14, 0.86), (0, 1.06), (-0.14, 0.86)], (255, 170, 40))]
    shapes += [
        Shape(
            [
                (x * 0.3 * w, 0.1),
                (x * (0.36 * w + fin), 0.6),
                (x * (0.36 * w + fin), 0.88),
                (x * 0.26 * w, 0.66),
            ],
            "trim",
        )
        for x in (-1, 1)
    ]
    hull = [(0, -1.0), (0.2 * w, -0.78), (0.36 * w, -0.4), (0.4 * w, 0.0), (0.36 * w, 0.45), (0.26 * w, 0.7)]
    shapes += [Shape(hull + [(-x, y) for x, y in reversed(hull)], "body")]
    shapes += [
        Shape([(0, -1.0), (0.2 * w, -0.78), (0.31 * w, -0.52), (-0.31 * w, -0.52), (-0.2 * w, -0.78)], "skin")
    ]
    shapes += [Shape(ellipse(0, -0.2, 0.2, 0.2), (60, 70, 90)), Shape(ellipse(0, -0.2, 0.14, 0.14), GLASS)]
    return Plan(shapes, (0, -0.86), (0, -0.22, 0.2), (0, 0.1, 0.4 * w), (0, 0.36), (0.42, 0.3), living=False)


def _robot(s: float, g: float) -> Plan:
    arm, w = 0.34 + 0.14 * s, 1 + 0.15 * g
    shapes = [Shape(box(-0.04, -0.98, 0.04, -0.7), INK), Shape(ellipse(0, -0.95, 0.1, 0.1), (240, 60, 60))]
    shapes += [
        Shape(box(min(x, x + d), 0.06, max(x, x + d), 0.26), "trim")
        for x, d in ((0.5 * w, arm), (-0.5 * w, -arm))
    ]
    shapes += [Shape(box(x - 0.14, 0.66, x + 0.14, 1.0), "trim") for x in (-0.28, 0.28)]
    shapes += [
        Shape(box(-0.56 * w, 0.0, 0.56 * w, 0.72), "body"),
        Shape(box(-0.44, -0.74, 0.44, -0.06), "skin"),
    ]
    shapes += [Shape(box(-0.24, -0.24, 0.24, -0.14), INK)]
    return Plan(shapes, (0, -0.74), (0, -0.46, 0.2), (0, 0.0, 0.36), (0, 0.36), (0.5 * w + arm, 0.16))


def _umbrella(s: float, g: float) -> Plan:
    foot, h = 0.82 + 0.12 * s, 1 + 0.2 * g
    shapes = [
        Shape(box(-0.06, -0.9, 0.06, foot), (100, 62, 36)),
        Shape(ring(0.16, foot, 0.22, 0.2, 0.12, 0, 180), (100, 62, 36)),
    ]
    dome = arc(0, 0.06, 1.02, 0.92 * h, 180, 360, 24)
    scallops = [p for x in (0.68, 0.0, -0.68) for p in arc(x, 0.06, 0.34, 0.16, 0, -180, 8)]
    shapes += [Shape(dome + scallops, "body"), Shape(box(-0.05, -1.0 * h, 0.05, -0.84 * h), INK)]
    return Plan(shapes, (0, -0.86 * h), (0, -0.3, 0.24), (0, 0.3, 0.3), (0, -0.38), (0.1, 0.5), living=False)


def _house(s: float, g: float) -> Plan:
    peak, w = -0.86 - 0.14 * s, 1 + 0.15 * g
    shapes = [
        Shape(box(0.34, -0.8, 0.58, -0.2), (150, 80, 66)),
        Shape(box(-0.7 * w, -0.16, 0.7 * w, 1.0), "body"),
    ]
    shapes += [Shape([(-0.95 * w, -0.1), (0, peak), (0.95 * w, -0.1)], "trim")]
    shapes += [Shape(box(-0.46, 0.4, -0.1, 1.0), (110, 66, 36)), Shape(box(0.12, 0.14, 0.5, 0.52), PAPER)]
    shapes += [Shape(box(0.18, 0.2, 0.44, 0.46), (255, 236, 130))]
    return Plan(
        shapes, (0, peak + 0.06), (0, -0.3, 0.22), (0, 0.0, 0.6), (0.3, 0.76), (0.7, 0.5), living=False
    )


PLANS: dict[str, Callable[[float, float], Plan]] = {
    "rabbit": _rabbit,
    "cat": _cat,
    "bear": _bear,
    "bird": _bird,
    "fish": _fish,
    "turtle": _turtle,
    "elephant": _elephant,
    "car": _car,
    "cup": _cup,
    "boat": _boat,
    "rocket": _rocket,
    "robot": _robot,
    "umbrella": _umbrella,
    "house": _house,
}

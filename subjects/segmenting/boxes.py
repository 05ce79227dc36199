"""Which of a locator's boxes the subject is in: grounding always answers, and not always well."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ...core.errors import LikenessError
from .base import Box, Point

Policy = Literal["largest", "best", "union"]

WHOLE_PICTURE = 0.98  # of its area: a box that large says "somewhere here"
LEAST_EDGE_PX = 2.0


def choose(
    found: Sequence[Box], noun: str, width: int, height: int, policy: Policy
) -> tuple[list[Box], list[str]]:
    """The boxes to cut in, and notes on what was doubtful.

    Boxes labelled with the noun go before others; one that covers the whole picture goes when there is
    another. ``largest`` takes the largest (a training photo shows one subject), ``best`` the one with the
    highest score (the largest where there are no scores), ``union`` all.
    """
    boxes = [box.within(width, height) for box in found]
    boxes = [b for b in boxes if min(b.width, b.height) >= LEAST_EDGE_PX]
    boxes = [b for b in boxes if _names(b.label, noun)] or boxes
    boxes = [b for b in boxes if b.area <= WHOLE_PICTURE * width * height] or boxes
    if not boxes:
        return [], [f"no {noun} was found"]
    notes = [f"{len(boxes)} boxes of a {noun} were found ({policy} is used)"] if len(boxes) > 1 else []
    if policy == "union":
        return boxes, notes
    scored = policy == "best" and any(b.score is not None for b in boxes)
    return [max(boxes, key=lambda b: ((b.score or 0.0) if scored else b.area, b.area))], notes


def parse_boxes(text: str) -> list[Box]:
    """``x0 y0 x1 y1`` in pixels, one box per line or semicolon. LikenessError says which is not one."""
    return [
        Box(x0=x0, y0=y0, x1=x1, y1=y1)
        for x0, y0, x1, y1 in _rows(text, 4, "box", "x0 y0 x1 y1 with x0 < x1 and y0 < y1")
        if _ordered(x0, y0, x1, y1)
    ]


def parse_points(text: str) -> list[Point]:
    """``x y`` in pixels on the subject, ``x y 0`` beside it; one per line or semicolon."""
    points = []
    for line in _lines(text):
        numbers = _numbers(line)
        if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0.0, 1.0)):
            raise LikenessError(f"{line!r} is not a point", expected="x y in pixels, and 0 for beside it")
        points.append(Point(numbers[0], numbers[1], inside=len(numbers) == 2 or numbers[2] == 1.0))
    return points


def _names(label: str, noun: str) -> bool:
    return bool(noun) and noun.lower() in label.lower()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in re.split(r"[;\n]", text) if line.strip()]


def _numbers(line: str) -> list[float]:
    try:
        return [float(part) for part in re.split(r"[\s,]+", line.strip("[]() "))]
    except ValueError:
        return []


def _rows(text: str, count: int, what: str, expected: str) -> list[list[float]]:
    rows = [_numbers(line) for line in _lines(text)]
    wrong = next((line for line, row in zip(_lines(text), rows, strict=True) if len(row) != count), None)
    if wrong is not None:
        raise LikenessError(f"{wrong!r} is not a {what}", expected=expected)
    return rows


def _ordered(x0: float, y0: float, x1: float, y1: float) -> bool:
    if x0 < x1 and y0 < y1:
        return True
    raise LikenessError(
        f"The box {x0:g} {y0:g} {x1:g} {y1:g} is empty", expected="x0 y0 x1 y1 with x0 < x1 and y0 < y1"
    )

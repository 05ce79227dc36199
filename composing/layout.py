"""Where each subject goes in a scene: plain values that travel as JSON, in a file or in a node's widget."""
# A box is (x, y, width, height) in shares of the canvas, the origin at its top left.

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.errors import LikenessError

Box = tuple[float, float, float, float]

VERSION = 1
MAX_ITEMS = 8  # more things than these do not fit a scene at a size that can be learned
MAX_JSON_CHARS = 100_000  # a layout of eight things has about a thousand
_DIGITS = 5  # of a share: a hundredth of a pixel on a canvas of 1024


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What a scene has to hold, as a proposer sees it. ``aspect`` is width / height of its cut-out."""

    name: str  # the subject's name, unique in a scene
    noun: str
    aspect: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing's place. ``locked``: a new draw leaves it where it is."""

    subject: str
    noun: str
    box: Box
    flip: bool = False
    angle: float = 0.0  # degrees, counter-clockwise
    locked: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A scene in words ("in a garden") and its things in painting order: the farthest first."""

    scene: str
    items: tuple[Item, ...]

    def to_json(self) -> str:
        """Equal layouts give equal text."""
        items = [asdict(item) | {"box": list(item.box)} for item in self.items]
        return json.dumps({"version": VERSION, "scene": self.scene, "items": items}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The inverse. Raises LikenessError that names what is wrong; nothing is evaluated."""
        if len(text) > MAX_JSON_CHARS:
            raise _not_a_layout(f"it has {len(text)} characters")
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_a_layout(str(error)) from error
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise _not_a_layout(f"it has no version {VERSION}")
        items = record.get("items")
        if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
            raise _not_a_layout(f"it has not between 1 and {MAX_ITEMS} items")
        layout = cls(
            scene=_text(record, "scene"), items=tuple(_item(n, row) for n, row in enumerate(items, 1))
        )
        names = [item.subject for item in layout.items]
        if len(set(names)) < len(names):
            raise _not_a_layout("two items name the same subject")
        return layout

    def item(self, subject: str) -> Item:
        """Raises KeyError for a subject that is not in the scene."""
        return {item.subject: item for item in self.items}[subject]


def rounded(box: Sequence[float]) -> Box:
    """A box as it is written, so that what is composed and what is saved are the same."""
    x, y, width, height = (round(float(v), _DIGITS) for v in box)
    return (x, y, width, height)


def pixels(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels of a canvas."""
    return (box[0] * width, box[1] * height, box[2] * width, box[3] * height)


def things_of(subjects: Sequence[tuple[str, str, float]]) -> list[Thing]:
    """Checked things from (name, noun, aspect). Raises LikenessError for none, too many, or a name twice."""
    names = [name for name, _, _ in subjects]
    if not 1 <= len(names) <= MAX_ITEMS:
        raise LikenessError(
            f"A scene of {len(names)} subjects was asked for",
            expected=f"between 1 and {MAX_ITEMS}; two to five work best",
            fix="Give fewer subjects to one scene",
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LikenessError(
            f"Two subjects of a scene are both named {twice!r}", fix="Give each folder a name of its own"
        )
    return [Thing(name=name, noun=noun, aspect=aspect) for name, noun, aspect in subjects]


def renamed(layout: Layout, things: Sequence[Thing]) -> Layout:
    """The layout for these things, matched by name. LikenessError when it is of other subjects."""
    known = {item.subject: item for item in layout.items}
    missing = [thing.name for thing in things if thing.name not in known]
    extra = sorted(known.keys() - {thing.name for thing in things})
    if missing or extra:
        raise LikenessError(
            f"The layout is of other subjects: {', '.join(missing) or 'none'} missing, "
            f"{', '.join(extra) or 'none'} too many",
            expected=", ".join(thing.name for thing in things),
            fix="Clear the layout so that a new one is drawn",
        )
    nouns = {thing.name: thing.noun for thing in things}
    return replace(layout, items=tuple(replace(i, noun=nouns[i.subject]) for i in layout.items))


def _item(number: int, row: Any) -> Item:
    if not isinstance(row, dict):
        raise _not_a_layout(f"item {number} is no object")
    box = row.get("box")
    if not isinstance(box, list) or len(box) != 4:
        raise _not_a_layout(f"item {number} has no box of four numbers")
    shares = rounded([number_in(value, -1.0, 2.0, f"item {number}'s box") for value in box])
    if shares[2] <= 0 or shares[3] <= 0:
        raise _not_a_layout(f"item {number}'s box is empty")
    return Item(
        subject=_text(row, "subject"),
        noun=_text(row, "noun"),
        box=shares,
        flip=row.get("flip") is True,
        angle=number_in(row.get("angle", 0.0), -180.0, 180.0, f"item {number}'s angle"),
        locked=row.get("locked") is True,
    )


def number_in(value: Any, low: float, high: float, what: str) -> float:
    """A finite number in a range. LikenessError otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _not_a_layout(f"{what} holds {str(value)[:40]!r}, not a number from {low:g} to {high:g}")
    return float(value)


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise _not_a_layout(f"{key} is no text of 1 to 200 characters")
    return " ".join(value.split())


def _not_a_layout(problem: str) -> LikenessError:
    return LikenessError(
        f"This is not a layout: {problem}",
        expected='{"version": 1, "scene": "in a garden", "items": [{"subject": ..., "noun": ..., '
        '"box": [x, y, width, height]}]}',
        fix="Clear the layout so that a new one is drawn",
    )

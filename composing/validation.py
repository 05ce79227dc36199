"""What a layout must keep to, why one is rejected, and what can be mended.

The reference code rejects unparsable and empty boxes and leaves the rest to the user's eye. Here a layout is
mended where a small move is enough, and rejected with a reason where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from . import sizes
from .layout import Box, Item, Layout, Thing, rounded


class Rejected(Exception):
    """A proposal that cannot be used. ``reason`` is one of a few words, so that reasons can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a good layout keeps to. Shares are of the canvas."""

    max_overlap: float = 0.15  # of the smaller of two boxes; the reference asks for none and checks none
    max_ratio_error: float = 0.15  # of a thing's size beside the largest one's
    min_edge: Mapping[int, float] | None = (
        None  # least longest edge by number of things; None: reference_edge
    )
    horizon: float = 0.45  # things that stand have their feet below it
    margin: float = 0.01  # between a box and the canvas's edge


def reference_edge(num: int) -> float:
    """The reference's least area, (H/5)(W/5) for up to three things, /6 for four, /8 beyond, as an edge."""
    return 1 / 5 if num <= 3 else 1 / 6 if num == 4 else 1 / 8


def check(layout: Layout, things: Sequence[Thing], ratios: Mapping[str, float], limits: Limits) -> None:
    """Raise ``Rejected`` for the first thing that is wrong; return when nothing is.

    Locked items are where a person wants them: only what is beside them is looked at.
    """
    names = {item.subject for item in layout.items}
    for thing in things:
        if thing.name not in names:
            raise Rejected("missing subject", thing.name)
    least = (limits.min_edge or {}).get(len(things), reference_edge(len(things)))
    free = [item for item in layout.items if not item.locked]
    longest = {item.subject: max(item.box[2], item.box[3]) for item in free}
    top = max(longest.values(), default=1.0) / max((ratios.get(name, 1.0) for name in longest), default=1.0)
    for item in free:
        _check_item(item, limits, least, longest[item.subject], top * ratios.get(item.subject, 1.0))
    for n, item in enumerate(layout.items):
        for other in layout.items[n + 1 :]:
            both_locked = item.locked and other.locked
            if not both_locked and overlap(item.box, other.box) > limits.max_overlap:
                raise Rejected("overlap", f"{item.subject} and {other.subject}")


def _check_item(item: Item, limits: Limits, least: float, edge: float, wanted: float) -> None:
    x, y, width, height = item.box
    if x < 0 or y < 0 or x + width > 1.00001 or y + height > 1.00001:
        raise Rejected("outside the canvas", item.subject)
    if edge < least * 0.999:
        raise Rejected("too small", f"{item.subject} has an edge of {edge:.2f}, not {least:.2f}")
    if abs(edge / wanted - 1) > limits.max_ratio_error:
        raise Rejected("size ratio", f"{item.subject} is {edge / wanted:.2f} of its size")
    if sizes.support(item.noun) in ("ground", "table") and y + height < limits.horizon - 1e-4:
        raise Rejected("in the air", item.subject)


def overlap(a: Box, b: Box) -> float:
    """The share of the smaller box that the two have in common."""
    wide = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return wide * high / max(min(a[2] * a[3], b[2] * b[3]), 1e-9)


# --- mending ------------------------------------------------------------------------------------------


def repair(layout: Layout, things: Sequence[Thing], ratios: Mapping[str, float], limits: Limits) -> Layout:
    """Sizes to their ratios, every box to its thing's shape, small things larger, all inside, feet down, and
    boxes that overlap pushed apart. Locked items stay as they are, and the others' sizes follow theirs. What
    remains wrong, ``check`` finds."""
    aspects = {thing.name: thing.aspect for thing in things}
    measures = [item for item in layout.items if item.locked] or layout.items
    largest = max(measures, key=lambda item: ratios.get(item.subject, 0.0))
    unit = max(largest.box[2], largest.box[3]) / ratios.get(largest.subject, 1.0)
    unit = _fitting_unit(unit, layout.items, aspects, ratios, limits)
    items = [
        item if item.locked else _resized(item, unit * ratios.get(item.subject, 1.0), aspects, limits)
        for item in layout.items
    ]
    items = _pushed_apart(items, limits)
    return replace(layout, items=tuple(painted(items)))


def _fitting_unit(
    unit: float,
    items: Sequence[Item],
    aspects: Mapping[str, float],
    ratios: Mapping[str, float],
    limits: Limits,
) -> float:
    """The size of a thing of ratio 1: large enough for the smallest thing, small enough for the largest.

    Differs: the reference scales widths and heights by a ratio of areas, so that areas grow by its square,
    and lets boxes outgrow the canvas.
    """
    least = (limits.min_edge or {}).get(len(items), reference_edge(len(items)))
    smallest = min(ratios.get(item.subject, 1.0) for item in items)
    largest = max(ratios.get(item.subject, 1.0) for item in items)
    return min(max(unit, least / smallest), (1 - 2 * limits.margin) / largest)


def fitted(edge: float, aspect: float) -> tuple[float, float]:
    """Width and height of a thing whose longest edge is ``edge``."""
    return (edge, edge / aspect) if aspect >= 1 else (edge * aspect, edge)


def _resized(item: Item, edge: float, aspects: Mapping[str, float], limits: Limits) -> Item:
    """The thing's own shape and size around the middle of its foot."""
    x, y, width, height = item.box
    new_width, new_height = fitted(edge, aspects[item.subject])
    foot = y + height
    if sizes.support(item.noun) in ("ground", "table"):
        foot = max(foot, limits.horizon)
    return replace(
        item, box=inside((x + width / 2 - new_width / 2, foot - new_height, new_width, new_height), limits)
    )


def inside(box: Box, limits: Limits) -> Box:
    """Moved into the canvas without a change of size.

    Differs: the reference moves a box that leaves at the left or top by twice as much on one side, and so
    shrinks it.
    """
    x, y, width, height = box
    low = limits.margin
    x = min(max(x, low), max(1 - low - width, 0.0))
    y = min(max(y, low), max(1 - low - height, 0.0))
    return rounded((x, y, width, height))


def _pushed_apart(items: list[Item], limits: Limits, rounds: int = 40) -> list[Item]:
    """Sideways, by half of what two boxes have in common, until none overlaps too much or rounds are over."""
    for _ in range(rounds):
        clash = next(
            (
                (a, b)
                for a in range(len(items))
                for b in range(a + 1, len(items))
                if overlap(items[a].box, items[b].box) > limits.max_overlap
            ),
            None,
        )
        if clash is None:
            return items
        _push(items, *clash, limits)
    return items


def _push(items: list[Item], a: int, b: int, limits: Limits) -> None:
    one, two = items[a].box, items[b].box
    common = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    left = a if one[0] + one[2] / 2 <= two[0] + two[2] / 2 else b
    for index in (a, b):
        if not items[index].locked:
            step = (common / 2 + 0.002) * (-1 if index == left else 1)
            x, y, width, height = items[index].box
            items[index] = replace(items[index], box=inside((x + step, y, width, height), limits))


def painted(items: Sequence[Item]) -> list[Item]:
    """Painting order: what stands nearer, its feet lower in the picture, comes later.

    Differs: the reference sorts by the sum of overlaps under a comment that says "largest first".
    """
    hung = [item for item in items if sizes.support(item.noun) in ("wall", "air")]
    standing = [item for item in items if item not in hung]
    return hung + sorted(standing, key=lambda item: (item.box[1] + item.box[3], -item.box[2] * item.box[3]))

"""A layout that a person has edited: what it must keep to, and a new draw of all that is not locked.

Wider than what a proposal must keep to (validation.py): a person may put things anywhere and let one stand
before another, as long as every subject can be seen and learned. The page's editor shows the same limits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import LikenessError
from .layout import Item, Layout, Thing, renamed
from .proposing import Drawn, RuleBased, draw_layout
from .validation import overlap

MAX_OVERLAP = 0.6  # of the smaller of two boxes: more hides what has to be learned
MIN_EDGE = 0.05  # of a box's longest edge, in shares of the canvas
MAX_TRIES = 40  # of a new draw: locked boxes may leave little room
_SLACK = 1e-3  # a pixel of a thousand


def problems(layout: Layout) -> list[str]:
    """What keeps the layout from being composed, in words; nothing when it holds."""
    found = [problem for item in layout.items for problem in _problems_of(item)]
    for one, two in itertools.combinations(layout.items, 2):
        common = overlap(one.box, two.box)
        if common > MAX_OVERLAP + _SLACK:
            found.append(
                f"{one.subject} and {two.subject} overlap by {common:.0%}, more than {MAX_OVERLAP:.0%}"
            )
    return found


def _problems_of(item: Item) -> list[str]:
    x, y, width, height = item.box
    found = []
    if min(x, y) < -_SLACK or max(x + width, y + height) > 1 + _SLACK:
        found.append(f"{item.subject} leaves the canvas")
    if max(width, height) < MIN_EDGE - _SLACK:
        found.append(f"{item.subject} is smaller than {MIN_EDGE:.0%} of the canvas")
    return found


def read_edited(text: str, things: Sequence[Thing] | None = None) -> Layout:
    """An edited layout from its JSON, for these things. Raises LikenessError that names all that is wrong."""
    layout = Layout.from_json(text)
    wrong = problems(layout)
    if wrong:
        raise LikenessError(
            f"This layout cannot be composed: {'; '.join(wrong)}",
            expected="every box on the canvas, large enough to be seen and not hidden by another",
            fix="Move the boxes on the node, or clear the layout so that a new one is drawn",
        )
    return layout if things is None else renamed(layout, things)


def things_in(layout: Layout) -> list[Thing]:
    """Its things, each as wide for its height as its box is."""
    return [Thing(name=i.subject, noun=i.noun, aspect=i.box[2] / i.box[3]) for i in layout.items]


def redrawn(layout: Layout, *, seed: int, things: Sequence[Thing] | None = None) -> Drawn:
    """Another layout of the same scene by the rules: locked items stay, all stay turned and flipped.

    ``things`` know the shapes of the cut-outs; without them the boxes' own shapes count, as they do for
    what is turned. Raises LikenessError when no layout holds.
    """
    boxes = {thing.name: thing for thing in things_in(layout)}
    shapes = [boxes[t.name] if layout.item(t.name).angle else t for t in things or boxes.values()]
    drawn = draw_layout(
        RuleBased(), shapes, seed=seed, max_tries=MAX_TRIES, locked=layout, scene=layout.scene
    )
    old = {item.subject: item for item in layout.items}
    items = [
        replace(item, flip=old[item.subject].flip, angle=old[item.subject].angle)
        for item in drawn.layout.items
    ]
    return replace(drawn, layout=replace(drawn.layout, items=tuple(items)))

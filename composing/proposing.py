"""Layout Scene: proposals of any maker, checked, mended, and drawn again until one holds.

Gen4Gen (Yeh et al. 2024) asks a language model for scenes, size ratios and boxes, one after another, and
leaves what is bad to the user. Here every maker answers one question, ``propose``, and what it says is
checked by rules.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..core.errors import LikenessError
from . import sizes
from .layout import Box, Item, Layout, Thing, rounded
from .validation import Limits, Rejected, check, fitted, reference_edge, repair

log = logging.getLogger(__name__)

# Places that hold most things, with their preposition; our own list.
SCENES = (
    "in a garden",
    "in a park",
    "in a meadow",
    "in a forest",
    "in a city square",
    "in a living room",
    "in a kitchen",
    "in a courtyard",
    "in the snow",
    "on a beach",
    "on a wooden floor",
    "on a street",
    "on a farm",
    "on a lawn",
    "on a terrace",
    "beside a lake",
)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a maker says: a scene, sizes beside the largest thing (0 to 1], and boxes, by subject's name."""

    scene: str
    ratios: Mapping[str, float]
    boxes: Mapping[str, Box]


class Proposer(Protocol):
    """A maker of layouts. ``name`` goes into a scene's provenance."""

    @property
    def name(self) -> str: ...

    def propose(self, things: Sequence[Thing], *, seed: int, attempt: int) -> Proposal:
        """Raises ``Rejected`` for an answer of no use, LikenessError where asking again cannot help."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A layout that holds, how many proposals it took, and why the others were rejected, counted."""

    layout: Layout
    ratios: Mapping[str, float]
    tries: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    proposer: str = "rules"

    def in_words(self) -> str:
        """One line: "2 tries; rejected: overlap 1"."""
        reasons = ", ".join(f"{reason} {num}" for reason, num in sorted(self.rejected.items()))
        return f"{self.tries} {'try' if self.tries == 1 else 'tries'} ({self.proposer})" + (
            f"; rejected: {reasons}" if reasons else ""
        )


def draw_layout(
    proposer: Proposer,
    things: Sequence[Thing],
    *,
    seed: int,
    limits: Limits | None = None,
    max_tries: int = 8,
    fallback: Proposer | None = None,
    locked: Layout | None = None,
    scene: str = "",
) -> Drawn:
    """Ask until a proposal holds, mending what can be mended.

    After ``max_tries`` the ``fallback`` answers, with a warning; without one LikenessError counts the
    reasons. ``locked`` keeps its locked items where they are; ``scene`` is used instead of the proposed one.
    """
    limits = limits or Limits()
    rejected: Counter[str] = Counter()
    for attempt in range(max_tries):
        try:
            proposal = proposer.propose(things, seed=seed, attempt=attempt)
            layout = _laid_out(proposal, things, locked, scene)
            layout = repair(layout, things, proposal.ratios, limits)
            check(layout, things, proposal.ratios, limits)
            return Drawn(
                layout=layout,
                ratios=dict(proposal.ratios),
                tries=attempt + 1,
                rejected=dict(rejected),
                proposer=proposer.name,
            )
        except Rejected as no:
            rejected[no.reason] += 1
            log.info("A layout was rejected: %s", no)
    return _given_up(fallback, things, rejected, seed, limits, max_tries, locked, scene, proposer.name)


def _given_up(
    fallback: Proposer | None,
    things: Sequence[Thing],
    rejected: Counter[str],
    seed: int,
    limits: Limits,
    max_tries: int,
    locked: Layout | None,
    scene: str,
    name: str,
) -> Drawn:
    reasons = ", ".join(f"{reason} ({num} times)" for reason, num in rejected.most_common())
    if fallback is None:
        raise LikenessError(
            f"None of {max_tries} layouts by {name} for {', '.join(t.name for t in things)} could be used: "
            f"{reasons}",
            fix="Give the scene fewer subjects, another seed, or the rule-based proposer",
        )
    log.warning("%s gave no layout that holds (%s): %s answers instead", name, reasons, fallback.name)
    drawn = draw_layout(
        fallback, things, seed=seed, limits=limits, max_tries=max_tries, locked=locked, scene=scene
    )
    total = Counter(rejected) + Counter(drawn.rejected)
    return replace(drawn, tries=drawn.tries + max_tries, rejected=dict(total))


def _laid_out(proposal: Proposal, things: Sequence[Thing], locked: Layout | None, scene: str) -> Layout:
    kept = {item.subject: item for item in locked.items if item.locked} if locked else {}
    items = []
    for thing in things:
        if thing.name not in proposal.boxes:
            raise Rejected("missing subject", thing.name)
        box = rounded(proposal.boxes[thing.name])
        items.append(kept.get(thing.name, Item(subject=thing.name, noun=thing.noun, box=box)))
    return Layout(scene=scene.strip() or proposal.scene, items=tuple(items))


# --- by rule ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RuleBased:
    """Without any model: sizes from a table, things in one or two rows on the ground, some in the air."""

    scenes: Sequence[str] = SCENES
    name: str = "rules"

    def propose(self, things: Sequence[Thing], *, seed: int, attempt: int) -> Proposal:
        dice = random.Random(f"layout {seed} {attempt} {[thing.name for thing in things]}")
        ratio = dict(zip((t.name for t in things), sizes.ratios([t.noun for t in things]), strict=True))
        shape = {t.name: fitted(ratio[t.name], t.aspect) for t in things}  # at a unit of 1
        rows = _rows(things, shape, dice)
        unit = _unit(rows, shape, ratio, dice)
        boxes: dict[str, Box] = {}
        front = 1.0  # the top of what stands before
        for row, kind in rows:
            wide = {name: (shape[name][0] * unit, shape[name][1] * unit) for name in row}
            foot = _foot(kind, front, max(h for _, h in wide.values()), dice)
            boxes |= _beside(row, wide, foot, kind, dice)
            front = min(boxes[name][1] for name in row)
        return Proposal(scene=dice.choice(list(self.scenes)), ratios=ratio, boxes=boxes)


def _rows(
    things: Sequence[Thing], shape: Mapping[str, tuple[float, float]], dice: random.Random
) -> list[tuple[list[str], str]]:
    """Names by row, the nearest first: "front", "back", "up". Low things stand in front of tall ones."""
    up = [t.name for t in things if sizes.support(t.noun) in ("wall", "air")]
    standing = [t.name for t in things if t.name not in up]
    dice.shuffle(standing)
    two = len(standing) > 3 or (len(standing) > 1 and dice.random() < 0.4)
    rows: list[tuple[list[str], str]] = []
    if two:
        standing.sort(key=lambda name: shape[name][1] + dice.uniform(-0.1, 0.1))
        half = (len(standing) + dice.randrange(2)) // 2
        parts = [(standing[:half], "front"), (standing[half:], "back")]
    else:
        parts = [(standing, "front")]
    for names, kind in [*parts, (up, "up")]:
        dice.shuffle(names)
        rows += [(names, kind)] if names else []
    return rows


def _unit(
    rows: Sequence[tuple[list[str], str]],
    shape: Mapping[str, tuple[float, float]],
    ratio: Mapping[str, float],
    dice: random.Random,
) -> float:
    """As large as the widest row and the rows above each other allow, less a random share."""
    widest = max(sum(shape[name][0] for name in row) for row, _ in rows)
    tall = [max(shape[name][1] for name in row) for row, _ in rows]
    most = min(0.94 / widest, 0.9 / sum(tall), 0.62)
    least = reference_edge(len(shape)) / min(ratio.values())
    return max(most * dice.uniform(0.8, 1.0), least * 1.001)


def _foot(kind: str, front: float, height: float, dice: random.Random) -> float:
    """Where a row's things stand: near the bottom, or behind the tops of the row before."""
    if kind == "front":
        return dice.uniform(max(0.78, height + 0.02), 0.98) if height < 0.76 else 0.98
    if kind == "back":
        return max(min(dice.uniform(0.55, 0.72), front + 0.03), height + 0.015, 0.47)
    return max(min(dice.uniform(0.2, 0.42), front - 0.01), height + 0.015)


def _beside(
    row: Sequence[str], wide: Mapping[str, tuple[float, float]], foot: float, kind: str, dice: random.Random
) -> dict[str, Box]:
    """Side by side, the room that is left divided at random, feet at a little different heights."""
    slack = max(0.98 - sum(w for w, _ in wide.values()), 0.0)
    shares = [dice.gammavariate(2.0, 1.0) for _ in range(len(row) + 1)]
    x, boxes = 0.01, {}
    for name, share in zip(row, shares, strict=False):
        x += slack * share / sum(shares)
        width, height = wide[name]
        sway = 0.0 if kind == "up" else dice.uniform(-0.015, 0.015)
        boxes[name] = rounded((x, foot + sway - height, width, height))
        x += width
    return boxes

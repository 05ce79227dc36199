"""InstructBooth's Figure 8 on Toybox: prompts of both kinds teach sooner than identifier-only ones.

One subject and one activity, three seeds, each from one DreamBooth: the reward of pictures with the
identifier over updates. Counted is when the run with both kinds reaches what identifier-only ends with.
Hours on two cores; ``quick`` some minutes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ..concepts.concept import Concept
from ..subjects.prompt_pool import PromptPool
from ..trainers.align import train_align
from ..trainers.events import Rollout
from . import bar
from .cases import measured
from .instructbooth import REWARD, World, small_world, stage_one
from .learning import SEEDS, SUBJECTS, Problem

SHARE_BAR = 0.7  # of identifier-only's updates
SHARES = {"identifier only": 1.0, "both kinds": 0.5}


def figure_8(noun: str, number: int, seeds: Sequence[int], quick: bool) -> dict[str, Any]:
    """Reward of pictures with the identifier over updates, for one activity: identifier-only against both."""
    found = measured("instructbooth", two_curves, [(noun, number, seed, quick) for seed in seeds])
    curves = {name: [one[name] for one in found] for name in SHARES}
    updates = [reach(one, other) for one, other in zip(*curves.values(), strict=True)]
    with small_world(quick) as here:
        activity, per_point = here.pool.activities[0], here.config().updates_per_epoch
    return {
        "activity": activity,
        "updates per point": per_point,
        "share of the updates": statistics.fmean(updates),
        **{f"{name}, mean": _columns(some, statistics.fmean) for name, some in curves.items()},
        **{f"{name}, std": _columns(some, statistics.pstdev) for name, some in curves.items()},
    }


def two_curves(noun: str, number: int, seed: int, quick: bool) -> dict[str, list[float]]:
    """Of one seed, from one DreamBooth."""
    with small_world(quick) as here:
        case = here.case(noun, number)
        concept, activity = stage_one(here, case, seed), here.pool.activities[0]
        return {
            name: curve(here, case, concept, PromptPool(activities=(activity,), identifier_share=share), seed)
            for name, share in SHARES.items()
        }


def curve(here: World, case: Problem, concept: Concept, pool: PromptPool, seed: int) -> list[float]:
    events = train_align(
        here.base, case.subject, here.config(),
        concepts=[(concept, 1.0)], pool=pool, reward=REWARD, seed=seed, encoders=here.encoders,
        runs_root=here.scratch,
    )  # fmt: skip
    return [e.with_identifier for e in events if isinstance(e, Rollout) and e.with_identifier is not None]


def reach(alone: Sequence[float], both: Sequence[float], window: int = 3) -> float:
    """Updates that ``both`` needs to reach the final reward of ``alone``, as a share; infinite if never.

    Rewards are smoothed over ``window`` epochs; the final one is the mean of the last of them.
    """
    final = statistics.fmean(alone[-window:])
    for n in range(len(both)):
        if statistics.fmean(both[max(0, n + 1 - window) : n + 1]) >= final:
            return (n + 1) / len(alone)
    return math.inf


def _columns(curves: Sequence[Sequence[float]], of: Any) -> list[float]:
    return [of(column) for column in zip(*curves, strict=True)]


def run(quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else SEEDS
    found = figure_8(*SUBJECTS[0], seeds, quick)
    share = found["share of the updates"]
    held = bar("updates with both kinds, of identifier-only's", value=share, op="<=", bar=SHARE_BAR)
    known = found | {"share of the updates": share if math.isfinite(share) else None}
    return {"numbers": known, "bars": [held], "seeds": list(seeds)}

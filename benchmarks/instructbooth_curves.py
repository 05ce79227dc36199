"""InstructBooth's Figure 8 on Toybox: prompts of both kinds teach sooner than identifier-only ones.

One subject and one activity, three seeds, each from one DreamBooth: the reward of pictures with the
identifier over updates. Counted is when the run with both kinds reaches what identifier-only ends with.
Hours on two cores; ``quick`` some minutes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
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


Curve = Callable[[World, Problem, Concept, PromptPool, int], list[float]]


def two_curves(curve: Curve, noun: str, number: int, seed: int, quick: bool) -> dict[str, Any]:
    """Of one seed, from one DreamBooth, and the activity that they are about."""
    with small_world(quick) as here:
        case = here.case(noun, number)
        concept, activity = stage_one(here, case, seed), here.pool.activities[0]
        pools = {name: PromptPool(activities=(activity,), identifier_share=s) for name, s in SHARES.items()}
        curves = {name: curve(here, case, concept, pool, seed) for name, pool in pools.items()}
        return {"activity": activity, **curves}


def figure_8(found: Sequence[Mapping[str, Any]], per_point: int) -> dict[str, Any]:
    """Means over seeds and their spread; "share of the updates" is infinite if a seed never got there."""
    curves = {name: [one[name] for one in found] for name in SHARES}
    updates = [reach(one, other) for one, other in zip(*curves.values(), strict=True)]
    return {
        "activity": found[0]["activity"],
        "updates per point": per_point,
        "share of the updates": statistics.fmean(updates),
        "shares": [share if math.isfinite(share) else None for share in updates],
        **{f"{name}, mean": _columns(some, statistics.fmean) for name, some in curves.items()},
        **{f"{name}, std": _columns(some, statistics.pstdev) for name, some in curves.items()},
    }


def policy_gradient_curves(noun: str, number: int, seed: int, quick: bool) -> dict[str, Any]:
    return two_curves(curve, noun, number, seed, quick)


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


def result(found: Sequence[Mapping[str, Any]], per_point: int, seeds: Sequence[int]) -> dict[str, Any]:
    numbers = figure_8(found, per_point)
    share = numbers["share of the updates"]
    held = bar("updates with both kinds, of identifier-only's", value=share, op="<=", bar=SHARE_BAR)
    known = numbers | {"share of the updates": share if math.isfinite(share) else None}
    return {"numbers": known, "bars": [held], "seeds": list(seeds)}


def run(quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else SEEDS
    cases = [(*SUBJECTS[0], seed, quick) for seed in seeds]
    with small_world(quick) as here:
        per_point = here.config().updates_per_epoch
    return result(measured("instructbooth", policy_gradient_curves, cases), per_point, seeds)

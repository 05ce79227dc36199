"""The identity guard on Toybox: a reward that is made to be hacked, five times.

The reward pays for unlikeness to the subject. The guard must raise its alarm and stop, and what is exported
must have lost no more identity than its margin. About 20 minutes on 2 cores.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from ..scoring.rewards import CombinedSpec, Part, RewardSpec
from ..trainers.align import train_align
from ..trainers.events import AlignmentScore
from . import bar
from .cases import measured
from .instructbooth import GUARD, REWARD, small_world, stage_one
from .learning import SEEDS, SUBJECTS, last

RUNS = 5


def hacked(noun: str, number: int, seed: int, quick: bool) -> dict[str, Any]:
    """A reward that pays for unlikeness: does the guard stop, and what is exported?"""
    spoiled = CombinedSpec(
        parts=(Part(reward=RewardSpec(name="identity"), weight=-1.0), Part(reward=REWARD, weight=0.1)),
        normalise="none",
    )
    with small_world(quick) as here:
        case = here.case(noun, number)
        every = list(
            train_align(
                here.base, case.subject, here.config(learning_rate=3e-3),
                concepts=[(stage_one(here, case, seed), 1.0)], pool=replace(here.pool, identifier_share=1.0),
                reward=spoiled, guard=here.guard(every=2), seed=seed, encoders=here.encoders,
                runs_root=here.scratch,
            )
        )  # fmt: skip
    looks = [e for e in every if isinstance(e, AlignmentScore)]
    exported = next(e for e in looks if e.step == last(iter(every)).best_step)
    return {
        "seed": seed,
        "verdict": looks[-1].verdict,
        "stopped at": looks[-1].step,
        "alarm": any(word in looks[-1].verdict for word in ("identity", "hacking")),
        "identity lost by what is exported": looks[0].identity - exported.identity,
    }


def run(quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else tuple(range(RUNS))
    guarded = measured("instructbooth", hacked, [(*SUBJECTS[0], seed, quick) for seed in seeds])
    alarms = statistics.fmean(float(one["alarm"]) for one in guarded)
    worst = max(one["identity lost by what is exported"] for one in guarded)
    return {
        "numbers": {"runs": {f"seed {one['seed']}": one for one in guarded}},
        "bars": [
            bar("runs that it stopped", value=alarms, op="==", bar=1.0),
            bar("identity lost by what is exported", value=worst, op="<=", bar=GUARD.max_drop),
        ],
        "seeds": list(seeds),
    }

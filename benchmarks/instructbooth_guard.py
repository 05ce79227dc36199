"""The identity guard on Toybox: a reward that is made to be hacked, five times.

The reward pays for unlikeness to the training photos, and Align by Gradient follows it fastest. The guard
must raise its alarm and stop before identity, against held-out photos, falls by more than its margin. About
10 minutes on 2 cores.
"""

from __future__ import annotations

import statistics
from typing import Any

from ..scoring.rewards import CombinedSpec, Part, RewardSpec
from ..trainers.events import AlignmentScore
from ..trainers.reward_gradient import RewardGradientConfig, train_reward_gradient
from . import bar
from .cases import measured
from .instructbooth import GUARD, REWARD, small_world, stage_one
from .learning import SEEDS, SUBJECTS, last

RUNS = 5
HACKABLE = CombinedSpec(
    parts=(Part(reward=REWARD, weight=1.0), Part(reward=RewardSpec(name="identity"), weight=-200.0)),
    normalise="none",
)


def hacked(noun: str, number: int, seed: int, quick: bool) -> dict[str, Any]:
    """A reward that pays for unlikeness: does the guard stop, and what is exported?"""
    small = {"steps": 4, "denoising_steps": 5} if quick else {}
    config = RewardGradientConfig.practical("toybox", dreambooth_weight=0.0, **small)
    with small_world(quick) as here:
        case = here.case(noun, number)
        every = list(
            train_reward_gradient(
                here.base, case.subject, config, concepts=[(stage_one(here, case, seed), 1.0)],
                pool=here.pool, reward=HACKABLE, guard=here.guard(every=2), seed=seed,
                encoders=here.encoders, runs_root=here.scratch,
            )
        )  # fmt: skip
    looks = [event for event in every if isinstance(event, AlignmentScore)]
    exported = next(look for look in looks if look.step == last(iter(every)).best_step)
    return {
        "seed": seed,
        "verdict": looks[-1].verdict,
        "stopped at": looks[-1].step,
        "of steps": config.steps,
        "alarm": any(word in looks[-1].verdict for word in ("identity", "hacking")),
        "identity before": looks[0].identity,
        "lost when stopped": looks[0].identity - looks[-1].identity,
        "lost by what is exported": looks[0].identity - exported.identity,
    }


def run(quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else tuple(range(RUNS))
    guarded = measured("instructbooth", hacked, [(*SUBJECTS[0], seed, quick) for seed in seeds])
    alarms = statistics.fmean(float(one["alarm"]) for one in guarded)
    stopped, exported = (
        max(one[f"lost {when}"] for one in guarded) for when in ("when stopped", "by what is exported")
    )
    return {
        "numbers": {"runs": {f"seed {one['seed']}": one for one in guarded}},
        "bars": [
            bar("runs that it stopped", value=alarms, op="==", bar=1.0),
            bar("most identity lost when stopped", value=stopped, op="<=", bar=GUARD.max_drop),
            bar("most identity lost by what is exported", value=exported, op="<=", bar=GUARD.max_drop),
        ],
        "seeds": list(seeds),
    }

"""Align by Gradient on Toybox: the subject does what prompts say, and stays itself.

    gain = (reward after - before) / std of the base model's rewards, over seen and unseen activities

From one DreamBooth for each of six subjects and three seeds, as ``instructbooth.py`` has it for the policy
gradient, with its measures and bars; gradients through the reward need a hundredth of the pictures. The
reward is Toybox's preference model with likeness to the training photos beside it; what is told is the
preference alone, and identity against held-out photos. Table 1's other methods stand beside it. About
70 minutes on 2 cores.
"""

from __future__ import annotations

from typing import Any

from ..scoring.rewards import CombinedSpec, Part, RewardSpec
from ..trainers.reward_gradient import RewardGradientConfig, train_reward_gradient
from .cases import measured
from .instructbooth import (
    REWARD,
    effect_bars,
    effects,
    measured_others,
    small_world,
    stage_one,
    staged_rows,
    table,
)
from .learning import SEEDS, SUBJECTS, last

# The preference's values span some 60, those of likeness 1
REWARDED = CombinedSpec(
    parts=(Part(reward=REWARD, weight=1.0), Part(reward=RewardSpec(name="identity"), weight=100.0)),
    normalise="none",
)


def rows_of(noun: str, number: int, seed: int, quick: bool) -> list[dict[str, Any]]:
    """One row each for the untouched model, DreamBooth, and DreamBooth aligned."""
    small = {"steps": 2, "denoising_steps": 5} if quick else {}
    with small_world(quick) as here:
        case = here.case(noun, number)
        concept = stage_one(here, case, seed)
        events = train_reward_gradient(
            here.base, case.subject, RewardGradientConfig.practical("toybox", **small),
            concepts=[(concept, 1.0)], pool=here.pool, reward=REWARDED, guard=here.guard(), seed=seed,
            encoders=here.encoders, runs_root=here.scratch,
        )  # fmt: skip
        return staged_rows(here, case, concept, "aligned", last(events).concept, seed)


def run(quick: bool) -> dict[str, Any]:
    subjects, seeds = (SUBJECTS[:1], SEEDS[:1]) if quick else (SUBJECTS, SEEDS)
    cases = [(*subject, seed, quick) for seed in seeds for subject in subjects]
    rows = [row for some in measured("reward-gradient", rows_of, cases) for row in some]
    found, rows = effects(rows, "aligned"), [*rows, *measured_others(cases)]
    return {
        "numbers": {"gains": found, "table": table(rows), "rows": rows},
        "bars": list(effect_bars(found)),
        "seeds": list(seeds),
    }

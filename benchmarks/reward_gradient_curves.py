"""Figure 8 by the reward's gradient: do prompts of both kinds teach sooner than identifier-only ones?

``instructbooth_curves.py`` with Align by Gradient in the policy gradient's place: same subject, activity,
seeds and count. Points are the reward of the same pictures with the identifier, drawn anew every few updates.
About 15 minutes on 2 cores.
"""

from __future__ import annotations

from typing import Any

from ..concepts.concept import Concept
from ..subjects.prompt_pool import PromptPool
from ..trainers.events import AlignmentScore
from ..trainers.reward_gradient import RewardGradientConfig, train_reward_gradient
from .cases import measured
from .instructbooth import REWARD, World
from .instructbooth_curves import result, two_curves
from .learning import SEEDS, SUBJECTS, Problem

EVERY = 3  # updates between points


def curves(noun: str, number: int, seed: int, quick: bool) -> dict[str, Any]:
    return two_curves(curve, noun, number, seed, quick)


def curve(here: World, case: Problem, concept: Concept, pool: PromptPool, seed: int) -> list[float]:
    small = {"steps": 6, "denoising_steps": 5} if here.quick else {}
    # It only looks: a drop of 2 cannot be, and no patience is that long
    watch = here.guard(every=EVERY, max_drop=2.0, patience=10**6, images_per_prompt=2 if here.quick else 16)
    events = train_reward_gradient(
        here.base, case.subject, RewardGradientConfig.practical("toybox", **small),
        concepts=[(concept, 1.0)], pool=pool, reward=REWARD, guard=watch, seed=seed, encoders=here.encoders,
        runs_root=here.scratch,
    )  # fmt: skip
    return [event.reward for event in events if isinstance(event, AlignmentScore) and event.step > 0]


def run(quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else SEEDS
    cases = [(*SUBJECTS[0], seed, quick) for seed in seeds]
    return result(measured("reward-gradient", curves, cases), EVERY, seeds)

"""Several rewards as one: weights, a common scale, and floors that must not be fallen through.

    r = sum_i w_i * (r_i - mean_i) / std_i  -  sum_i p_i * max(0, floor_i - r_i)

``normalise`` says where mean and std come from: "none" (0 and 1), "fixed" (written in each part, measured
once on a base model's pictures), or "batch" (of the pictures that are scored together: all of an epoch's).
"""
# Shapes: B pictures.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...core.errors import LikenessError
from ...core.hashing import hash_json
from .reward import Reward, RewardSpec

Normalise = Literal["none", "fixed", "batch"]
SPREAD_EPS = 1e-6  # a part that is the same for every picture adds nothing instead of noise


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reward among several. ``floor`` is in the reward's own units."""

    reward: RewardSpec
    weight: float = 1.0
    mean: float = 0.0  # read with normalise = "fixed"
    std: float = 1.0
    floor: float | None = None
    floor_weight: float = 10.0  # by how much a score under the floor costs; ours

    def __post_init__(self) -> None:
        if self.std <= 0 or self.floor_weight < 0:
            raise LikenessError(
                f"{self.reward.name} has std {self.std} and floor_weight {self.floor_weight}",
                expected="a std above 0 and a floor_weight of 0 or more",
            )


@dataclass(frozen=True, kw_only=True)
class CombinedSpec:
    parts: tuple[Part, ...]
    normalise: Normalise = "batch"

    def __post_init__(self) -> None:
        if not any(part.weight or part.floor is not None for part in self.parts):
            raise LikenessError(
                "No reward is left: all weights are 0 and none has a floor", fix="Plug in a reward"
            )
        if self.normalise not in ("none", "fixed", "batch"):
            raise LikenessError(f"normalise is {self.normalise!r}", expected="none, fixed or batch")


class Combined:
    """The opened rewards of a ``CombinedSpec``; satisfies ``Reward``."""

    def __init__(self, spec: CombinedSpec, rewards: Sequence[Reward]) -> None:
        self.spec, self.rewards = spec, list(rewards)
        self.label = " + ".join(reward.label for reward in rewards)
        self.id = " + ".join(reward.id for reward in rewards)
        self.weights_hash = hash_json([reward.weights_hash for reward in rewards])
        self.differentiable = all(reward.differentiable for reward in rewards)

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        return combine(self.scores(images_B3HW, prompts), self.spec)

    def scores(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[Tensor]:
        """Each part's own scores, in its own units."""
        return [reward(images_B3HW, prompts) for reward in self.rewards]


def combine(scores: Sequence[Tensor], spec: CombinedSpec) -> Tensor:
    """The formula above, (B,)."""
    total_B = torch.zeros_like(scores[0])
    for part, own_B in zip(spec.parts, scores, strict=True):
        own_B = own_B.to(total_B)
        mean, std = _scale(part, own_B.detach(), spec.normalise)
        total_B = total_B + part.weight * (own_B - mean) / std
        if part.floor is not None:
            total_B = total_B - part.floor_weight * (part.floor - own_B).clamp(min=0)
    return total_B


def _scale(part: Part, own_B: Tensor, normalise: Normalise) -> tuple[float, float]:
    scales: Mapping[Normalise, tuple[float, float]] = {
        "none": (0.0, 1.0),
        "fixed": (part.mean, part.std),
        "batch": (float(own_B.mean()), float(own_B.std(correction=0)) + SPREAD_EPS),
    }
    return scales[normalise]

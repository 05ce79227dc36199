"""Rewards: how well a picture does what its prompt says. One signature, differentiable where the model is."""

from __future__ import annotations

from .combined import CombinedSpec, Part
from .opening import About, open_reward, reward_hash
from .reward import Reward, RewardSpec, checked_scores, score_stream

__all__ = [
    "About",
    "CombinedSpec",
    "Part",
    "Reward",
    "RewardSpec",
    "checked_scores",
    "open_reward",
    "reward_hash",
    "score_stream",
]

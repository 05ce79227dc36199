"""Denoising as a policy: log-probabilities, advantages and the surrogate losses, as pure functions.

A denoising step is an action: x' is drawn from a gaussian with mean mu_theta(x, t, c) and std sigma_t; the
reward comes at the end (DDPO, Black et al. 2023, arXiv:2305.13301; DPOK, Fan et al. 2023, arXiv:2305.16381).

    score function   L = -A * log p(x' | x, c)                                           (DDPO-SF)
    clipped          L = -min(A * r, A * clip(r, 1 - e, 1 + e)),  r = p(x') / p_old(x')  (DDPO-IS)
    KL               KL(p || p_ref) = |mu - mu_ref|^2 / (2 sigma^2)                      (DPOK, eq. 9)

Flow-matching models take the stochastic step of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470).
Everything is fp32. Log-probabilities are means over a picture's numbers, not sums, as in the authors' code:
ratios are geometric means, and a clip of 1e-4 means something only there.
"""
# Shapes: B transitions, N pictures, C latent channels, H W latent size.

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Surrogate = Literal["clipped", "score_function", "clamped"]
Advantage = Literal["per_prompt", "group", "batch"]
KL = Literal["transition", "prediction"]


def _over(values_B: Tensor, like_BCHW: Tensor) -> Tensor:
    return values_B.float().view(-1, *[1] * (like_BCHW.ndim - 1))


def log_prob(next_BCHW: Tensor, mean_BCHW: Tensor, std_B: Tensor) -> Tensor:
    """``mean[-(x' - mu)^2 / (2 sigma^2) - log sigma - log(2 pi) / 2]`` over each row's numbers, (B,).

    Gradients flow into the mean alone. A row with std 0 is no draw: 0, without gradient.
    """
    drawn_B = std_B > 0
    std = _over(torch.where(drawn_B, std_B, torch.ones_like(std_B)), mean_BCHW)
    squares = (next_BCHW.detach().float() - mean_BCHW.float()).square() / (2 * std.square())
    row_B = (-squares - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)
    return torch.where(drawn_B, row_B, torch.zeros_like(row_B))


# --- losses --------------------------------------------------------------------------------------------


def score_function_loss(log_prob_B: Tensor, advantage_B: Tensor) -> Tensor:
    """DDPO-SF: REINFORCE, (B,). Right only for the policy that drew the actions: one update per rollout."""
    return -advantage_B * log_prob_B


def clipped_loss(log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """DDPO-IS: PPO's clipped surrogate (Schulman et al. 2017, eq. 7) as a loss, (B,)."""
    ratio_B = (log_prob_B - old_log_prob_B).exp()
    bounded_B = ratio_B.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantage_B * ratio_B, -advantage_B * bounded_B)


def clamped_loss(log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """DPOK as its code has it, (B,): the ratio is clamped without PPO's max.

    So a transition gives no gradient once its ratio has left the bounds, whichever sign its advantage has.
    """
    return -advantage_B * (log_prob_B - old_log_prob_B).exp().clamp(1 - clip, 1 + clip)


def surrogate_loss(
    kind: Surrogate, log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip: float
) -> Tensor:
    if kind == "score_function":
        return score_function_loss(log_prob_B, advantage_B)
    loss = {"clipped": clipped_loss, "clamped": clamped_loss}[kind]
    return loss(log_prob_B, old_log_prob_B, advantage_B, clip)


def transition_kl(mean_BCHW: Tensor, reference_BCHW: Tensor, std_B: Tensor) -> Tensor:
    """KL between two gaussians of the same std, (B,): DPOK as the paper states it (eq. 9).

    Differs: a mean over the row's numbers, on the scale of ``log_prob``; the true KL is the sum. A row with
    std 0 counts 0.
    """
    drawn_B = std_B > 0
    std = _over(torch.where(drawn_B, std_B, torch.ones_like(std_B)), mean_BCHW)
    kl_B = ((mean_BCHW.float() - reference_BCHW.float()).square() / (2 * std.square())).flatten(1).mean(1)
    return torch.where(drawn_B, kl_B, torch.zeros_like(kl_B))


def prediction_kl(out_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """DPOK's penalty as its code has it, (B,): the mean squared difference of the guided predictions.

    That leaves out 1 / (2 sigma^2) and d mu / d eps, so late and early steps weigh alike.
    """
    return (out_BCHW.float() - reference_BCHW.float()).square().flatten(1).mean(1)


# --- advantages ----------------------------------------------------------------------------------------


def standardised(rewards_N: Tensor, eps: float = 1e-6) -> Tensor:
    """``(r - mean) / (std + eps)`` over all, with the population's std. Constant rewards give zeros."""
    return (rewards_N - rewards_N.mean()) / (rewards_N.std(correction=0) + eps)


def group_advantage(
    rewards_N: Tensor, groups: Sequence[Hashable], *, global_std: bool = False, eps: float = 1e-4
) -> Tensor:
    """GRPO: each picture against the others of its prompt, (N,).

    ``global_std`` divides by the std of all rewards instead of the group's (Flow-GRPO's default). Where every
    group has one picture there is nothing to compare with inside it, and all are standardised together.
    """
    members = _members(groups)
    if all(len(rows) == 1 for rows in members.values()):
        return standardised(rewards_N)
    advantage_N = torch.zeros_like(rewards_N)
    for rows in members.values():
        own = rewards_N[rows]
        spread = rewards_N.std(correction=0) if global_std else own.std(correction=0)
        advantage_N[rows] = (own - own.mean()) / (spread + eps)
    return advantage_N


def _members(groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return members


class PromptStatistics:
    """DDPO's tracker: the last rewards of every prompt, against which new ones are measured.

    A prompt with fewer than ``min_count`` of them is measured against the whole batch. The current rewards
    enter before anything is computed. Prompts are told apart by their text.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size, self.min_count = buffer_size, min_count
        self.rewards: dict[str, deque[float]] = {}

    def advantage(self, rewards_N: Tensor, prompts: Sequence[str], eps: float = 1e-6) -> Tensor:
        advantage_N = torch.zeros_like(rewards_N)
        for prompt, rows in _members(prompts).items():
            own = rewards_N[rows]
            seen = self.rewards.setdefault(str(prompt), deque(maxlen=self.buffer_size))
            seen.extend(own.tolist())
            compare = rewards_N if len(seen) < self.min_count else torch.tensor(list(seen))
            advantage_N[rows] = (own - compare.mean()) / (compare.std(correction=0) + eps)
        return advantage_N

    def state(self) -> dict[str, Tensor]:
        """By prompt."""
        return {prompt: torch.tensor(list(seen)) for prompt, seen in self.rewards.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rewards = {prompt: deque(seen.tolist(), self.buffer_size) for prompt, seen in state.items()}


# --- flow matching -------------------------------------------------------------------------------------


def flow_sde_transition(
    x_BCHW: Tensor,
    velocity_BCHW: Tensor,
    sigma_B: Tensor,
    next_B: Tensor,
    *,
    noise_level: float = 0.7,  # Flow-GRPO's a
    sigma_max: float,
) -> tuple[Tensor, Tensor]:
    """Flow-GRPO's stochastic step: mean (B, C, H, W) and std (B,) of x at ``next_B`` < ``sigma_B``.

        s = a sqrt(sigma / (1 - sigma));  std = s sqrt(-dt)
        mu = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt

    ``sigma_max`` is the grid's second value: it stands in for sigma = 1, where s has no end. fp32.
    """
    x, v = x_BCHW.float(), velocity_BCHW.float()
    dt_B = next_B.float() - sigma_B.float()
    ceiling_B = torch.where(sigma_B >= 1, torch.full_like(sigma_B, sigma_max), sigma_B).float()
    s_B = noise_level * (sigma_B.float() / (1 - ceiling_B)).sqrt()
    sigma, dt, s2 = _over(sigma_B, x), _over(dt_B, x), _over(s_B.square(), x)
    mean = x * (1 + s2 * dt / (2 * sigma)) + v * (1 + s2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, s_B * (-dt_B).sqrt()


def flow_cps_transition(
    x_BCHW: Tensor, velocity_BCHW: Tensor, sigma_B: Tensor, next_B: Tensor, *, noise_level: float = 0.8
) -> tuple[Tensor, Tensor]:
    """The coefficients-preserving step of Flow-GRPO's code: the noise in x' is of exactly ``next_B``.

    std = sigma' sin(a pi / 2);  mu = (1 - sigma') x0 + sqrt(sigma'^2 - std^2) n
    x0 = x - sigma v,  n = x + (1 - sigma) v
    """
    x, v, sigma = x_BCHW.float(), velocity_BCHW.float(), _over(sigma_B, x_BCHW)
    std_B = next_B.float() * math.sin(noise_level * math.pi / 2)
    later, std = _over(next_B, x), _over(std_B, x)
    clean, noise = x - sigma * v, x + (1 - sigma) * v
    return (1 - later) * clean + (later.square() - std.square()).clamp(min=0).sqrt() * noise, std_B

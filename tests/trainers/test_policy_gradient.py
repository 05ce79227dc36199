"""Log-probabilities, advantages and surrogates against numbers computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.trainers import policy_gradient as pg


def test_log_prob_by_hand():
    mean, after = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])
    expected = -(1 + 9) / 2 / (2 * 4) - math.log(2) - 0.5 * math.log(2 * math.pi)
    assert float(pg.log_prob(after, mean, torch.tensor([2.0]))) == pytest.approx(expected, abs=1e-6)


def test_log_prob_is_torchs_normal():
    after, mean = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    std = torch.tensor([0.1, 1.0, 2.0])
    theirs = torch.distributions.Normal(mean, std.view(3, 1, 1, 1)).log_prob(after).mean((1, 2, 3))
    assert torch.allclose(pg.log_prob(after, mean, std), theirs, rtol=1e-5)


def test_a_step_without_noise_is_no_draw():
    mean = torch.zeros(1, 1, 2, 2, requires_grad=True)
    value = pg.log_prob(torch.ones(1, 1, 2, 2), mean, torch.zeros(1))
    value.sum().backward()
    assert float(value.detach()) == 0 and not mean.grad.any()
    assert float(pg.transition_kl(mean, mean + 1, torch.zeros(1))) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped", "clamped"),
    [  # bounds 0.9 and 1.1
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.2, -2.2),  # no more reward for going further
        (0.5, 2.0, -1.0, -1.8),  # PPO still pulls it back, the clamp alone does not
        (0.5, -2.0, 1.8, 1.8),
        (1.5, -2.0, 3.0, 2.2),
    ],
)
def test_surrogates_by_hand(ratio, advantage, clipped, clamped):
    new, old, a = torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage])
    assert float(pg.surrogate_loss("clipped", new, old, a, 0.1)) == pytest.approx(clipped, abs=1e-6)
    assert float(pg.surrogate_loss("clamped", new, old, a, 0.1)) == pytest.approx(clamped, abs=1e-6)


def test_the_clamp_has_no_gradient_outside_and_ppo_has_where_it_hurts():
    for kind, slope in (("clipped", 1.0), ("clamped", 0.0)):
        new = torch.tensor([math.log(0.5)], requires_grad=True)
        pg.surrogate_loss(kind, new, torch.zeros(1), torch.tensor([2.0]), 0.1).sum().backward()
        assert float(new.grad) == pytest.approx(-slope)


def test_all_surrogates_have_the_score_functions_gradient_at_the_start():
    gradients = []
    for kind in ("score_function", "clipped", "clamped"):
        new = torch.tensor([-1.2, 0.3], requires_grad=True)
        advantage = torch.tensor([0.7, -1.1])
        pg.surrogate_loss(kind, new, new.detach().clone(), advantage, 1e-4).sum().backward()
        gradients.append(new.grad)
        assert torch.allclose(new.grad, -advantage)


def test_kls_by_hand():
    a, b = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert float(pg.transition_kl(a, b, torch.tensor([0.5]))) == pytest.approx((1 + 4) / 2 / (2 * 0.25))
    assert float(pg.prediction_kl(a, b)) == pytest.approx(2.5)


def test_group_advantage_by_hand():
    rewards = torch.tensor([1.0, 3.0, 10.0, 20.0])
    own = pg.group_advantage(rewards, ["a", "a", "b", "b"], eps=0.0)
    assert own.tolist() == pytest.approx([-1, 1, -1, 1])
    shared = pg.group_advantage(rewards, ["a", "a", "b", "b"], global_std=True, eps=0.0)
    spread = math.sqrt(sum((r - 8.5) ** 2 for r in (1, 3, 10, 20)) / 4)
    assert shared.tolist() == pytest.approx([-1 / spread, 1 / spread, -5 / spread, 5 / spread])
    alone = pg.group_advantage(rewards, [0, 1, 2, 3])
    assert torch.allclose(alone, pg.standardised(rewards))


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8), st.floats(-10, 10))
def test_standing_within_a_group_ignores_what_all_have_in_common(values, shift):
    rewards = torch.tensor(values)
    ours = pg.group_advantage(rewards, ["a"] * len(values))
    shifted = pg.group_advantage(rewards + shift, ["a"] * len(values))
    assert torch.allclose(ours, shifted, atol=1e-2) and abs(float(ours.mean())) < 1e-3


def test_constant_rewards_have_no_advantage():
    assert not pg.standardised(torch.full((4,), 3.0)).any()
    assert not pg.group_advantage(torch.full((4,), 3.0), [0, 0, 1, 1]).any()


def test_the_prompts_statistics_by_hand():
    tracker = pg.PromptStatistics(buffer_size=3, min_count=3)
    first = tracker.advantage(torch.tensor([1.0, 3.0]), ["a", "b"], eps=0.0)
    assert first.tolist() == pytest.approx([-1, 1])  # too few of each: against the whole batch
    tracker.advantage(torch.tensor([2.0]), ["a"])
    third = tracker.advantage(torch.tensor([6.0]), ["a"], eps=0.0)
    spread = math.sqrt((4 + 1 + 9) / 3)  # of 1, 2, 6
    assert third.tolist() == pytest.approx([3 / spread])
    fourth = tracker.advantage(torch.tensor([10.0]), ["a"], eps=0.0)  # 1 has left: 2, 6, 10
    assert fourth.tolist() == pytest.approx([4 / math.sqrt(32 / 3)])


def test_the_prompts_statistics_come_back_from_disk():
    one, other = pg.PromptStatistics(4, 2), pg.PromptStatistics(4, 2)
    one.advantage(torch.tensor([0.1, 0.7, 0.2]), ["a", "a", "b"])
    other.load(one.state())
    rewards, prompts = torch.tensor([0.3, 0.4]), ["a", "b"]
    assert torch.equal(one.advantage(rewards, prompts), other.advantage(rewards, prompts))


# --- flow matching -------------------------------------------------------------------------------------


def test_a_flow_step_without_noise_is_eulers():
    x, v = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    now, then = torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.4])
    mean, std = pg.flow_sde_transition(x, v, now, then, noise_level=0.0, sigma_max=0.9)
    assert torch.allclose(mean, x + v * (then - now).view(2, 1, 1, 1), atol=1e-6) and not std.any()
    mean, std = pg.flow_cps_transition(x, v, now, then, noise_level=0.0)
    assert torch.allclose(mean, x + v * (then - now).view(2, 1, 1, 1), atol=1e-6) and not std.any()


def test_a_flow_step_by_hand():
    x, v = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 1.0)
    mean, std = pg.flow_sde_transition(
        x, v, torch.tensor([0.5]), torch.tensor([0.25]), noise_level=1.0, sigma_max=0.9
    )
    # s = 1, dt = -1/4: mu = 2 (1 - 1/4) + 1 (1 + 1/2) (-1/4), std = 1/2
    assert float(mean) == pytest.approx(1.5 - 0.375) and float(std) == pytest.approx(0.5)


def test_the_first_flow_step_is_finite():
    x, v = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    mean, std = pg.flow_sde_transition(x, v, torch.tensor([1.0]), torch.tensor([0.9]), sigma_max=0.9)
    assert mean.isfinite().all() and float(std) == pytest.approx(0.7 * math.sqrt(1 / 0.1) * math.sqrt(0.1))


def test_cps_keeps_the_noise_at_the_grids_level():
    """Of clean + noise with std 1: the mean's noise and the drawn one together have std sigma'."""
    clean, noise = torch.zeros(1, 1, 64, 64), torch.randn(1, 1, 64, 64)
    now, then = torch.tensor([0.8]), torch.tensor([0.5])
    mean, std = pg.flow_cps_transition(0.8 * noise, noise - clean, now, then)
    assert math.hypot(float(mean.std() / noise.std()), float(std)) == pytest.approx(0.5, abs=1e-5)

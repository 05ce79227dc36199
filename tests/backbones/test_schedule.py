"""The schedule equals diffusers' DDIMScheduler, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.backbones.schedule import SD_SCHEDULER, Schedule, schedule_from_config
from likeness.core.errors import LikenessError

SD: dict[str, Any] = {**SD_SCHEDULER, "clip_sample": False}
CONFIGS = [
    SD,
    {**SD, "prediction_type": "v_prediction"},
    {**SD, "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {**SD, "beta_schedule": "linear", "timestep_spacing": "linspace", "steps_offset": 0},
    {**SD, "beta_schedule": "squaredcos_cap_v2", "set_alpha_to_one": True},
]


def theirs(config: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_noise_targets_and_levels_equal_diffusers(config: dict[str, Any]) -> None:
    ours, other = schedule_from_config(config), theirs(config)
    torch.manual_seed(0)
    z0, noise, t = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2), torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(ours.abar, other.alphas_cumprod, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.add_noise(z0, noise, t), other.add_noise(z0, noise, t))
    expected = noise if ours.prediction == "epsilon" else other.get_velocity(z0, noise, t)
    torch.testing.assert_close(ours.target(z0, noise, t), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("eta", [0.0, 0.9])
def test_ddim_trajectory_equals_diffusers(config: dict[str, Any], eta: float) -> None:
    ours, other, steps = schedule_from_config(config), theirs(config), 7
    other.set_timesteps(steps)
    assert ours.timesteps(steps) == other.timesteps.tolist()
    torch.manual_seed(0)
    z = z_other = torch.randn(2, 4, 3, 3)
    for t in ours.timesteps(steps):
        noise = torch.randn(2, 4, 3, 3)
        out, out_other = 0.3 * z.sin(), 0.3 * z_other.sin()  # stands for a network
        z = ours.ddim_step(z, out, t, steps, eta=eta, noise_BCHW=noise)
        z_other = other.step(out_other, t, z_other, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(z, z_other, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(t=st.integers(0, 999), v=st.booleans(), seed=st.integers(0, 99))
def test_a_perfect_prediction_gives_back_latents_and_noise(t: int, v: bool, seed: int) -> None:
    schedule = schedule_from_config({**SD, "prediction_type": "v_prediction" if v else "epsilon"})
    z0, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(seed)).double()
    t_B = torch.tensor([t])
    z_t = schedule.add_noise(z0, noise, t_B)
    z0_hat, noise_hat = schedule.clean_and_noise(z_t, schedule.target(z0, noise, t_B), t)
    torch.testing.assert_close(z0_hat, z0.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(noise_hat, noise.float(), rtol=1e-3, atol=1e-4)


def test_snr_by_hand() -> None:
    schedule = Schedule(torch.tensor([0.9, 0.5, 0.1]), 1.0, "epsilon")
    torch.testing.assert_close(schedule.snr(torch.tensor([0, 1, 2])), torch.tensor([9.0, 1.0, 1 / 9]))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(LikenessError, match="1 to 1000"):
        schedule_from_config(SD).timesteps(steps)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(LikenessError, match="prediction_type='sample'"):
        schedule_from_config({**SD, "prediction_type": "sample"})


# --- a step as a gaussian ------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_transition_is_what_ddim_draws_from(prediction: str, eta: float) -> None:
    """Rows of different timesteps at once, the last of the grid among them."""
    schedule = schedule_from_config({**SD_SCHEDULER, "prediction_type": prediction})
    grid = schedule.timesteps(10)
    generator = torch.Generator().manual_seed(0)
    z, out, noise = (torch.randn(len(grid), 4, 2, 2, generator=generator) for _ in range(3))
    mean, std_B = schedule.transition(z, out, torch.tensor(grid), 10, eta=eta)
    drawn = mean + std_B.view(-1, 1, 1, 1) * noise
    one_by_one = [
        schedule.ddim_step(z[n : n + 1], out[n : n + 1], t, 10, eta=eta, noise_BCHW=noise[n : n + 1])
        for n, t in enumerate(grid)
    ]
    assert torch.allclose(drawn, torch.cat(one_by_one), atol=2e-5)


def test_a_grid_that_ends_clean_has_no_draw_there() -> None:
    schedule = schedule_from_config({**SD_SCHEDULER, "set_alpha_to_one": True})
    z = torch.ones(2, 1, 1, 1)
    _, std_B = schedule.transition(z, z, torch.tensor([501, 1]), 10, eta=1.0)
    assert float(std_B[0]) > 0 and float(std_B[1]) == 0

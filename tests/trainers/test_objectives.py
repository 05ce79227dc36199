"""Exact numbers, so that a flipped sign, a moved bound or a changed weight fails."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.trainers.objectives import (
    clip_norm,
    denoising_loss,
    min_snr_weight,
    prior_preservation_loss,
)


def rows(*values: float) -> torch.Tensor:
    """One latent of one channel and two cells per value, both cells the value."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2).contiguous()


def test_denoising_loss_by_hand():
    assert denoising_loss(rows(3.0, 1.0), rows(1.0, 1.0)).item() == 2.0  # (4 + 0) / 2
    assert denoising_loss(rows(3.0, 2.0), rows(1.0, 1.0), torch.tensor([0.5, 3.0])).item() == 2.5


def test_denoising_loss_is_computed_in_fp32():
    big = rows(300.0).to(torch.float16)  # 300^2 overflows fp16
    assert denoising_loss(big, torch.zeros_like(big)).item() == 90000.0


def test_min_snr_by_hand():
    snr = torch.tensor([0.0, 0.5, 5.0, 20.0])
    assert min_snr_weight(snr, 5.0, "epsilon").tolist() == [1.0, 1.0, 1.0, 0.25]
    torch.testing.assert_close(
        min_snr_weight(snr, 5.0, "v_prediction"), torch.tensor([0.0, 1 / 3, 5 / 6, 5 / 21])
    )
    with pytest.raises(ValueError, match="flow"):
        min_snr_weight(snr, 5.0, "flow")


def test_prior_preservation_by_hand():
    pred, target = rows(1.0, 3.0, 2.0), rows(0.0, 0.0, 0.0)
    is_prior = torch.tensor([False, False, True])
    loss = prior_preservation_loss(pred, target, is_prior, 0.5)
    assert loss.terms["instance"].item() == 5.0  # (1 + 9) / 2
    assert loss.terms["prior"].item() == 4.0
    assert loss.total.item() == 7.0


def test_min_snr_weights_touch_the_instance_half_only():
    pred, target = rows(1.0, 3.0, 2.0), rows(0.0, 0.0, 0.0)
    is_prior = torch.tensor([False, False, True])
    loss = prior_preservation_loss(pred, target, is_prior, 1.0, torch.tensor([2.0, 1.0, 100.0]))
    assert loss.terms["instance"].item() == 5.5
    assert loss.total.item() == 9.5


def test_two_means_are_separate_whatever_the_halves_sizes():
    is_prior = torch.tensor([False, True, True, True])
    loss = prior_preservation_loss(rows(2.0, 1.0, 1.0, 1.0), rows(0.0, 0.0, 0.0, 0.0), is_prior, 1.0)
    assert loss.total.item() == 5.0  # 4 + 1: not the mean over four rows


def test_prior_preservation_needs_an_instance_row():
    with pytest.raises(ValueError, match="instance row"):
        prior_preservation_loss(rows(1.0), rows(0.0), torch.tensor([True]), 1.0)
    alone = prior_preservation_loss(rows(2.0), rows(0.0), torch.tensor([False]), 1.0)
    assert alone.total.item() == 4.0 and set(alone.terms) == {"instance"}


def test_gradient_pulls_the_prediction_to_the_target():
    pred = rows(3.0).requires_grad_()
    denoising_loss(pred, rows(1.0)).backward()
    assert pred.grad is not None and pred.grad.flatten().tolist() == [2.0, 2.0]  # 2 (3 - 1) / 2 cells


def test_clip_norm_by_hand():
    clipped = clip_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 1.0)
    torch.testing.assert_close(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3), st.floats(0.01, 10))
def test_clip_norm_bounds_and_keeps_the_direction(values, limit):
    row = torch.tensor([values])
    clipped = clip_norm(row, limit)
    assert clipped.norm().item() <= limit * (1 + 1e-5)
    if row.norm() <= limit:
        assert torch.equal(clipped, row)
    else:
        torch.testing.assert_close(clipped / clipped.norm(), row / row.norm(), rtol=1e-4, atol=1e-6)


@settings(deadline=None)
@given(st.floats(0.001, 1000), st.floats(0.1, 50))
def test_min_snr_never_raises_a_weight_and_is_bounded(snr, gamma):
    snr_B = torch.tensor([snr])
    assert 0 < min_snr_weight(snr_B, gamma, "epsilon").item() <= 1.0
    assert min_snr_weight(snr_B, gamma, "v_prediction").item() <= gamma / (1 + min(snr, gamma)) + 1e-5

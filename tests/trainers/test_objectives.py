"""Exact numbers, so that a flipped sign, a moved bound or a changed weight fails."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.trainers.objectives import (
    clip_norm,
    denoising_loss,
    info_nce,
    masked_loss,
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


# --- the attractor's -------------------------------------------------------------------------------------


def test_masked_loss_by_hand():
    pred, target = rows(3.0, 5.0, 9.0), rows(1.0, 1.0, 0.0)
    mask = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 1.0]]).reshape(3, 1, 1, 2)
    used = torch.tensor([True, True, False])
    # Row 0: (4 + 0) / 2; row 1: (0.5 * 4)^2 = 4. Over the mask's area, half of both rows: twice that.
    assert masked_loss(pred, target, mask, used).item() == pytest.approx((2 + 4) / 2)
    assert masked_loss(pred, target, mask, used, "area").item() == pytest.approx((4 + 8) / 2)
    assert masked_loss(pred, target, mask, ~(used | True)).item() == 0.0
    assert masked_loss(pred, target, None, used).item() == pytest.approx((4 + 16) / 2)


@given(st.floats(-5, 5), st.floats(-5, 5), st.sampled_from(["mean", "area"]))
def test_a_mask_of_ones_is_the_plain_loss(a, b, norm):
    pred, target, ones = rows(a, b), rows(b, 0.5), torch.ones(2, 1, 1, 2)
    used = torch.tensor([True, True])
    torch.testing.assert_close(masked_loss(pred, target, ones, used, norm), denoising_loss(pred, target))


def naive_nce(v, a, tau):
    """Equation 5, pair by pair."""
    positive = sum(math.exp(float(v[i] @ v[j]) / tau) for i in range(len(v)) for j in range(len(v)) if i != j)
    negative = sum(math.exp(float(v[i] @ a[k]) / tau) for i in range(len(v)) for k in range(len(a)))
    return -math.log(positive / (positive + negative))


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 4), st.floats(0.2, 5.0))
def test_info_nce_is_the_equation(seed, num_v, num_a, tau):
    draw = torch.Generator().manual_seed(seed)
    v, a = torch.randn(num_v, 3, generator=draw), torch.randn(num_a, 3, generator=draw)
    raw = info_nce(v, a, tau, normalize=False).item()
    assert raw == pytest.approx(naive_nce(v, a, tau), rel=1e-4, abs=1e-5)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (v, a)]
    assert info_nce(v, a, tau).item() == pytest.approx(naive_nce(*unit, tau), rel=1e-4, abs=1e-5)


def test_info_nce_pulls_subjects_together_and_away_from_the_attractor():
    v = torch.tensor([[1.0, 0.1], [1.0, -0.1]], requires_grad=True)
    a = torch.tensor([[0.8, 0.6]], requires_grad=True)
    info_nce(v, a, 0.07).backward()
    assert (v.grad @ a.detach()[0]).sum() > 0  # descending leads away from it
    assert info_nce(v, a, 0.07) > info_nce(v, -a, 0.07)
    huge = info_nce(300 * v, 300 * a, 0.07, normalize=False)
    assert huge.isfinite()


def test_info_nce_without_pairs_is_nothing():
    v, a = torch.ones(1, 3), torch.ones(2, 3)
    assert info_nce(v, a, 0.07).item() == 0.0 and info_nce(a, v[:0], 0.07).item() == 0.0

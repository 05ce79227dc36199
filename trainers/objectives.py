"""The losses, as pure functions: no model, no randomness, no state. Each can be checked by hand.

Everything is computed in fp32, whatever precision the tensors arrive in.
"""
# Shapes: B batch, C latent channels, H W latent size, N vectors, D text width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """``total`` is minimised; ``terms`` are its named parts before their weights, for the log."""

    total: Tensor
    terms: Mapping[str, Tensor]


def squared_error(pred_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Each row's mean squared error, (B,)."""
    return (pred_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(1)


def denoising_loss(pred_BCHW: Tensor, target_BCHW: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """``mean(w * (pred - target)^2)``: the common loss of diffusion training (Ho et al. 2020, eq. 14)."""
    error_B = squared_error(pred_BCHW, target_BCHW)
    return (error_B if weights_B is None else weights_B * error_B).mean()


def min_snr_weight(snr_B: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR weights, (B,) (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    ``min(snr, gamma) / snr`` for noise prediction, ``min(snr, gamma) / (snr + 1)`` for v-prediction,
    written so that no signal at all gives 1 and 0 instead of NaN. Raises ValueError for other predictions.
    """
    snr_B = snr_B.float()
    if prediction == "epsilon":
        return (gamma / snr_B).clamp(max=1.0)
    if prediction == "v_prediction":
        return snr_B.clamp(max=gamma) / (snr_B + 1.0)
    raise ValueError(f"min-SNR is defined for epsilon and v_prediction, not for {prediction!r}")


def prior_preservation_loss(
    pred_BCHW: Tensor,
    target_BCHW: Tensor,
    is_prior_B: Tensor,
    prior_weight: float,
    weights_B: Tensor | None = None,
) -> LossTerms:
    """The mean over instance rows plus ``prior_weight`` times the mean over prior rows.

    DreamBooth (Ruiz et al. 2022, arXiv:2208.12242, eq. 2). ``weights_B`` (min-SNR) has a value for every
    row and acts on the instance half only. A batch without prior rows has no prior term.
    Raises ValueError when the batch has no instance row.
    """
    # Differs: diffusers' script multiplies the (B/2,) instance losses with (B,) weights; here shapes agree.
    if bool(is_prior_B.all()):
        raise ValueError("a batch needs at least one instance row")
    error_B = squared_error(pred_BCHW, target_BCHW)
    instance_B = error_B if weights_B is None else weights_B * error_B
    instance = instance_B[~is_prior_B].mean()
    if not bool(is_prior_B.any()):
        return LossTerms(instance, {"instance": instance})
    prior = error_B[is_prior_B].mean()
    return LossTerms(instance + prior_weight * prior, {"instance": instance, "prior": prior})


def clip_norm(rows_ND: Tensor, max_norm_N: Tensor | float) -> Tensor:
    """Rows longer than ``max_norm`` (euclidean) are shortened to it; the others keep every bit."""
    norm_N = torch.linalg.vector_norm(rows_ND.float(), dim=-1)
    limit_N = torch.as_tensor(max_norm_N, dtype=norm_N.dtype, device=norm_N.device).expand_as(norm_N)
    shortened_ND = rows_ND * (limit_N / norm_N.clamp(min=1e-12)).unsqueeze(-1).to(rows_ND.dtype)
    return torch.where((norm_N > limit_N).unsqueeze(-1), shortened_ND, rows_ND)

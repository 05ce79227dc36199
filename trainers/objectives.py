"""The losses, as pure functions: no model, no randomness, no state. Each can be checked by hand.

Everything is computed in fp32, whatever precision the tensors arrive in.
"""
# Shapes: B batch, C latent channels, H W latent size, N vectors, D text width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MaskNorm = Literal["mean", "area"]


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


# --- the attractor's (Li et al., "Towards More Accurate Personalized Image Generation") ---------


def masked_loss(
    pred_BCHW: Tensor, target_BCHW: Tensor, mask_B1HW: Tensor | None, used_B: Tensor, norm: MaskNorm = "mean"
) -> Tensor:
    """``mean |M pred - M target|^2`` over the rows that are used (equation 4); 0 when none is.

    "mean" divides by all cells, as the equation stands; "area" by those of the mask, so that a small subject
    counts as much as a large one. No mask is one of ones.
    """
    if not bool(used_B.any()):
        return pred_BCHW.new_zeros((), dtype=torch.float32)
    gap_BCHW = pred_BCHW[used_B].float() - target_BCHW[used_B].float()
    if mask_B1HW is None:
        return gap_BCHW.square().mean()
    mask_B1HW = mask_B1HW[used_B].float()
    error_B = (mask_B1HW * gap_BCHW).square().flatten(1).mean(1)
    if norm == "area":
        error_B = error_B / mask_B1HW.flatten(1).mean(1).clamp(min=1e-6)
    return error_B.mean()


def info_nce(
    subject_KD: Tensor, attractor_MD: Tensor, temperature: float, *, normalize: bool = True
) -> Tensor:
    """Equation 5: one logarithm over summed pairs. Positive pairs are of two different subject samples,
    negative ones of a subject sample and an attractor sample. 0 without either kind."""
    if len(subject_KD) < 2 or len(attractor_MD) == 0:
        return subject_KD.new_zeros((), dtype=torch.float32)
    v_KD, a_MD = subject_KD.float(), attractor_MD.float()
    if normalize:
        v_KD, a_MD = F.normalize(v_KD, dim=1), F.normalize(a_MD, dim=1)
    different_KK = ~torch.eye(len(v_KD), dtype=torch.bool, device=v_KD.device)
    positive = (v_KD @ v_KD.T / temperature)[different_KK].logsumexp(0)
    negative = (v_KD @ a_MD.T / temperature).flatten().logsumexp(0)
    return torch.logaddexp(positive, negative) - positive

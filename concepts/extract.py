"""A full fine-tune as a LoRA: the best low-rank approximation of each weight's change (Eckart-Young).

    W_trained - W_base = U S V^T  ~  (U_R sqrt(S_R)) (sqrt(S_R) V_R^T)

What has no rank (norms, biases) is kept whole, as core's ``.diff`` patches in the same file.
"""
# Shapes: O I output and input features (I counts a convolution's kernel), R rank.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LikenessError
from .concept import Artifact
from .formats import EMBEDDING

TABLES = ("token_embedding", "position_embedding")  # rows are looked up there, not multiplied


def extract_lora(delta: Artifact, *, rank: int | None = None, energy: float | None = None) -> Artifact:
    """Singular values of each weight's change: the ``rank`` largest, or as few as hold ``energy`` (0 to 1) of
    its squared norm. A weight that did not change gets no pair.

    ``metadata["extraction"]`` tells the relative error |D - D_R| / |D| (Frobenius) of each layer and of all
    together. Raises LikenessError unless exactly one of the two is given and in range.
    """
    _check(delta, rank, energy)
    tensors: dict[str, Tensor] = {}
    lost, total, ranks = {}, 0.0, [1]
    for name, change in sorted(delta.tensors.items()):
        total += 0.0 if name.startswith(EMBEDDING) else float(change.double().square().sum())
        if change.ndim < 2 or name.startswith(EMBEDDING) or name.split(".")[-2] in TABLES:
            tensors[name] = change
        elif bool(change.any()):
            module = name.removesuffix(".weight")
            pair = low_rank_pair(change, rank=rank, energy=energy)
            tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"], lost[module] = pair
            ranks.append(pair[0].shape[0])
    extraction = _report(delta, lost, total) | {"rank": rank, "energy": energy}
    size = {"rank": max(ranks), "alpha": float(max(ranks))}  # scale 1: the pairs carry their size themselves
    metadata = dict(delta.metadata) | size | {"extraction": extraction}
    return replace(delta, kind="lora", tensors=tensors, metadata=metadata)


def low_rank_pair(
    change: Tensor, *, rank: int | None = None, energy: float | None = None
) -> tuple[Tensor, Tensor, float]:
    """Down (R, I) and up (O, R) in the layer's shape and dtype, and the squared norm that is left out."""
    change_OI = change.reshape(change.shape[0], -1).double()
    u_OK, s_K, v_KI = torch.linalg.svd(change_OI, full_matrices=False)
    kept = _num_kept(s_K, rank, energy)
    root_R = s_K[:kept].sqrt()
    down = (root_R[:, None] * v_KI[:kept]).reshape(kept, *change.shape[1:])
    up = (u_OK[:, :kept] * root_R).reshape(change.shape[0], kept, *(1,) * (change.ndim - 2))
    return down.to(change.dtype), up.to(change.dtype), float(s_K[kept:].square().sum())


def _num_kept(s_K: Tensor, rank: int | None, energy: float | None) -> int:
    if rank is not None:
        return min(rank, len(s_K))
    share_K = s_K.square().cumsum(0) / s_K.square().sum()
    enough = int((share_K < (energy or 0.0)).sum()) + 1
    return min(enough, len(s_K))


def _report(delta: Artifact, lost: Mapping[str, float], total: float) -> dict[str, Any]:
    norms = {module: float(delta.tensors[f"{module}.weight"].double().norm()) for module in lost}
    return {
        "layer_errors": {module: math.sqrt(lost[module]) / norms[module] for module in lost},
        "total_error": math.sqrt(sum(lost.values()) / total) if total else 0.0,
    }


def _check(delta: Artifact, rank: int | None, energy: float | None) -> None:
    if delta.kind != "delta":
        raise LikenessError(
            f"A {delta.kind} has no weight differences", expected="the result of a full fine-tune"
        )
    valid = (rank is not None and rank >= 1) if energy is None else (rank is None and 0 < energy <= 1)
    if not valid:
        raise LikenessError(
            f"A LoRA cannot be extracted with rank {rank} and energy {energy}",
            expected="either a rank of at least 1, or an energy above 0 and at most 1",
        )

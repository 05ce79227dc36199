"""Learned words among an artifact's tensors: their rows in each text encoder, alone or beside weights.

alone     clip_l                     and with two text encoders   clip_g
beside    embedding.<token>                                       embedding.<token>.clip_l, .clip_g
"""
# Shapes: N vectors, D text width (with two text encoders, of both side by side).

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.tokens import rows_by_encoder
from ..core.errors import LikenessError
from . import formats

Rows = Mapping[str, Tensor]  # by text encoder: "clip_l", "clip_g"


def embedding_tensors(backbone: Backbone, rows_ND: Tensor) -> dict[str, Tensor]:
    """The tensors of an artifact of kind ``embedding``."""
    halves = rows_by_encoder(rows_ND.detach().cpu(), backbone.text_widths)
    return {encoder: rows.clone() for encoder, rows in halves.items()}


def bundled_tensors(backbone: Backbone, words: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of words, by token, that belong to an artifact's weights."""
    out = {}
    for token, rows_ND in words.items():
        halves = embedding_tensors(backbone, rows_ND)
        for encoder, rows in halves.items():
            out[formats.word_name(token, encoder if len(halves) > 1 else "")] = rows
    return out


def split_words(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Words that stand beside weights, by token and text encoder; and the weights."""
    words: dict[str, dict[str, Tensor]] = {}
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith(formats.EMBEDDING):
            token, encoder = formats.word_of(name)
            words.setdefault(token, {})[encoder] = tensor
        else:
            weights[name] = tensor
    return words, weights


def joined_rows(rows: Rows, backbone: Backbone, *, file: str) -> Tensor:
    """A word's rows as a backbone takes them, (N, D). Raises LikenessError when they are another model's."""
    widths = backbone.text_widths
    found = {encoder: tuple(rows[encoder].shape) for encoder in sorted(rows)}
    lengths = {shape[0] for shape in found.values()}
    if {name: shape[-1] for name, shape in found.items()} != dict(widths) or len(lengths) != 1:
        raise LikenessError(
            f"{file} is an embedding for another text encoder: its rows are {found or None}",
            expected=f"rows of {' and '.join(map(str, widths.values()))} numbers, as {backbone.base.source} "
            "has them",
        )
    return torch.cat([rows[encoder].float() for encoder in widths], dim=1)

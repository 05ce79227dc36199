"""What was learned: one safetensors file that other tools load, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Kind = Literal["lora", "embedding", "delta", "neti"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A trained method's result before it has a place on disk: tensors and metadata, no path.

    Tensor names are the trainer's own, the exporters turn them into file keys: ``lora``:
    ``unet.<module>.lora_A`` / ``.lora_B`` (also ``text_encoder.``, for SDXL ``text_encoder_2.``);
    ``embedding``: ``clip_l`` (N, D), for SDXL also ``clip_g``; ``delta``: ``unet.<parameter>`` (also
    ``text_encoder.``) trained minus base. A ``lora`` may hold deltas too, of what has no rank: norms and
    biases. Both may hold words that belong to the weights: ``embedding.<token>`` (N, D), for SDXL
    ``embedding.<token>.clip_l`` and ``.clip_g``. ``neti``: the ``state_dict`` of a ``backbones.mapper``.
    ``beside`` is what else was learned: each goes to a file of its own, ``<name>-<key>.safetensors``.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    trigger: str  # what a prompt writes: "sks fish" or "<fish>"
    class_noun: str
    metadata: Mapping[str, Any]  # method, config, subject and base hashes, rank and alpha for lora
    beside: Mapping[str, Artifact] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A learned thing on disk. ``path`` is the safetensors file; its metadata repeat the rest."""

    kind: Kind
    path: Path
    sha256: str
    trigger: str
    class_noun: str
    family: str
    base_hash: str  # "" when a foreign file does not say
    metadata: Mapping[str, Any]  # the artifact's; for a foreign file its own; rank and alpha of a lora
    unmatched: Mapping[str, str] = field(default_factory=dict)  # keys nothing was made of, and why

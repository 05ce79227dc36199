"""Concepts of every kind in the tiny pipeline's shape, with seeded random tensors."""
# Shapes: O I output and input features, R rank, K kernel edge.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from likeness.concepts.concept import Artifact
from torch import Tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
Draw = Callable[..., Tensor]


@pytest.fixture
def draw() -> Draw:
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(*shape, generator=generator)


def pair(draw: Draw, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Down and up for a weight, in a trainer's shapes: (R, I, K, K) and (O, R, 1, 1) for a convolution."""
    ones = (1,) * (weight.ndim - 2)
    return 0.1 * draw(rank, *weight.shape[1:]), 0.1 * draw(weight.shape[0], rank, *ones)


@pytest.fixture(scope="session")
def tiny_weights(tiny_pipeline: Path) -> dict[str, Tensor]:
    """All parameters of the tiny UNet and text encoder by our names."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet", local_files_only=True)
    text = CLIPTextModel.from_pretrained(tiny_pipeline / "text_encoder", local_files_only=True)
    named = {f"unet.{n}": p.detach() for n, p in unet.named_parameters()}
    return named | {
        f"text_encoder.{n.removeprefix('text_model.')}": p.detach() for n, p in text.named_parameters()
    }


def make_lora(
    draw: Draw, weights: dict[str, Tensor], *, rank: int = 3, alpha: float = 2.0, conv: bool = True
) -> Artifact:
    """Adapters on attention, on two convolutions and on the text encoder."""
    leaves = [
        *(f"attn{n}.{leaf}.weight" for n in (1, 2) for leaf in ATTENTION),
        *(f"{t}.weight" for t in TEXT),
    ]
    if conv:
        leaves += ["resnets.0.conv1.weight", "downsamplers.0.conv.weight", "resnets.0.conv_shortcut.weight"]
    tensors: dict[str, Tensor] = {}
    for name, weight in sorted(weights.items()):
        if any(name.endswith(leaf) for leaf in leaves):
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"] = pair(draw, weight, rank)
    metadata = {"method": "dreambooth", "rank": rank, "alpha": alpha, "config": {"learning_rate": 1e-4}}
    return Artifact(kind="lora", tensors=tensors, trigger="sks fish", class_noun="fish", metadata=metadata)


def make_delta(draw: Draw, weights: dict[str, Tensor]) -> Artifact:
    """A change of every parameter."""
    tensors = {name: 0.1 * draw(*weight.shape) for name, weight in sorted(weights.items())}
    return Artifact(
        kind="delta",
        tensors=tensors,
        trigger="sks fish",
        class_noun="fish",
        metadata={"method": "dreambooth"},
    )


def make_embedding(draw: Draw, *, vectors: int = 3, width: int = 32) -> Artifact:
    return Artifact(
        kind="embedding",
        tensors={"clip_l": draw(vectors, width)},
        trigger="<fish>",
        class_noun="fish",
        metadata={"method": "textual inversion"},
    )


def dense(tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What a file should change, parameter by parameter: scale * up @ down, and the deltas as they are."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(".lora_A"):
            up = tensors[name.removesuffix("A") + "B"]
            flat = scale * up.flatten(1).double() @ tensor.flatten(1).double()
            out[name.replace(".lora_A", ".weight")] = flat.float().reshape(up.shape[0], *tensor.shape[1:])
        elif not name.endswith(".lora_B"):
            out[name] = tensor
    return out

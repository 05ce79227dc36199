"""The lean quick GELU is transformers' own, bit for bit."""

from __future__ import annotations

import torch
from likeness.backbones.activations import QuickGELU, with_lean_activations
from torch import Tensor, nn


def gelu_and_gradient(activation: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    y = activation(x)
    y.backward(grad)
    assert x.grad is not None
    return y.detach(), x.grad


def test_values_and_gradients_are_the_same_bits() -> None:
    from transformers.activations import QuickGELUActivation

    x, grad = torch.randn(2, 333, 40, generator=torch.Generator().manual_seed(0)) * 4
    ours, theirs = (gelu_and_gradient(a, x, grad) for a in (QuickGELU(), QuickGELUActivation()))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert torch.autograd.gradcheck(QuickGELU(), x[:2, :5].double().requires_grad_(True))


def test_only_quick_gelus_are_replaced() -> None:
    from transformers.activations import ACT2FN

    mlps = nn.ModuleList(nn.Module() for _ in range(2))
    for mlp, name in zip(mlps, ("quick_gelu", "gelu"), strict=True):
        mlp.activation_fn = ACT2FN[name]
    found = [mlp.activation_fn for mlp in with_lean_activations(mlps)]
    assert isinstance(found[0], QuickGELU) and not isinstance(found[1], QuickGELU)

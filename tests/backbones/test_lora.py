"""Adapters: nothing at first, additive when stacked, and gone without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from likeness.backbones.base import LoraSpec
from likeness.backbones.lora import HookLora
from likeness.backbones.sd import SDBackbone
from likeness.core.errors import LikenessError
from likeness.core.randomness import normal
from torch import Tensor

ALL = LoraSpec(rank=3, alpha=6.0, conv=True, text_encoder=True)
T = torch.tensor([10, 900])
PROMPTS = ["a photo of a cat", "one small dog"]


def predict(model: SDBackbone) -> Tensor:
    return model.predict(normal((2, 4, 8, 8), 0, "noisy"), T, model.encode_prompts(PROMPTS))


def shake(lora: HookLora, seed: int, size: float = 0.1) -> None:
    lora.load({name: size * normal(p.shape, seed, name) for name, p in lora.parameters().items()})


def trace(model: SDBackbone) -> list[object]:
    """Module trees, hooks, and every tensor's place and bytes."""
    found: list[object] = []
    for module in (model.unet, model.text_encoder):
        found += [(name, type(m), len(m._forward_hooks)) for name, m in module.named_modules()]
        found += [(n, p.data_ptr(), p._version, p.requires_grad) for n, p in module.named_parameters()]
    return found


@torch.no_grad()
def test_fresh_adapters_change_nothing_and_detach_leaves_no_trace(backbone: SDBackbone) -> None:
    before, plain = trace(backbone), predict(backbone)
    lora = backbone.attach_lora(ALL, seed=1)
    assert torch.equal(predict(backbone), plain)
    shake(lora, 1)
    assert (predict(backbone) - plain).abs().max() > 1e-4
    names = [name for name, _ in backbone.unet.named_parameters()]
    assert not any("lora" in name for name in names)
    lora.set_strength(0.0)
    assert torch.equal(predict(backbone), plain)
    lora.detach()
    assert trace(backbone) == before
    assert torch.equal(predict(backbone), plain)


@torch.no_grad()
def test_adapters_equal_changed_weights_and_stack(backbone: SDBackbone) -> None:
    """The effect is W + strength * alpha / rank * B A in every layer, summed over the adapters."""
    first, second = backbone.attach_lora(ALL, seed=1), backbone.attach_lora(LoraSpec(rank=2), seed=2)
    shake(first, 1)
    shake(second, 2)
    second.set_strength(0.7)
    stacked = predict(backbone)
    first.detach()
    second.detach()
    deltas: dict[str, Tensor] = {}
    for lora, scale in ((first, 6.0 / 3), (second, 0.7 * 4.0 / 2)):
        p = lora.parameters()
        for name in [n.removesuffix(".lora_A") for n in p if n.endswith("lora_A")]:
            a, b = p[f"{name}.lora_A"], p[f"{name}.lora_B"]
            delta = torch.einsum("or,r...->o...", b.flatten(1), a)
            deltas[f"{name}.weight"] = deltas.get(f"{name}.weight", 0) + scale * delta
    with backbone.patched(deltas):
        torch.testing.assert_close(stacked, predict(backbone), rtol=1e-4, atol=1e-5)


def test_targets_are_those_of_the_reference_script(backbone: SDBackbone) -> None:
    """Against diffusers' default targets, found by peft itself."""
    from peft import LoraConfig, inject_adapter_in_model

    def theirs(part: str, targets: list[str]) -> set[str]:
        model = backbone.private_copy(part).module(part)  # type: ignore[arg-type]
        inject_adapter_in_model(LoraConfig(r=3, target_modules=targets), model)
        names = (n for n, _ in model.named_parameters() if "lora_A" in n)
        return {f"{part}.{n.split('.lora_A')[0].removeprefix('text_model.')}" for n in names}

    expected = theirs("unet", ["to_q", "to_k", "to_v", "to_out.0"])
    expected |= theirs("text_encoder", ["q_proj", "k_proj", "v_proj", "out_proj"])
    lora = backbone.attach_lora(LoraSpec(text_encoder=True))
    lora.detach()
    assert {name.removesuffix(".lora_A") for name in lora.parameters() if "lora_A" in name} == expected


def test_conv_targets(backbone: SDBackbone) -> None:
    lora = backbone.attach_lora(LoraSpec(conv=True))
    lora.detach()
    convs = {n for n, m in backbone.unet.named_modules() if isinstance(m, torch.nn.Conv2d)}
    outside = {"conv_in", "conv_out"}
    ours = {n.removeprefix("unet.").removesuffix(".lora_A") for n in lora.parameters()}
    assert {n for n in ours if n in convs} == convs - outside


def test_initial_values(backbone: SDBackbone) -> None:
    """A is gaussian with std 1 / rank from the seed alone, B is zero."""
    loras = [backbone.attach_lora(LoraSpec(rank=8), seed=seed) for seed in (1, 1, 2)]
    for lora in loras:
        lora.detach()
    a, again, other = (
        torch.cat([p.flatten() for n, p in lora.parameters().items() if "lora_A" in n]) for lora in loras
    )
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert abs(float(a.detach().std()) * 8 - 1) < 0.01
    assert all(not p.any() for n, p in loras[0].parameters().items() if "lora_B" in n)
    assert list(loras[0].parameters()) == list(loras[2].parameters())


def test_gradients_reach_adapters_only(backbone: SDBackbone) -> None:
    lora = backbone.attach_lora(ALL, seed=1)
    shake(lora, 1)
    predict(backbone).square().mean().backward()
    lora.detach()
    assert all(p.grad is not None and p.grad.any() for p in lora.parameters().values())
    assert all(p.grad is None for m in (backbone.unet, backbone.text_encoder) for p in m.parameters())


def test_views_share_adapters(backbone: SDBackbone) -> None:
    view = backbone.with_embeddings({"<x>": torch.ones(1, 32)})
    lora = view.attach_lora(LoraSpec())
    shake(lora, 1)
    both = predict(view), predict(backbone)
    lora.detach()
    assert torch.equal(*both)


def test_a_foreign_lora_is_refused_whole(backbone: SDBackbone, tmp_path: Path) -> None:
    lora = backbone.attach_lora(LoraSpec(rank=2), seed=1)
    before = {n: p.detach().clone() for n, p in lora.parameters().items()}
    good = {n: torch.ones_like(p) for n, p in before.items()}
    first = next(iter(good))
    for bad in (
        {**good, first: torch.ones(1)},
        {**good, "unet.nothing.lora_A": torch.ones(1)},
        {n: t for n, t in good.items() if n != first},
    ):
        with pytest.raises(LikenessError, match="another model"):
            lora.load(bad)
    lora.detach()
    assert all(torch.equal(p, before[n]) for n, p in lora.parameters().items())
    with pytest.raises(LikenessError, match="rank 0"):
        backbone.attach_lora(LoraSpec(rank=0))

"""A text for every layer and timestep, against a plain reading of NeTI's formulas, one layer at a time.

The transcription shares no code with the package: it walks CLIP's blocks itself, and hands the UNet its
contexts through diffusers' attention processors, by counting calls.
"""
# Shapes: B batch, L tokens, D width, S layers, H heads.

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from likeness.backbones import layered, open_backbone
from likeness.backbones.base import BaseModel, LoraSpec
from likeness.backbones.mapper import LayerTable, SpaceTimeMapper
from likeness.core.errors import LikenessError
from torch import Tensor

PROMPTS = ["a photo of <finn> in the snow", "a red <finn>"]
T_B = torch.tensor([17, 801])


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Any:
    return open_backbone(BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu"))


def mapper_for(backbone: Any, **changes: Any) -> SpaceTimeMapper:
    sizes = {"num_layers": backbone.num_cross_attentions, "width": 32, "target_norm": 2.5}
    return SpaceTimeMapper(**{**sizes, "num_frequencies": 64, "hidden": 16, **changes})


# --- the plain reading -----------------------------------------------------------------------------------


def plain_mapper(mapper: Any, t: float, layer: int) -> tuple[Tensor, Tensor]:
    """NeTI's network: encoding, linear layers, norm."""
    angles = torch.stack([w[0] * t + w[1] * layer for w in mapper.encoder.w])
    f = torch.cat([torch.sin(angles), torch.cos(angles)])
    x = F.linear(f / f.norm(), mapper.input_layer.weight, mapper.input_layer.bias)
    for at in (0, 3):
        x = F.linear(x, mapper.net[at].weight, mapper.net[at].bias)
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        x = x * mapper.net[at + 1].weight + mapper.net[at + 1].bias
        x = torch.where(x > 0, x, 0.01 * x)
    out = F.linear(x, mapper.output_layer.weight, mapper.output_layer.bias)
    out = out / out.norm() * 2.5
    return out[:32], out[32:]


def plain_clip(encoder: Any, embedded_LD: Tensor) -> Tensor:
    """CLIP's text tower before its final norm: pre-norm blocks, causal attention, quick GELU."""
    inner = getattr(encoder, "text_model", encoder)
    x = embedded_LD + inner.embeddings.position_embedding.weight
    length, width = x.shape
    heads = encoder.config.num_attention_heads
    future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    for block in inner.encoder.layers:
        y = F.layer_norm(x, (width,), block.layer_norm1.weight, block.layer_norm1.bias)
        q, k, v = (
            F.linear(y, p.weight, p.bias).view(length, heads, -1).transpose(0, 1)
            for p in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        )
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).reshape(length, width)
        x = x + F.linear(mixed, block.self_attn.out_proj.weight, block.self_attn.out_proj.bias)
        y = F.layer_norm(x, (width,), block.layer_norm2.weight, block.layer_norm2.bias)
        y = F.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias)
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, block.mlp.fc2.weight, block.mlp.fc2.bias)
    return x


def plain_states(backbone: Any, prompt: str, word: str, base_D: Tensor, bypass_D: Tensor) -> Any:
    """Keys and values of one prompt at one layer and timestep."""
    inner = getattr(backbone.text_encoder, "text_model", backbone.text_encoder)
    table, norm = inner.embeddings.token_embedding.weight, inner.final_layer_norm
    before, _, after = prompt.partition(word)
    tokens = backbone.tokens
    head, tail = [tokens.start, *tokens.ids(before)], [*tokens.ids(after), tokens.end]
    rows = [*table[head], base_D, *table[tail]]
    rows += [table[tokens.pad]] * (tokens.length - len(rows))
    states_LD = plain_clip(backbone.text_encoder, torch.stack(rows))
    s = states_LD[len(head)]
    moved = s + 0.2 * s.norm() * bypass_D / bypass_D.norm()
    values_LD = torch.stack([moved if n == len(head) else row for n, row in enumerate(states_LD)])
    return [F.layer_norm(x, (32,), norm.weight, norm.bias) for x in (states_LD, values_LD)]


class Counting:
    """Attention with a key and value context of its own at each call, in the order of calls."""

    def __init__(self, contexts: list[tuple[Tensor, Tensor]]) -> None:
        self.contexts, self.calls = contexts, 0

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        keys, values = hidden_states, hidden_states
        if encoder_hidden_states is not None:
            keys, values = self.contexts[self.calls]
            self.calls += 1
        q, k, v = attn.to_q(hidden_states), attn.to_k(keys), attn.to_v(values)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1) @ v
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def plain_prediction(backbone: Any, noisy: Tensor, t_B: Tensor, prompts: list[str], mapper: Any) -> Any:
    contexts = []
    for layer in range(backbone.num_cross_attentions):
        rows = [
            plain_states(backbone, prompt, "<finn>", *plain_mapper(mapper, float(t), layer))
            for prompt, t in zip(prompts, t_B, strict=True)
        ]
        contexts.append(tuple(torch.stack(side) for side in zip(*rows, strict=True)))
    before = backbone.unet.attn_processors
    backbone.unet.set_attn_processor(Counting(contexts))
    try:
        return backbone.unet(noisy, t_B, torch.zeros(len(noisy), 77, 32)).sample, contexts
    finally:
        backbone.unet.set_attn_processor(before)


# --- parity ----------------------------------------------------------------------------------------------


@pytest.fixture
def noisy(backbone: Any) -> Tensor:
    return torch.randn(2, backbone.latent_channels, 8, 8, generator=torch.Generator().manual_seed(3))


def test_states_and_prediction_are_those_of_the_formulas(backbone: Any, noisy: Tensor) -> None:
    mapper = mapper_for(backbone)
    text = backbone.encode_prompts(PROMPTS, mappers={"<finn>": mapper})
    with torch.no_grad():
        expected, contexts = plain_prediction(backbone, noisy, T_B, PROMPTS, mapper)
        states, predicted = text.at(T_B), backbone.predict(noisy, T_B, text)
    for layer, (keys, values) in enumerate(contexts):
        torch.testing.assert_close(states.keys[layer], keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states.values[layer], values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)
    assert (states.keys[0] - states.keys[-1]).abs().max() > 0.05  # else a mixed-up layer would not show
    assert (states.keys - states.values).abs().max() > 0.05


def gradients(loss: Tensor, mapper: Any) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(mapper.parameters()))
    return dict(zip(dict(mapper.named_parameters()), found, strict=True))


def test_a_training_step_s_gradients_are_those_of_the_formulas(backbone: Any, noisy: Tensor) -> None:
    mapper, target = (
        mapper_for(backbone),
        torch.randn(noisy.shape, generator=torch.Generator().manual_seed(4)),
    )
    text = backbone.encode_prompts(PROMPTS, mappers={"<finn>": mapper})
    ours = F.mse_loss(backbone.predict(noisy, T_B, text), target)
    theirs = F.mse_loss(plain_prediction(backbone, noisy, T_B, PROMPTS, mapper)[0], target)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    expected = gradients(theirs, mapper)
    for name, gradient in gradients(ours, mapper).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)
        assert gradient.norm() > 1e-7, name


def test_gradient_checkpointing_gives_the_same_gradients(tiny_pipeline: Path, noisy: Tensor) -> None:
    """Layers run again in backward, in reverse: the trap that a count of calls falls into."""
    found = []
    for checkpointing in (False, True):
        base = BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu",
                         gradient_checkpointing=checkpointing)  # fmt: skip
        backbone = open_backbone(base)
        mapper = mapper_for(backbone)
        text = backbone.encode_prompts(PROMPTS, mappers={"<finn>": mapper})
        with backbone.layered():
            found.append(gradients(backbone.predict(noisy, T_B, text).square().mean(), mapper))
        assert not hooks(backbone)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def hooks(backbone: Any) -> int:
    modules = [*backbone.unet.modules(), *backbone.text_encoder.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


# --- batches, guidance, several words --------------------------------------------------------------------


def test_the_layers_are_taken_in_the_order_in_which_they_run(backbone: Any, noisy: Tensor) -> None:
    order: list[Any] = []
    handles = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in layered.cross_attentions(
        backbone.unet)]  # fmt: skip
    with torch.no_grad():
        backbone.predict(noisy, T_B, backbone.encode_prompts(["", ""]))
    for handle in handles:
        handle.remove()
    assert order == layered.cross_attentions(backbone.unet) and len(order) == backbone.num_cross_attentions


def test_guidance_joins_an_ordinary_prompt_with_a_mapped_one(backbone: Any, noisy: Tensor) -> None:
    knowing = backbone.with_mappers({"<finn>": mapper_for(backbone)})
    with torch.no_grad():
        text, negative = knowing.encode_prompts(PROMPTS), knowing.encode_prompts(["a photo"])
        both = knowing.predict(noisy.repeat(2, 1, 1, 1), T_B.repeat(2), negative.joined(text))
        alone = knowing.predict(noisy, T_B, text)
        plain = backbone.predict(noisy, T_B, backbone.encode_prompts(["a photo"] * 2))
        mapped_negative = knowing.encode_prompts(["<finn>", "<finn>"])
        other = knowing.predict(noisy.repeat(2, 1, 1, 1), T_B.repeat(2), mapped_negative.joined(
            knowing.encode_prompts(["a photo"] * 2)))  # fmt: skip
    torch.testing.assert_close(both, torch.cat([plain, alone]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other[2:], plain, atol=1e-5, rtol=1e-4)


def test_several_words_and_an_embedding_in_one_prompt(backbone: Any, noisy: Tensor) -> None:
    """Each word's rows are its own: a row does not depend on what other prompts of the batch name."""
    words = {"<finn>": mapper_for(backbone), "<nemo>": mapper_for(backbone, seed=1, bypass=False)}
    rows = {"<hat>": torch.randn(2, 32, generator=torch.Generator().manual_seed(6))}
    knowing = backbone.with_mappers(words).with_embeddings(rows)
    prompts = ["<nemo> and <finn> with <hat>", "a photo of <finn>, <finn>"]
    with torch.no_grad():
        together = knowing.predict(noisy, T_B, knowing.encode_prompts(prompts))
        alone = [knowing.predict(noisy[n : n + 1], T_B[n : n + 1], knowing.encode_prompts([prompt]))
                 for n, prompt in enumerate(prompts)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    places = knowing.encode_prompts(prompts).words
    assert places["<hat>"].tolist() == [[0, 5], [0, 6]] and len(places["<finn>"]) == 3


def test_a_table_of_equal_rows_is_an_embedding(backbone: Any, noisy: Tensor) -> None:
    """XTI with one vector for all layers is Textual Inversion."""
    row = torch.randn(32, generator=torch.Generator().manual_seed(8))
    table = LayerTable(row.repeat(backbone.num_cross_attentions, 1))
    mapped = backbone.with_mappers({"<finn>": table})
    plain = backbone.with_embeddings({"<finn>": row[None]})
    with torch.no_grad():
        got, expected = (b.predict(noisy, T_B, b.encode_prompts(PROMPTS)) for b in (mapped, plain))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_pictures_are_drawn_and_nothing_stays(backbone: Any) -> None:
    knowing = backbone.with_mappers({"<finn>": mapper_for(backbone)})
    draw = {"steps": 2, "guidance": 3.0}
    with torch.inference_mode():
        first = knowing.sample(["<finn>", "a cat"], seeds=[0, 1], **draw)
    assert torch.equal(first, knowing.sample(["<finn>", "a cat"], seeds=[0, 1], **draw))
    assert torch.allclose(first[1:], backbone.sample(["a cat"], seeds=[1], **draw), atol=1e-4)
    assert not torch.allclose(first[:1], backbone.sample(["a cat"], seeds=[0], **draw), atol=1e-2)
    assert hooks(backbone) == 0


def test_equal_prompts_are_encoded_once_when_drawing(backbone: Any, noisy: Tensor) -> None:
    knowing = backbone.with_mappers({"<finn>": mapper_for(backbone)})
    text = knowing.encode_prompts(["a <finn>", "a cat", "a <finn>"])
    with torch.no_grad():
        found = text.at(torch.tensor([5, 5, 5]))
        assert torch.equal(found.keys[:, 0], found.keys[:, 2])
    whole = text.at(torch.tensor([5, 5, 5]))  # with gradients: every row
    torch.testing.assert_close(found.keys, whole.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.values, whole.values, atol=1e-5, rtol=1e-5)


def test_a_lora_beside_it_still_counts(backbone: Any, noisy: Tensor) -> None:
    mapper = mapper_for(backbone)
    lora = backbone.attach_lora(LoraSpec(rank=2, alpha=2))
    try:
        with torch.no_grad():
            for name, p in lora.parameters().items():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
            text = backbone.encode_prompts(PROMPTS, mappers={"<finn>": mapper})
            got = backbone.predict(noisy, T_B, text)
            expected, _ = plain_prediction(backbone, noisy, T_B, PROMPTS, mapper)
    finally:
        lora.detach()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"num_layers": 5}, {"width": 48}])
def test_a_word_of_another_model_is_refused(backbone: Any, change: dict[str, int]) -> None:
    with pytest.raises(LikenessError, match="cross-attentions of a text width"):
        backbone.with_mappers({"<finn>": mapper_for(backbone, **change)})


def test_there_is_no_context_without_a_timestep(backbone: Any) -> None:
    text = backbone.encode_prompts(PROMPTS, mappers={"<finn>": mapper_for(backbone)})
    assert text.context.isnan().all()


def test_a_context_is_split_once_and_not_kept() -> None:
    """Training leaves the stretches open for a whole run: a context that stayed would keep its graph."""
    stretches = layered._Stretches(num_tokens=3)
    source = torch.randn(1, 6, 2, requires_grad=True)
    context = source * 2
    parts = stretches.of(context)
    assert stretches.of(context) is parts and torch.equal(parts[1], context[:, 3:])
    parts[1].sum().backward()
    assert source.grad is not None and source.grad[:, :3].sum() == 0 and (source.grad[:, 3:] == 2).all()
    del context, parts
    gc.collect()
    assert len(stretches.known) == 0

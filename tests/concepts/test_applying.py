"""Concepts at work on the tiny pipeline: what they do, and that nothing of it stays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import Backbone, BaseModel
from likeness.concepts.applying import apply_concepts, fit
from likeness.concepts.concept import Artifact, Concept
from likeness.concepts.loading import load_concept
from likeness.concepts.saving import save_concept
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_tensors
from safetensors.torch import save_file
from torch import Tensor

from .conftest import Draw, dense, make_delta, make_embedding, make_lora

Save = Callable[..., Concept]
PROMPT = "a photo of a sks fish"
ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Backbone:
    return open_backbone(BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu"))


@pytest.fixture
def save(tmp_path: Path, backbone: Backbone) -> Save:
    """Save an artifact as one that was trained on the backbone."""

    def save(artifact: Artifact, name: str = "x", **changes: str) -> Concept:
        origin = {"family": backbone.family, "base_hash": backbone.content_hash} | changes
        return save_concept(artifact, tmp_path, name, **origin)

    return save


def predict(backbone: Backbone, prompt: str = PROMPT) -> Tensor:
    """Text encoder and UNet in one number per latent cell."""
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(1, backbone.latent_channels, 8, 8, generator=generator)
    with torch.no_grad():
        return backbone.predict(noisy, torch.tensor([500]), backbone.encode_prompts([prompt]))


def weights_hash(backbone: Backbone) -> str:
    modules = {part: backbone.module(part) for part in ("unet", "text_encoder")}
    hooks = sum(len(m._forward_hooks) for module in modules.values() for m in module.modules())
    tensors = {f"{part}.{n}": t for part, m in modules.items() for n, t in m.state_dict().items()}
    return f"{hash_tensors(tensors)} {hooks} hooks"


def merged(backbone: Backbone, artifact: Artifact, strength: float) -> Tensor:
    """The prediction with the change added to the weights: what every other tool does."""
    scale = artifact.metadata["alpha"] / artifact.metadata["rank"] if artifact.kind == "lora" else 1.0
    with backbone.patched(dense(dict(artifact.tensors), scale), strength) as model:
        return predict(model)


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_a_lora_does_what_merging_it_would(
    strength: float, backbone: Backbone, save: Save, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    artifact = make_lora(draw, tiny_weights)
    expected, before = merged(backbone, artifact, strength), predict(backbone)
    with apply_concepts(backbone, [(save(artifact), strength)]) as model:
        actual = predict(model)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (actual - before).abs().max() > 1e-2


def test_a_delta_is_added_to_the_weights(
    backbone: Backbone, save: Save, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    artifact = make_delta(draw, tiny_weights)
    expected = merged(backbone, artifact, 0.5)
    with apply_concepts(backbone, [(save(artifact), 0.5)]) as model:
        assert torch.equal(predict(model), expected)


def test_several_add_up_in_any_order_and_strength_zero_is_off(
    backbone: Backbone, save: Save, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    one, two = save(make_lora(draw, tiny_weights), "one"), save(make_lora(draw, tiny_weights, rank=1), "two")
    with apply_concepts(backbone, [(one, 1.0), (two, 0.5)]) as model:
        forward = predict(model)
    with apply_concepts(backbone, [(two, 0.5)]) as half, apply_concepts(half, [(one, 1.0)]) as model:
        backward = predict(model)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5)
    with apply_concepts(backbone, [(one, 0.0)]) as model:
        assert torch.equal(predict(model), predict(backbone))


def test_an_embedding_is_known_inside_and_forgotten_after(
    backbone: Backbone, save: Save, draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = make_embedding(draw)
    prompt = ["a photo of <fish>"]
    with torch.no_grad():
        expected = backbone.encode_prompts(prompt, embeddings={"<fish>": artifact.tensors["clip_l"]}).context
        with apply_concepts(backbone, [(save(artifact), 0.5)]) as model:
            assert torch.equal(model.encode_prompts(prompt).context, expected)
        assert "<fish>" not in backbone.embeddings
    assert "no effect on a word" in caplog.text


@pytest.mark.parametrize("ending", ["success", "error", "a later concept does not fit"])
def test_not_a_bit_of_the_base_model_changes(
    ending: str, backbone: Backbone, save: Save, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    concepts = [
        (save(make_lora(draw, tiny_weights), "lora"), 1.0),
        (save(make_delta(draw, tiny_weights)), 1.0),
    ]
    concepts.append((save(make_embedding(draw), "fish"), 1.0))
    if ending.startswith("a later"):
        concepts.append((save(make_embedding(draw, width=7), "wide"), 1.0))
    before, picture = weights_hash(backbone), predict(backbone)
    try:
        with apply_concepts(backbone, concepts) as model:
            assert weights_hash(backbone) != before
            assert not torch.equal(predict(model), picture)
            if ending == "error":
                raise RuntimeError("in the middle of it")
    except (RuntimeError, LikenessError):
        assert ending != "success"
    assert weights_hash(backbone) == before
    assert torch.equal(predict(backbone), picture)


# --- what does not fit ---------------------------------------------------------------------------------


def test_another_base_model_is_an_error_unless_allowed(
    backbone: Backbone,
    save: Save,
    draw: Draw,
    tiny_weights: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    concept = save(make_lora(draw, tiny_weights), base_hash="0123456789abcdef")
    with (
        pytest.raises(LikenessError, match="0123456789ab"),
        apply_concepts(backbone, [(concept, 1.0)]),
    ):
        pass
    with apply_concepts(backbone, [(concept, 1.0)], other_base=True):
        assert "was trained on another one" in caplog.text


def test_an_unknown_base_model_is_a_warning(
    backbone: Backbone,
    save: Save,
    draw: Draw,
    tiny_weights: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with apply_concepts(backbone, [(save(make_lora(draw, tiny_weights), base_hash=""), 1.0)]):
        assert "does not say" in caplog.text


def test_another_family_is_named(
    backbone: Backbone, save: Save, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    concept = save(make_lora(draw, tiny_weights), family="sdxl")
    with pytest.raises(LikenessError, match="made for the sdxl family"):
        fit(concept, backbone)


def test_layers_of_another_shape_are_named(backbone: Backbone, save: Save, draw: Draw) -> None:
    tensors = {f"{ATTENTION}.lora_A": draw(2, 99), f"{ATTENTION}.lora_B": draw(64, 2)}
    lora = Artifact(
        kind="lora", tensors=tensors, trigger="t", class_noun="c", metadata={"rank": 2, "alpha": 2.0}
    )
    with pytest.raises(LikenessError, match=r"for another model.*attn1\.to_q is \(64, 64\).*\(2, 99\)"):
        fit(save(lora), backbone)
    delta = replace(lora, kind="delta", tensors={f"{ATTENTION}.weight": draw(64, 63)})
    with pytest.raises(LikenessError, match=r"\(64, 63\)"):
        fit(save(delta), backbone)


def test_layers_that_the_model_has_not_are_listed_and_left_out(
    backbone: Backbone,
    save: Save,
    draw: Draw,
    tiny_weights: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    artifact = make_lora(draw, tiny_weights)
    strange = {"unet.down_blocks.3.resnets.0.conv1.lora_A": draw(3, 8, 3, 3)}
    strange |= {"unet.down_blocks.3.resnets.0.conv1.lora_B": draw(8, 3, 1, 1)}
    strange |= {"text_encoder_2.encoder.layers.0.mlp.fc1.lora_A": draw(3, 8)}
    strange |= {"text_encoder_2.encoder.layers.0.mlp.fc1.lora_B": draw(8, 3)}
    with caplog.at_level(logging.WARNING):
        found = fit(save(replace(artifact, tensors={**artifact.tensors, **strange})), backbone)
    assert found.unmatched == dict.fromkeys(strange, "the model has no such layer")
    assert "unet.down_blocks.3.resnets.0.conv1.lora_A" in caplog.text
    assert len(found.pairs) == len(artifact.tensors) // 2
    with pytest.raises(LikenessError, match="have no place"):
        fit(save(replace(artifact, tensors=strange)), backbone)


def test_two_embeddings_cannot_answer_to_one_word(backbone: Backbone, save: Save, draw: Draw) -> None:
    pair = [(save(make_embedding(draw), "a"), 1.0), (save(make_embedding(draw), "b"), 1.0)]
    with pytest.raises(LikenessError, match="Two concepts answer"), apply_concepts(backbone, pair):
        pass


# --- foreign files at work -----------------------------------------------------------------------------


def test_a_lora_of_cores_own_trainer_works(backbone: Backbone, tmp_path: Path, draw: Draw) -> None:
    """The original code's names, counted by this UNet's one layer per block; a convolution's pair is flat."""
    linear, conv, norm = (
        "output_blocks.3.1.proj_in",
        "input_blocks.1.0.in_layers.2",
        "output_blocks.3.0.in_layers.0",
    )
    ours = {
        "unet.up_blocks.1.attentions.1.proj_in.lora_A": draw(2, 32, 1, 1),
        "unet.up_blocks.1.attentions.1.proj_in.lora_B": draw(32, 2, 1, 1),
        "unet.down_blocks.0.resnets.0.conv1.lora_A": draw(2, 32, 3, 3),
        "unet.down_blocks.0.resnets.0.conv1.lora_B": draw(32, 2, 1, 1),
        "unet.up_blocks.1.resnets.1.norm1.bias": draw(64),
    }
    flat = [tensor.flatten(1) if tensor.ndim > 1 else tensor for tensor in ours.values()]
    names = [f"diffusion_model.{m}.lora_{s}.weight" for m in (linear, conv) for s in ("down", "up")]
    tensors = dict(zip([*names, f"diffusion_model.{norm}.diff_b"], flat, strict=True))
    tensors |= {f"diffusion_model.{m}.alpha": torch.tensor(1.0) for m in (linear, conv)}
    save_file(tensors, tmp_path / "core.safetensors")
    artifact = Artifact(
        kind="lora", tensors=ours, trigger="", class_noun="", metadata={"alpha": 1.0, "rank": 2}
    )
    expected = merged(backbone, artifact, 1.0)
    with apply_concepts(backbone, [(load_concept(tmp_path / "core.safetensors"), 1.0)]) as model:
        torch.testing.assert_close(predict(model), expected, rtol=0, atol=1e-5)


def test_inside_a_hosts_inference_mode(
    backbone: Backbone, save: Save, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    artifact = make_lora(draw, tiny_weights)
    concept = save(artifact)
    with torch.inference_mode():
        tensors = fit(concept, backbone).pairs.values()
        assert not any(tensor.is_inference() for pair in tensors for tensor in pair)

"""What is learned on SDXL: files with both text encoders in them, and diffusers' own loaders on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import Backbone, BaseModel, LoraSpec
from likeness.concepts.applying import apply_concepts
from likeness.concepts.concept import Artifact, Concept
from likeness.concepts.formats import bundled_key, bundled_name
from likeness.concepts.loading import load_concept, load_tensors
from likeness.concepts.saving import save_concept
from likeness.concepts.words import bundled_tensors, embedding_tensors, split_words
from likeness.core.errors import LikenessError
from likeness.core.tensorfile import read_tensors
from torch import Tensor

from .conftest import Draw


@pytest.fixture(scope="module")
def backbone(tiny_sdxl: Path) -> Backbone:
    return open_backbone(BaseModel(source=str(tiny_sdxl), dtype="fp32", device="cpu"))


@pytest.fixture
def pipeline(tiny_sdxl: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True, add_watermarker=False)


def saved(
    folder: Path, backbone: Backbone, kind: Any, tensors: dict[str, Tensor], **metadata: Any
) -> Concept:
    artifact = Artifact(kind=kind, tensors=tensors, trigger="<fish>", class_noun="fish", metadata=metadata)
    return save_concept(artifact, folder, "fish", family=backbone.family, base_hash=backbone.content_hash)


def states(pipeline: Any, prompt: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(
            prompt, device="cpu", do_classifier_free_guidance=False
        )
    return context, pooled


@pytest.fixture
def lora(tmp_path: Path, backbone: Backbone, draw: Draw) -> Concept:
    adapters = backbone.attach_lora(LoraSpec(rank=3, alpha=2.0, text_encoder=True))
    tensors = {name: 0.1 * draw(*p.shape) for name, p in adapters.parameters().items()}
    adapters.detach()
    return saved(tmp_path, backbone, "lora", tensors, rank=3, alpha=2.0)


def test_a_lora_s_keys_number_the_text_encoders(lora: Concept) -> None:
    tensors, metadata = read_tensors(lora.path)
    heads = {
        key.split("_text_model_")[0].split("_down_")[0]
        for key in tensors
        if "_te" in key or "unet_down" in key
    }
    assert heads == {"lora_unet", "lora_te1", "lora_te2"}
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    again = load_concept(lora.path)
    assert (again.family, again.unmatched) == ("sdxl", {})
    assert {name.split(".")[0] for name in load_tensors(again)} == {"unet", "text_encoder", "text_encoder_2"}


def test_a_lora_gives_the_same_prediction_in_diffusers(
    lora: Concept, pipeline: Any, backbone: Backbone, draw: Draw
) -> None:
    noisy, t, prompt = draw(1, 4, 8, 8), torch.tensor([500]), "a photo of a sks fish"
    untouched, _ = states(pipeline, prompt)
    pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name, local_files_only=True)
    context, pooled = states(pipeline, prompt)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]])}
    with torch.no_grad():
        theirs = pipeline.unet(noisy, t, context, added_cond_kwargs=added).sample
        with apply_concepts(backbone, [(lora, 1.0)]) as model:
            text = model.encode_prompts([prompt])
            ours = model.predict(noisy, t, text)
    assert all((context - untouched).split([32, 64], dim=-1)[n].abs().max() > 1e-3 for n in (0, 1))
    torch.testing.assert_close(text.context, context, rtol=0, atol=1e-5)
    torch.testing.assert_close(text.pooled, pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_an_embedding_gives_the_same_text_states_in_diffusers(
    tmp_path: Path, pipeline: Any, backbone: Backbone, draw: Draw
) -> None:
    """Each half by its own call, as diffusers documents it for SDXL."""
    concept = saved(tmp_path, backbone, "embedding", embedding_tensors(backbone, draw(3, 96)))
    tensors, _ = read_tensors(concept.path)
    assert {name: tuple(rows.shape) for name, rows in tensors.items()} == {
        "clip_l": (3, 32),
        "clip_g": (3, 64),
    }
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            tensors[key],
            token="<fish>",
            text_encoder=getattr(pipeline, f"text_encoder{end}"),
            tokenizer=getattr(pipeline, f"tokenizer{end}"),
        )
    prompt = "a photo of a <fish> on the beach"
    with torch.no_grad(), apply_concepts(backbone, [(concept, 1.0)]) as model:
        ours = model.encode_prompts([prompt])
    context, pooled = states(pipeline, prompt)
    torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-5)


def test_words_beside_weights_keep_both_halves(tmp_path: Path, backbone: Backbone, draw: Draw) -> None:
    rows = {"<rex>": draw(1, 96), "<a.b>": draw(2, 96)}
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    weight = dict(backbone.module("unet").named_parameters())[name.removeprefix("unet.")]
    tensors = {name: draw(*weight.shape), **bundled_tensors(backbone, rows)}
    concept = saved(tmp_path, backbone, "delta", tensors)
    assert {"bundle_emb.<rex>.clip_l", "bundle_emb.<rex>.clip_g"} < set(read_tensors(concept.path)[0])
    words, weights = split_words(load_tensors(concept))
    assert set(words) == set(rows) and set(weights) == {name} and concept.unmatched == {}
    with torch.no_grad(), apply_concepts(backbone, [(concept, 1.0)]) as model:
        assert all(torch.equal(model.embeddings[token], rows[token]) for token in rows)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("embedding.<rex>", "bundle_emb.<rex>.string_to_param.*"),
        ("embedding.<rex>.clip_l", "bundle_emb.<rex>.clip_l"),
        ("embedding.a.b.clip_g", "bundle_emb.a.b.clip_g"),
        ("embedding..clip_x", "bundle_emb..clip_x.string_to_param.*"),
    ],
)
def test_names_of_bundled_words_come_back(name: str, key: str) -> None:
    assert bundled_key(name) == key
    assert bundled_name(key) == name


@pytest.mark.parametrize(
    "key", ["bundle_emb.", "bundle_emb.string_to_param.*", "bundle_emb..clip_l", "clip_l"]
)
def test_keys_without_a_word_are_none(key: str) -> None:
    assert bundled_name(key) is None


@pytest.mark.parametrize(
    "shapes",
    [{"clip_l": (2, 96)}, {"clip_l": (2, 32), "clip_g": (1, 64)}, {"clip_l": (2, 64), "clip_g": (2, 32)}],
)
def test_rows_that_do_not_fit_are_an_error(
    tmp_path: Path, backbone: Backbone, draw: Draw, shapes: dict[str, tuple[int, int]]
) -> None:
    concept = saved(tmp_path, backbone, "embedding", {name: draw(*shape) for name, shape in shapes.items()})
    with (
        pytest.raises(LikenessError, match=r"fish\.safetensors.*rows of 32 and 64 numbers"),
        apply_concepts(backbone, [(concept, 1.0)]),
    ):
        pass

"""diffusers loads our files with its own loaders and computes what we compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import Backbone, BaseModel
from likeness.concepts.applying import apply_concepts
from likeness.concepts.saving import save_concept
from torch import Tensor

from .conftest import Draw, make_embedding, make_lora


@pytest.fixture(scope="module")
def backbone(tiny_pipeline: Path) -> Backbone:
    return open_backbone(BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu"))


@pytest.fixture
def pipeline(tiny_pipeline: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)


def states(pipeline: Any, prompt: str) -> Tensor:
    with torch.no_grad():
        context: Tensor = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    return context


def test_a_lora_gives_the_same_prediction(
    tmp_path: Path, pipeline: Any, backbone: Backbone, draw: Draw, tiny_weights: dict[str, Tensor]
) -> None:
    artifact = make_lora(draw, tiny_weights)
    concept = save_concept(
        artifact, tmp_path, "fish", family=backbone.family, base_hash=backbone.content_hash
    )
    noisy, t, prompt = draw(1, 4, 8, 8), torch.tensor([500]), "a photo of a sks fish"
    untouched = states(pipeline, prompt)
    pipeline.load_lora_weights(concept.path.parent, weight_name=concept.path.name, local_files_only=True)
    theirs_context = states(pipeline, prompt)
    with torch.no_grad():
        theirs = pipeline.unet(noisy, t, theirs_context).sample
        with apply_concepts(backbone, [(concept, 1.0)]) as model:
            text = model.encode_prompts([prompt])
            ours = model.predict(noisy, t, text)
    assert (theirs_context - untouched).abs().max() > 1e-3
    torch.testing.assert_close(text.context, theirs_context, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("vectors", [1, 3])
def test_an_embedding_gives_the_same_text_states(
    vectors: int, tmp_path: Path, pipeline: Any, backbone: Backbone, draw: Draw
) -> None:
    concept = save_concept(
        make_embedding(draw, vectors=vectors),
        tmp_path,
        "fish",
        family=backbone.family,
        base_hash=backbone.content_hash,
    )
    pipeline.load_textual_inversion(concept.path, token=concept.trigger, local_files_only=True)
    prompt = "a photo of a <fish> on the beach"
    with torch.no_grad(), apply_concepts(backbone, [(concept, 1.0)]) as model:
        ours = model.encode_prompts([prompt]).context
    torch.testing.assert_close(ours, states(pipeline, prompt), rtol=0, atol=1e-6)

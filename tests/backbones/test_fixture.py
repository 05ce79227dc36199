"""The shared tiny pipeline opens in diffusers itself, offline."""

from __future__ import annotations

from pathlib import Path

import torch


def test_tiny_pipeline_opens_in_diffusers(tiny_pipeline: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    ids = pipe.tokenizer("a photo of sks cat")["input_ids"]
    assert len(ids) == 7  # every listed word is one token, between start and end
    assert ids[-1] == pipe.text_encoder.config.vocab_size - 1
    with torch.no_grad():
        out = pipe("a cat", num_inference_steps=2, output_type="pt", guidance_scale=2.0).images
    assert out.shape == (1, 3, 64, 64)
    assert torch.isfinite(out).all()

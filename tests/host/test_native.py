"""Core's own MODEL, CLIP and VAE, built here, against ours: the same numbers all along a picture's way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.comfyui import ComfyServer, probe

STAGES = ("base", "picture", "embedding", "lora", "learned picture", "delta")
SHAPES = ("tiny", "toybox-shaped")
EXACT = (
    *("lora in diffusers text", "lora in diffusers noise"),
    *("base text", "base noise", "sigmas", "decode", "encode", "embedding:name", "embedding applied"),
    *("lora in core text", "lora in core noise", "lora applied text", "lora applied noise"),
    *("delta applied text", "delta applied noise", "delta's word text", "delta's word noise"),
)
UNTOUCHED = ("after lora text", "after lora noise", "after delta text", "after delta noise")


def write_toybox_shaped(folder: Path, make_tiny_pipeline: Any) -> Path:
    """The built-in model's shape with random weights: 32 latent channels, 4 heads."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    make_tiny_pipeline(folder, seed=1)
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=32,
        out_channels=32,
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=32,
        sample_size=64,
        scaling_factor=0.7,
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def measured(
    server: ComfyServer,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pipeline: Path,
    make_tiny_pipeline: Any,
) -> dict[str, Any]:
    """What benchmarks/probe/native.py found out inside the server, by model shape."""
    shaped = write_toybox_shaped(tmp_path_factory.mktemp("models") / "toybox-shaped", make_tiny_pipeline)
    found = {}
    for folder in (tiny_pipeline, shaped):
        run = server.run(probe(str(folder), STAGES))
        assert run.ok, run.error
        found[folder.name] = json.loads(run.outputs["1"]["measured"][0])
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("what", EXACT)
def test_core_computes_the_same(measured: dict[str, Any], shape: str, what: str) -> None:
    assert measured[shape][what] < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("what", UNTOUCHED)
def test_what_was_applied_leaves_the_rest_alone(measured: dict[str, Any], shape: str, what: str) -> None:
    assert measured[shape][what] < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_cores_lora_loader_knows_every_key(measured: dict[str, Any], shape: str) -> None:
    assert measured[shape]["lora warnings"] == []
    assert measured[shape]["lora layers"] > 50


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lora_changes_what_it_should(measured: dict[str, Any], shape: str) -> None:
    """Guards the tests above: an adapter that did nothing would be equal too."""
    assert measured[shape]["lora effect"] > 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("what", ["base", "learned"])
def test_cores_sampler_draws_our_picture(measured: dict[str, Any], shape: str, what: str) -> None:
    assert measured[shape][f"{what} psnr"] >= 40
    assert measured[shape][f"{what} contrast"] > 0.02

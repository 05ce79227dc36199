"""A NeTI word in a real ComfyUI's classes and samplers: the same numbers as in ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from likeness.backbones import open_backbone
from likeness.backbones.base import BaseModel, LoraSpec
from likeness.backbones.mapper import SpaceTimeMapper
from likeness.concepts.concept import Artifact, Concept
from likeness.concepts.saving import save_concept
from likeness.core.errors import LikenessError
from likeness.headless.comfyui import Install
from likeness.nodes import mapped

EQUAL = (
    "one word", "two conditionings", "without the word", "two words", "a LoRA applied",
    "Load LoRA behind it", "after the LoRA", "the untouched model", "beside a longer prompt",
)  # fmt: skip


def saved(folder: Path, trigger: str, backbone: Any, seed: int) -> Concept:
    mapper = SpaceTimeMapper(
        num_layers=backbone.num_cross_attentions, width=32, target_norm=3.0, num_frequencies=64, seed=seed
    )
    artifact = Artifact(
        kind="neti", tensors=mapper.state_dict(), trigger=trigger, class_noun="fish", metadata={}
    )
    return save_concept(artifact, folder, trigger.strip("<>"), family="sd1", base_hash="")


def saved_lora(folder: Path, backbone: Any) -> Concept:
    spec = LoraSpec(rank=2, alpha=2, text_encoder=True)
    lora = backbone.attach_lora(spec)
    draw = torch.Generator().manual_seed(0)
    tensors = {n: 0.1 * torch.randn(p.shape, generator=draw) for n, p in lora.parameters().items()}
    lora.detach()
    artifact = Artifact(
        kind="lora", tensors=tensors, trigger="sks", class_noun="fish", metadata={"rank": 2, "alpha": 2}
    )
    return save_concept(artifact, folder, "lora", family="sd1", base_hash="")


@pytest.fixture(scope="module")
def found(
    comfyui: Install, tiny_pipeline: Path, pack_parent: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("neti")
    backbone = open_backbone(BaseModel(source=str(tiny_pipeline), dtype="fp32", device="cpu"))
    concepts = [
        saved(work, "<finn>", backbone, 0),
        saved(work, "<nemo>", backbone, 1),
        saved_lora(work, backbone),
    ]
    child = Path(__file__).with_name("neti_child.py")
    command = [comfyui.python, child, comfyui.path, pack_parent, tiny_pipeline,
               *(concept.path for concept in concepts), work / "out.json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    measured: dict[str, Any] = json.loads((work / "out.json").read_text())
    return measured


@pytest.mark.parametrize("what", EQUAL)
def test_core_gives_every_layer_its_own(found: dict[str, Any], what: str) -> None:
    assert found[what] < 1e-4


def test_stable_diffusion_s_layers_are_the_papers(found: dict[str, Any]) -> None:
    """IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 ... OUT11, as P+ and NeTI name them."""
    down = [["input", n] for n in (1, 2, 4, 5, 7, 8)]
    assert found["SD 1.5's places"] == [*down, ["middle", 0], *(["output", n] for n in range(3, 12))]


def test_cores_sampler_draws_our_picture(found: dict[str, Any]) -> None:
    assert found["sampler psnr"] >= 40


def test_it_is_more_than_an_embedding(found: dict[str, Any]) -> None:
    """Guards the tests above: without layers and timesteps the numbers are others."""
    assert found["effect of the layers"] > 1e-3 and found["weight effect"] > 1e-4
    assert found["another sampler is finite"]


def test_a_word_of_another_shape_is_refused() -> None:
    """As in an SDXL graph, or on an SD 2 model."""
    block = SimpleNamespace(transformer_blocks=[None])
    unet = SimpleNamespace(
        input_blocks=[[None], [None, block]], middle_block=[block], output_blocks=[[block]]
    )
    model = SimpleNamespace(model=SimpleNamespace(
        diffusion_model=unet, model_config=SimpleNamespace(unet_config={"context_dim": 2048})))  # fmt: skip
    assert mapped.places(unet) == {("input", 1, 0): 0, ("middle", 0, 0): 1, ("output", 0, 0): 2}
    mapper = SpaceTimeMapper(num_layers=3, width=768, target_norm=1.0, num_frequencies=8)
    with pytest.raises(LikenessError, match="3 of 2048"):
        mapped.check_shape(model, mapper, "finn.safetensors")

"""ComfyUI's own SDXL with what was learned on ours, opened from the same reduced checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_maker import make_models, write_checkpoint
from likeness.backbones.base import Backbone, BaseModel, LoraSpec
from likeness.backbones.loading import load_backbone
from likeness.backbones.schedule import SD_SCHEDULER
from likeness.concepts.concept import Artifact
from likeness.concepts.saving import save_concept
from likeness.concepts.words import bundled_tensors, embedding_tensors
from likeness.headless.comfyui import Install
from torch import Tensor, nn

CASES = (
    *("base", "folder", "lora in core", "lora applied", "delta in core", "delta applied", "embedding:name"),
    *("embedding applied", "custom applied", "after all"),
)
WHAT = ("clip_l", "clip_g", "pooled", "noise")


def drawn(shape: torch.Size | tuple[int, ...], seed: int, size: float) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """On every layer that can have one, of all three parts."""
    lora = backbone.attach_lora(LoraSpec(rank=3, alpha=6, conv=True, text_encoder=True))
    tensors = {name: drawn(p.shape, n, 0.1) for n, (name, p) in enumerate(lora.parameters().items())}
    lora.detach()
    return tensors


def deltas(backbone: Backbone, mark: str = "") -> dict[str, Tensor]:
    """A change of the whole UNet, its norms and its added conditions too."""
    named = backbone.module("unet").named_parameters()
    return {f"unet.{name}": drawn(p.shape, n, 0.05) for n, (name, p) in enumerate(named) if mark in name}


def write_folder(folder: Path, models: dict[str, nn.Module]) -> None:
    """As much of a diffusers folder as core's classes are built from."""
    for name, model in models.items():
        model.save_pretrained(folder / name)  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(dict(SD_SCHEDULER)))
    index = {"_class_name": "StableDiffusionXLPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def found(comfyui: Install, pack_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("sdxl")
    models = make_models("sdxl")
    path = write_checkpoint(work / "base.safetensors", "sdxl", models)
    backbone = load_backbone(BaseModel(source=str(path), dtype="fp32", device="cpu"))
    row_D = backbone.token_embedding("dog") + drawn((2, 96), 1, 0.1)
    write_folder(work / "folder", models)
    learned = {
        "fish": ("embedding", embedding_tensors(backbone, row_D)),
        "lora": ("lora", lora_tensors(backbone)),
        "delta": ("delta", deltas(backbone)),
        "custom": ("delta", deltas(backbone, "attn2.to_k") | bundled_tensors(backbone, {"<rex>": row_D})),
    }
    for name, (kind, tensors) in learned.items():
        artifact = Artifact(
            kind=kind,  # type: ignore[arg-type]
            tensors=tensors,
            trigger={"fish": "<fish>", "custom": "<rex> dog"}.get(name, "sks fish"),
            class_noun="fish",
            metadata={"rank": 3, "alpha": 6} if kind == "lora" else {},
        )
        save_concept(artifact, work, name, family="sdxl", base_hash=backbone.content_hash)
    child = Path(__file__).with_name("sdxl_child.py")
    command = [comfyui.python, child, comfyui.path, pack_parent, work]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    measured: dict[str, Any] = json.loads((work / "out.json").read_text())
    return measured


def test_core_opens_it_by_its_own_way(found: dict[str, Any]) -> None:
    assert found["class"] == "SDXL"
    assert not [text for text in found["opening: warnings"] if "missing" in text or "unexpected" in text]


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("case", CASES)
def test_core_computes_the_same(found: dict[str, Any], case: str, what: str) -> None:
    assert found[f"{case}: {what}"] < 1e-4


def test_the_folder_s_autoencoder_is_scaled_as_ours(found: dict[str, Any]) -> None:
    assert found["folder: decode"] < 1e-4


@pytest.mark.parametrize("name", ["lora", "delta"])
def test_what_was_learned_changes_the_prediction(found: dict[str, Any], name: str) -> None:
    """Guards the tests above: an adapter that did nothing would be equal too."""
    assert found[f"{name}: effect"] > 0.05


@pytest.mark.parametrize("name", ["lora", "delta"])
def test_cores_lora_loader_knows_every_key(found: dict[str, Any], name: str) -> None:
    assert found[f"{name}: warnings"] == []

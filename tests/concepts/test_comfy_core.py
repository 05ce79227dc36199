"""ComfyUI core's own loader maps every key of our files, and patches what it should."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.concepts.extract import extract_lora
from likeness.concepts.saving import save_concept
from likeness.headless.comfyui import Install
from safetensors.torch import save_file

from .conftest import dense, make_delta, make_embedding, make_lora

CHILD = Path(__file__).parent / "comfy_core_child.py"
FILES = ("lora", "delta", "extracted")


@pytest.fixture(scope="module")
def result(comfyui: Install, tmp_path_factory: pytest.TempPathFactory, tiny_weights: Any) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("core")
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    # Core's vocabulary is always CLIP's, whatever the configuration says.
    weights = {name: w for name, w in tiny_weights.items() if "token_embedding" not in name}
    delta = make_delta(draw, weights)
    artifacts = {
        "lora": make_lora(draw, tiny_weights),
        "delta": delta,
        "extracted": extract_lora(delta, rank=4),
    }
    for name, artifact in artifacts.items():
        save_concept(artifact, work, name, family="sd1", base_hash="")
        scale = artifact.metadata["alpha"] / artifact.metadata["rank"] if artifact.kind == "lora" else 1.0
        save_file(dense(dict(artifact.tensors), scale), work / f"{name}.expected")
    embedding = make_embedding(draw)
    save_concept(embedding, work, "fish", family="sd1", base_hash="")
    done = subprocess.run(
        [comfyui.python, CHILD, comfyui.path, work], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads((work / "result.json").read_text()) | {"embedding": embedding}


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_mapped_and_none_is_left(result: dict[str, Any], name: str) -> None:
    assert result["files"][name]["warnings"] == []
    assert result["files"][name]["extra"] == []


@pytest.mark.parametrize("name", FILES)
def test_patched_weights_are_what_the_file_says(result: dict[str, Any], name: str) -> None:
    assert result["files"][name]["worst"] < 1e-6


def test_the_embedding_is_found_under_its_file_name(result: dict[str, Any]) -> None:
    assert torch.equal(torch.tensor(result["rows"]), result["embedding"].tensors["clip_l"])

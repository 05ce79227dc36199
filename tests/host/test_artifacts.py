"""What is learned in ComfyUI goes on in core's own nodes: Save LoRA, Load LoRA Model, Plot Loss Graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.benchmarks.comfyui import ComfyServer, Run
from likeness.benchmarks.host_graphs import node, training
from likeness.concepts.loading import load_concept, load_tensors

LORA, LOSS_MAP = ["train", 2], ["train", 3]


@pytest.fixture(scope="module")
def trained(server: ComfyServer, tiny_pipeline: Path) -> Run:
    """A DreamBooth LoRA of five steps in core's own nodes."""
    graph = training("DreamBooth", seed=4)
    graph["base"] = node("LikenessLoadBaseModel", path=str(tiny_pipeline))
    graph["saved by core"] = node("SaveLoRANode", lora=LORA, prefix="loras/by-core")
    graph["plot"] = node("LossGraphNode", loss=LOSS_MAP, filename_prefix="losses")
    graph["native"] = node("LikenessUseInComfyUI", model=["base", 0])
    graph["loaded"] = node("LoraModelLoader", model=["native", 0], lora=LORA, strength_model=1.0)
    graph["text"] = node("CLIPTextEncode", clip=["native", 1], text="a photo of sks turtle")
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    for name, model in (("plain", ["native", 0]), ("with it", ["loaded", 0])):
        graph[f"sampled {name}"] = node(
            "KSampler",
            model=model,
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["latent", 0],
            **{"seed": 1, "steps": 2, "cfg": 1.0, "denoise": 1.0},
            **{"sampler_name": "euler", "scheduler": "normal"},
        )
        graph[f"drawn {name}"] = node("VAEDecode", samples=[f"sampled {name}", 0], vae=["native", 2])
        graph[f"shown {name}"] = node("PreviewImage", images=[f"drawn {name}", 0])
    run = server.run(graph)
    assert run.ok, run.error
    return run


def concept_of(server: ComfyServer, run: Run) -> Any:
    [made] = run.outputs["train"]["likeness"]
    return load_concept(Path(made["path"]))


def test_cores_save_lora_writes_what_was_learned(server: ComfyServer, trained: Run) -> None:
    [path] = (server.base / "output" / "loras").glob("by-core*.safetensors")
    theirs, ours = load_concept(path), concept_of(server, trained)
    assert not theirs.unmatched
    scale = {c.path: c.metadata["alpha"] / c.metadata["rank"] for c in (theirs, ours)}
    assert scale[theirs.path] == scale[ours.path]
    expected = load_tensors(ours)
    assert expected.keys() == load_tensors(theirs).keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_tensors(theirs).items())


def test_cores_loader_matches_every_key(server: ComfyServer, trained: Run) -> None:
    assert "lora key not loaded" not in server.log()
    pictures = [picture(server, trained, name) for name in ("plain", "with it")]
    assert pictures[0] != pictures[1]  # it does something


def picture(server: ComfyServer, run: Run, name: str) -> bytes:
    [shown] = run.outputs[f"shown {name}"]["images"]
    return (server.base / shown["type"] / shown["subfolder"] / shown["filename"]).read_bytes()


def test_cores_graph_plots_the_losses(server: ComfyServer, trained: Run) -> None:
    [plot] = trained.outputs["plot"]["images"]
    assert (server.base / plot["type"] / plot["filename"]).stat().st_size > 1000

"""Noise predictions of ComfyUI's own model, with our concepts applied to it, against our own.

A NeTI word and a Custom Diffusion concept (keys, values and a modifier token), both random, on the built-in
model and on a checkpoint of Stable Diffusion 1.5's full shape (860 million parameters, random). Ours are
written first and the model is closed; then ComfyUI computes the same in a process of its own, the way its
KSampler does. COMFYUI_PATH names ComfyUI's folder and COMFYUI_PYTHON its interpreter, which needs this
package's requirements too. About 10 minutes on 2 cores and 6 GB; ``--quick`` leaves the full shape out.
"""
# Shapes: C latent channels, D text width, L cross-attention layers.

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones import close_backbone, open_backbone
from ..backbones.base import BaseModel
from ..backbones.mapper import SpaceTimeMapper
from ..backbones.tokens import initial_row
from ..concepts.applying import apply_concepts
from ..concepts.concept import Artifact, Concept
from ..concepts.saving import save_concept
from ..core.errors import LikenessError
from ..core.randomness import normal
from ..core.tensorfile import write_tensors
from . import bar
from .full_shape import write_random_checkpoint

PROMPTS = {"neti": "a photo of <finn> in the snow", "custom_diffusion": "photo of a <ann> dog on the beach"}
TIMESTEPS = (3, 250, 500, 750, 990)
EDGE = {"toybox": 8, "sd15": 16}  # of the latents: small, since the shape in question is the model's
MOST = 1e-3  # relative
LEAST = 3 * MOST  # what a concept must change: one that did nothing would be equal too
CHILD = Path(__file__).with_name("core_parity_child.py")


def run(quick: bool) -> dict[str, Any]:
    """Raises LikenessError where there is no ComfyUI."""
    comfyui, python = installed()
    numbers: dict[str, Any] = {"timesteps": list(TIMESTEPS)}
    bars = []
    with tempfile.TemporaryDirectory() as name:
        sources = {"toybox": "toybox"}
        if not quick:
            sources["sd15"] = str(Path(name) / "sd15-shape.safetensors")
            numbers["parameters"] = write_random_checkpoint(Path(sources["sd15"]))
        for shape, source in sources.items():
            found = errors_on(source, EDGE[shape], Path(name) / shape, comfyui, python)
            numbers[shape] = found
            bars += [
                bar(f"worst relative error, {what}, {shape}", value=max(errors), op="<=", bar=MOST)
                for what, errors in found["errors"].items()
            ]
            bars += [
                bar(f"effect of the concept, {what}, {shape}", value=effect, op=">=", bar=LEAST)
                for what, effect in found["effects"].items()
            ]
    return {"numbers": numbers, "bars": bars, "seeds": [0]}


def installed() -> tuple[Path, Path]:
    """ComfyUI's folder and interpreter."""
    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    if not (folder / "main.py").is_file() or not python.is_file():
        raise LikenessError(
            f"There is no ComfyUI in {folder}, or no interpreter {python}",
            fix="Set COMFYUI_PATH to its folder and COMFYUI_PYTHON to its interpreter",
        )
    return folder, python


def errors_on(source: str, edge: int, work: Path, comfyui: Path, python: Path) -> dict[str, Any]:
    """Of each concept, at each timestep: how far core's prediction is from ours, relative to ours; and how
    far ours with the concept is from ours without it, which guards against two that do nothing."""
    work.mkdir()
    base = BaseModel(source=source, dtype="fp32", device="cpu")
    backbone: Any = open_backbone(base)
    noisy_1CHW = normal((1, backbone.latent_channels, edge, edge), 0, "noisy")
    concepts = {"neti": neti(backbone, work), "custom_diffusion": custom_diffusion(backbone, work)}
    ours: dict[str, Tensor] = {}
    for name, concept in concepts.items():
        plain = predictions(backbone, PROMPTS[name], noisy_1CHW)
        with apply_concepts(backbone, [(concept, 1.0)]) as known:
            found = predictions(known, PROMPTS[name], noisy_1CHW)
        ours |= {f"{name}.{t}": one for t, one in found.items()}
        ours |= {f"without.{name}.{t}": one for t, one in plain.items()}
    write_tensors(work / "ours.safetensors", {"noisy": noisy_1CHW, **ours}, {})
    task = {
        "source": source,
        "concepts": {name: str(concept.path) for name, concept in concepts.items()},
        "prompts": PROMPTS,
        "levels": {str(t): float(backbone.schedule.abar[t]) for t in TIMESTEPS},
    }
    (work / "task.json").write_text(json.dumps(task))
    del backbone, known
    close_backbone()
    return in_comfyui(work, comfyui, python)


def in_comfyui(work: Path, comfyui: Path, python: Path) -> dict[str, Any]:
    parent = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, CHILD, comfyui, parent, work], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise LikenessError(f"ComfyUI's process failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads((work / "found.json").read_text())
    return found


def predictions(backbone: Any, prompt: str, noisy_1CHW: Tensor) -> dict[int, Tensor]:
    import torch

    with torch.no_grad():
        text = backbone.encode_prompts([prompt])
        return {t: backbone.predict(noisy_1CHW, torch.tensor([t]), text) for t in TIMESTEPS}


def neti(backbone: Any, folder: Path) -> Concept:
    row_D = initial_row(backbone, "dog")
    mapper = SpaceTimeMapper(
        num_layers=backbone.num_cross_attentions, width=len(row_D), target_norm=float(row_D.norm())
    )
    artifact = Artifact(
        kind="neti", tensors=mapper.state_dict(), trigger="<finn>", class_noun="dog", metadata={}
    )
    return save_concept(artifact, folder, "neti", family=backbone.family, base_hash=backbone.content_hash)


def custom_diffusion(backbone: Any, folder: Path) -> Concept:
    """Every cross-attention's keys and values moved by half of their spread, and a modifier token's row."""
    weights: Mapping[str, Tensor] = dict(backbone.module("unet").named_parameters())
    chosen = [name for name in weights if ".attn2.to_k." in name or ".attn2.to_v." in name]
    deltas = {
        f"unet.{name}": normal(tuple(weights[name].shape), 0, name) * 0.5 * weights[name].detach().std()
        for name in chosen
    }
    row_D = initial_row(backbone, "cat")
    rows_1D = row_D[None] + 0.1 * row_D.std() * normal((1, len(row_D)), 0, "row")
    artifact = Artifact(
        kind="delta",
        tensors={**deltas, "embedding.<ann>": rows_1D},
        trigger="<ann> dog",
        class_noun="dog",
        metadata={"words": [["<ann>", "dog"]]},
    )
    return save_concept(
        artifact, folder, "custom-diffusion", family=backbone.family, base_hash=backbone.content_hash
    )

"""Core's own MODEL, CLIP and samplers against diffusers and this pack, inside a running ComfyUI.

On Toybox, and on Stable Diffusion 1.5's full shape with random weights (from a checkpoint, as most people
have theirs; small latents, whose numbers are as good as large ones'). A LoRA on every layer that can have
one, an embedding of two rows, a NeTI word and a Custom Diffusion concept, in fp32. Some minutes and 12 GB on
a quiet machine; quick: Toybox alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ..headless.comfyui import Install
from . import bar
from .comfyui import BOTH, ComfyServer, probe
from .full_shape import write_random_checkpoint

BAR, BAR_DB = 1e-3, 40.0
CONCEPTS = ("embedding", "lora", "neti", "custom diffusion")
TOYBOX = ("base", "picture", *CONCEPTS, "learned picture")
SD15_EDGE = 16  # of the latents: 128 pixels
WITHIN = (
    *("lora in diffusers text", "lora in diffusers noise", "embedding:name"),  # core against diffusers
    *("neti noise", "custom diffusion noise"),  # core with our concepts against ours
)
CHANGES = {"lora": 0.05, "neti": 3 * BAR, "custom diffusion": 3 * BAR}  # one that did nothing is equal too


def run(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        shapes: dict[str, tuple[str, tuple[str, ...], int]] = {"toybox": ("toybox", TOYBOX, 0)}
        if not quick:
            checkpoint = scratch / "sd15-shape.safetensors"
            write_random_checkpoint(checkpoint)
            shapes["sd15"] = (str(checkpoint), CONCEPTS, SD15_EDGE)
        server = ComfyServer(Install.find(), scratch / "comfyui", packs=BOTH, options=["--force-fp32"])
        with server:
            found = {name: _measured(server, *shape) for name, shape in shapes.items()}
            peak_gb = server.resident_mb("VmHWM") / 1000
    bars = [bar_ for name, numbers in found.items() for bar_ in _bars(name, numbers)]
    return {"numbers": {**found, "server's peak memory, GB": peak_gb}, "bars": bars, "seeds": [0, 7]}


def _measured(server: ComfyServer, source: str, stages: tuple[str, ...], edge: int) -> dict[str, Any]:
    run = server.run(probe(source, stages, edge), quiet_s=3600)
    if not run.ok:
        raise RuntimeError(f"{source}: {run.error}")
    server.free()
    numbers: dict[str, Any] = json.loads(run.outputs["1"]["measured"][0])
    return numbers


def _bars(shape: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    bars = [bar(f"{shape}: {what}, relative error", value=found[what], op="<=", bar=BAR) for what in WITHIN]
    unmatched = len(found["lora warnings"])
    bars.append(bar(f"{shape}: keys that core does not match", value=unmatched, op="==", bar=0))
    bars += [
        bar(f"{shape}: change by {what}", value=found[f"{what} effect"], op=">=", bar=least)
        for what, least in CHANGES.items()
    ]
    pictures = [what for what in found if what.endswith("psnr")]
    bars += [bar(f"{shape}: {what}, dB", value=found[what], op=">=", bar=BAR_DB) for what in pictures]
    return bars

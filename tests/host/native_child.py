"""Runs beside ComfyUI's own modules: core's objects against ours, on the model folders that it is given.

``python native_child.py COMFYUI WORK FOLDER...`` writes ``WORK/result.json``: relative errors and PSNR.
"""
# ruff: noqa: E402 - ComfyUI's modules read the command line when they are imported

from __future__ import annotations

import importlib.util
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

COMFYUI, WORK, *FOLDERS = map(Path, sys.argv[1:])
PACK = Path(__file__).resolve().parents[2]
sys.argv = ["main.py", "--cpu", "--base-directory", str(WORK)]
sys.path[:0] = [str(COMFYUI)]

import comfy.options

comfy.options.enable_args_parsing()
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

PROMPT = "a photo of a red fish in the snow, sitting (very small)"


def load_pack() -> None:
    """As ComfyUI does: by path, under a name that no environment knows."""
    spec = importlib.util.spec_from_file_location(
        "likeness", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader
    sys.modules["likeness"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_prediction(model: Any, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
    comfy.model_management.load_models_gpu([model])
    with torch.inference_mode():
        out = model.model.diffusion_model(noisy, t.float(), context=context)
    return out.clone()


def check(folder: Path) -> dict[str, Any]:
    from likeness.backbones import open_backbone
    from likeness.backbones.base import BaseModel, LoraSpec
    from likeness.concepts.concept import Artifact
    from likeness.concepts.saving import save_concept
    from likeness.nodes.native import open_native
    from likeness.nodes.patching import with_concepts

    base = BaseModel(source=str(folder), dtype="fp32", device="cpu")
    ours = open_backbone(base)
    model, clip, vae = open_native(base)
    found: dict[str, Any] = {}
    c, edge = ours.latent_channels, ours.image_size // ours.latent_scale
    noisy, t = drawn(2, c, edge, edge), torch.tensor([3, 870])
    text = ours.encode_prompts([PROMPT, ""])

    def compare(name: str, model: Any, clip: Any, prompt: str = PROMPT) -> None:
        states = ours.encode_prompts([prompt, ""])
        with torch.no_grad():
            expected = ours.predict(noisy, t, states)
        found[f"{name} text"] = relative(
            clip.encode(prompt.replace("(", "\\(").replace(")", "\\)")), states.context[:1]
        )
        found[f"{name} noise"] = relative(noise_prediction(model, noisy, t, states.context), expected)

    with torch.no_grad():
        compare("base", model, clip)
        levels = ours.schedule.abar.double()
        found["sigmas"] = relative(model.model.model_sampling.sigmas.double(), ((1 - levels) / levels).sqrt())
        scaled = drawn(1, c, edge, edge)
        pixels = vae.decode(model.model.latent_format.process_out(scaled)).movedim(-1, 1)
        found["decode"] = relative(pixels, ours.decode(scaled))
        image = torch.rand(1, 3, ours.image_size, ours.image_size)
        encoded = model.model.latent_format.process_in(vae.encode(image.movedim(1, -1)))
        found["encode"] = relative(encoded, ours.encode_images(image * 2 - 1).mean)

        # Core's sampler and ours, from the same noise: its DDIM walks the same grid as ours.
        seeds, steps, guidance = [7], 20, 4.0
        *_, latents = ours.denoise(
            ours.encode_prompts([PROMPT]),
            ours.encode_prompts([""]),
            seeds=seeds,
            steps=steps,
            guidance=guidance,
        )
        from likeness.core.randomness import normal

        noise = torch.stack([normal((c, edge, edge), 7, "latents")])
        positive, negative = (
            [[clip.encode(words), {}]] for words in (PROMPT.replace("(", "\\(").replace(")", "\\)"), "")
        )
        with torch.inference_mode():
            empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, edge, edge))
            sampled = comfy.sample.sample(
                model, noise, steps, guidance, "ddim", "ddim_uniform", positive, negative, empty, seed=7
            )
            theirs = vae.decode(sampled).movedim(-1, 1)
        error = float((theirs - ours.decode(latents)).square().mean())
        found["sampler psnr"] = 10 * math.log10(1 / max(error, 1e-12))
        found["sampler contrast"] = float(theirs.std())

    # An embedding: as core's word, and applied.
    rows = 0.5 * drawn(2, text.context.shape[-1])
    fish = Artifact(
        kind="embedding", tensors={"clip_l": rows}, trigger="<fish>", class_noun="fish", metadata={}
    )
    concept = save_concept(
        fish, WORK / "models/embeddings", f"{folder.name}-fish", family=ours.family, base_hash=""
    )
    with torch.no_grad():
        states = ours.with_embeddings({"<fish>": rows}).encode_prompts(["a red <fish> in the snow"])
        found["embedding:name"] = relative(
            clip.encode(f"a red embedding:{folder.name}-fish in the snow"), states.context
        )
        knowing = with_concepts(model, clip, [(concept, 1.0)])[1]
        found["embedding applied"] = relative(knowing.encode("a red <fish> in the snow"), states.context)
        found["embedding leaves the first"] = relative(
            clip.encode("a fish"), ours.encode_prompts(["a fish"]).context
        )

    # A LoRA on every layer that can have one: core's own loader, and applied.
    lora = ours.attach_lora(LoraSpec(rank=3, alpha=6, conv=True, text_encoder=True))
    learned = {name: 0.1 * drawn(*p.shape, seed=i) for i, (name, p) in enumerate(lora.parameters().items())}
    lora.load(learned)
    lora.set_strength(0.7)
    artifact = Artifact(
        kind="lora", tensors=learned, trigger="sks fish", class_noun="fish", metadata={"rank": 3, "alpha": 6}
    )
    concept = save_concept(
        artifact, WORK / "models/loras", f"{folder.name}-lora", family=ours.family, base_hash=""
    )
    heard = Warnings()
    logging.getLogger().addHandler(heard)
    patched = comfy.sd.load_lora_for_models(
        model, clip, comfy.utils.load_torch_file(str(concept.path)), 0.7, 0.7
    )
    logging.getLogger().removeHandler(heard)
    found["lora warnings"] = heard.lines
    found["lora layers"] = len(learned) // 2
    compare("lora in core", *patched)
    plain, changed = (noise_prediction(m, noisy, t, text.context) for m in (model, patched[0]))
    found["lora effect"] = relative(changed, plain)
    compare("lora applied", *with_concepts(model, clip, [(concept, 0.7)]))
    lora.detach()
    compare("after lora", model, clip)

    # A whole fine-tune.
    weights = {f"unet.{n}": p for n, p in ours.module("unet").named_parameters()}
    weights |= {
        f"text_encoder.{n.removeprefix('text_model.')}": p
        for n, p in ours.module("text_encoder").named_parameters()
    }
    chosen = {n: p for n, p in weights.items() if "attn" in n or "conv1" in n or "norm" in n or "proj" in n}
    delta = {n: 0.05 * drawn(*p.shape, seed=i) for i, (n, p) in enumerate(sorted(chosen.items()))}
    artifact = Artifact(kind="delta", tensors=delta, trigger="sks fish", class_noun="fish", metadata={})
    concept = save_concept(
        artifact, WORK / "models/loras", f"{folder.name}-delta", family=ours.family, base_hash=""
    )
    with ours.patched(delta, 0.5):
        compare("delta applied", *with_concepts(model, clip, [(concept, 0.5)]))
    compare("after delta", model, clip)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    for kind in ("embeddings", "loras"):
        (WORK / "models" / kind).mkdir(parents=True, exist_ok=True)
    load_pack()
    (WORK / "result.json").write_text(
        json.dumps({folder.name: check(folder) for folder in FOLDERS}, indent=1)
    )

"""Run by test_sdxl.py in a process of its own: ComfyUI's SDXL against ours, from one reduced checkpoint.

python sdxl_child.py COMFYUI_FOLDER PACK_PARENT WORK_FOLDER

WORK holds base.safetensors, the same as a diffusers folder, and the concepts fish (an embedding), lora, delta
and custom. Core tells families apart by their full-size shapes: those are replaced here, and the rest of its
way is its own.
"""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

comfyui, parent, folder = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path[:0] = [comfyui, parent]

from comfy.cli_args import args  # noqa: E402

args.cpu = args.fp32_text_enc = True  # core's loader takes fp16 for text, which costs 6e-4

import comfy.model_management  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from likeness.backbones import open_backbone  # noqa: E402
from likeness.backbones.base import BaseModel  # noqa: E402
from likeness.concepts.applying import apply_concepts  # noqa: E402
from likeness.concepts.loading import load_concept  # noqa: E402
from likeness.core.randomness import normal  # noqa: E402
from likeness.nodes.native import open_native  # noqa: E402
from likeness.nodes.patching import with_concepts  # noqa: E402

work = Path(folder)
PROMPT = "a photo of sks fish in the snow"


class SmallClip(comfy.sdxl_clip.SDXLClipModel):
    """Core's two text encoders at the checkpoint's sizes."""

    def __init__(self, model_options: dict[str, Any] | None = None, **options: Any) -> None:
        shared = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1}
        sizes = {
            "clip_l_model_config": {**shared, "hidden_size": 32},
            "clip_g_model_config": {**shared, "hidden_size": 64},
        }
        super().__init__(model_options={**(model_options or {}), **sizes}, **options)


shape = comfy.supported_models.SDXL.unet_config
shape.update(model_channels=32, context_dim=96, adm_in_channels=64 + 6 * 256, transformer_depth=[0, 0, 2, 2])
folder_paths.get_folder_paths = lambda kind: [str(work)]

base = BaseModel(source=str(work / "base.safetensors"), dtype="fp32", device="cpu")
backbone: Any = open_backbone(base)
concepts = {name: load_concept(work / f"{name}.safetensors") for name in ("fish", "lora", "delta", "custom")}
found: dict[str, Any] = {}


class Warnings(logging.Handler):
    """Core tells of unmatched keys by a warning alone."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


warnings = Warnings()
logging.getLogger().addHandler(warnings)


def relative(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs - ours).norm() / ours.norm())


def noise(model: Any, conds: Any, latents: torch.Tensor, t: int) -> torch.Tensor:
    """Core's noise prediction as its samplers ask for it, with the sizes that it adds itself."""
    abar = float(backbone.schedule.abar[t])
    sigma = ((1 - abar) / abar) ** 0.5
    x = latents / abar**0.5
    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    named = {"positive": comfy.sampler_helpers.convert_cond(conds)}
    comfy.sampler_helpers.prepare_model_patcher(model, named, model.model_options)
    ready = comfy.samplers.process_conds(model.model, x, named, x.device)
    denoised = comfy.samplers.calc_cond_batch(
        model.model, [ready["positive"]], x, torch.full((len(x),), sigma), model.model_options
    )[0]
    return (x - denoised) / sigma


def compare(name: str, known: Any, model: Any, clip: Any, prompt: str = PROMPT, written: str = "") -> None:
    """Both encoders' states, the pooled one, and noise at a height that is not the width."""
    text = known.encode_prompts([prompt])
    conds = clip.encode_from_tokens_scheduled(clip.tokenize(written or prompt))
    states, pooled = conds[0][0], conds[0][1]["pooled_output"]
    found[f"{name}: clip_l"] = relative(states[..., :32], text.context[..., :32])
    found[f"{name}: clip_g"] = relative(states[..., 32:], text.context[..., 32:])
    found[f"{name}: pooled"] = relative(pooled, text.pooled)
    latents = normal((1, 4, 8, 16), 0, "noisy")
    worst = 0.0
    for t in (3, 500, 990):
        ours = known.predict(latents, torch.tensor([t]), text)
        worst = max(worst, relative(noise(model, conds, latents, t), ours))
    found[f"{name}: noise"] = worst


def predicted(known: Any) -> torch.Tensor:
    """Our own noise prediction; what is applied changes it."""
    latents, t = normal((1, 4, 8, 8), 0, "noisy"), torch.tensor([500])
    out: torch.Tensor = known.predict(latents, t, known.encode_prompts([PROMPT]))
    return out


def in_core(name: str, model: Any, clip: Any, strength: float) -> Any:
    """As Load LoRA does it."""
    warnings.texts.clear()
    file = comfy.utils.load_torch_file(str(work / f"{name}.safetensors"))
    loaded = comfy.sd.load_lora_for_models(model, clip, file, strength, strength)
    found[f"{name}: warnings"] = list(warnings.texts)
    return loaded


with torch.inference_mode():
    folder_base = BaseModel(source=str(work / "folder"), dtype="fp32", device="cpu")
    *opened, vae = open_native(folder_base)
    compare("folder", backbone, *opened)
    latents = normal((1, 4, 8, 8), 0, "latents")
    decoded = vae.decode(opened[0].model.latent_format.process_out(latents)).movedim(-1, 1)
    found["folder: decode"] = relative(decoded, backbone.decode(latents))

    comfy.sdxl_clip.SDXLClipModel = SmallClip
    comfy.sd.VAE = lambda **options: None  # core's loader knows the full size only
    warnings.texts.clear()
    model, clip, _ = open_native(base)
    found["opening: warnings"] = list(warnings.texts)
    found["class"] = type(model.model).__name__
    compare("base", backbone, model, clip)
    known, plain = partial(apply_concepts, backbone), predicted(backbone)
    for name in ("lora", "delta"):
        with known([(concepts[name], 0.7)]) as applied:
            found[f"{name}: effect"] = relative(predicted(applied), plain)
            compare(f"{name} in core", applied, *in_core(name, model, clip, 0.7))
            compare(f"{name} applied", applied, *with_concepts(model, clip, [(concepts[name], 0.7)]))
    with known([(concepts["fish"], 1.0)]) as applied:
        words = ("a red <fish> in the snow", "a red embedding:fish in the snow")
        compare("embedding:name", applied, model, clip, *words)
        compare(
            "embedding applied", applied, *with_concepts(model, clip, [(concepts["fish"], 1.0)]), words[0]
        )
    with known([(concepts["custom"], 1.0)]) as applied:
        both = with_concepts(model, clip, [(concepts["custom"], 1.0)])
        compare("custom applied", applied, *both, "a <rex> dog on a beach")
    compare("after all", backbone, model, clip)

(work / "out.json").write_text(json.dumps(found))

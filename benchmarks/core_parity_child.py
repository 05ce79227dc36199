"""Run by ``core_parity`` in ComfyUI's interpreter: core's predictions for what ours are in WORK.

python core_parity_child.py COMFYUI_FOLDER PACK_PARENT WORK
"""

# ruff: noqa: E402, ComfyUI reads the command line as it is imported
from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

comfyui, parent, work = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path[:0] = [comfyui, parent]

from comfy.cli_args import args  # type: ignore[import-not-found,unused-ignore]

args.cpu = args.force_fp32 = args.fp32_unet = args.fp32_text_enc = args.fp32_vae = True

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import torch
from likeness.backbones.base import BaseModel
from likeness.backbones.loading import source_path
from likeness.concepts.loading import load_concept
from likeness.nodes import native
from likeness.nodes.patching import with_concepts
from safetensors.torch import load_file
from torch import Tensor


def prediction(model: Any, conditioning: Any, noisy_1CHW: Tensor, abar: float) -> Tensor:
    """The noise that core's sampler would take away, at the noise level of ``abar``."""
    sigma = ((1 - abar) / abar) ** 0.5
    x_1CHW = noisy_1CHW / abar**0.5
    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    named = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    options = copy.deepcopy(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, named, options)
    ready = comfy.samplers.process_conds(model.model, x_1CHW, named, x_1CHW.device)
    sigmas = torch.full((1,), sigma)
    denoised = comfy.samplers.calc_cond_batch(model.model, list(ready.values()), x_1CHW, sigmas, options)
    noise_1CHW: Tensor = (x_1CHW - denoised[0]) / sigma
    return noise_1CHW


def opened(base: BaseModel) -> tuple[Any, Any]:
    """Core's MODEL and CLIP. The VAE stays closed: it has no part in a prediction."""
    path = source_path(base)
    if path.is_dir():
        return native._model(path, base.dtype), native._clip(path, base.dtype, [])
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)
    return model, clip


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def main(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    ours = load_file(folder / "ours.safetensors")
    base = BaseModel(source=task["source"], dtype="fp32", device="cpu")
    found: dict[str, Any] = {"errors": {}, "effects": {}}
    with torch.inference_mode():
        model, clip = opened(base)
        for name, path in task["concepts"].items():
            applied, knowing = with_concepts(model, clip, [(load_concept(Path(path)), 1.0)])
            conditioning = knowing.encode_from_tokens_scheduled(knowing.tokenize(task["prompts"][name]))
            found["errors"][name] = [
                relative(prediction(applied, conditioning, ours["noisy"], abar), ours[f"{name}.{t}"])
                for t, abar in task["levels"].items()
            ]
            found["effects"][name] = min(
                relative(ours[f"{name}.{t}"], ours[f"without.{name}.{t}"]) for t in task["levels"]
            )
    (folder / "found.json").write_text(json.dumps(found))


main(Path(work))

"""Run by test_mapped.py in a process of its own: a NeTI word in ComfyUI's own sampler, against ours.

python neti_child.py COMFYUI_FOLDER PACK_PARENT MODEL_FOLDER CONCEPT LORA OUT.json
"""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

comfyui, parent, model_folder, concept_file, second_file, lora_file, out = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path[:0] = [comfyui, parent]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from likeness.backbones import open_backbone  # noqa: E402
from likeness.backbones.base import BaseModel  # noqa: E402
from likeness.concepts.applying import apply_concepts  # noqa: E402
from likeness.concepts.loading import load_concept  # noqa: E402
from likeness.core.randomness import normal  # noqa: E402
from likeness.nodes.mapped import places  # noqa: E402
from likeness.nodes.native import open_native, unet_shape  # noqa: E402
from likeness.nodes.patching import with_concepts  # noqa: E402

base = BaseModel(source=model_folder, dtype="fp32", device="cpu")
backbone: Any = open_backbone(base)
word, second, lora = (load_concept(Path(p)) for p in (concept_file, second_file, lora_file))
LATENT = (backbone.latent_channels, 8, 8)
found: dict[str, Any] = {}


def relative(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs - ours).norm() / ours.norm())


def conditioned(clip: Any, prompt: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def noises(model: Any, conds: list[Any], latents: torch.Tensor, t: int) -> list[torch.Tensor]:
    """Core's noise prediction for each list of conditionings, all in one call as in guidance."""
    abar = float(backbone.schedule.abar[t])
    sigma = ((1 - abar) / abar) ** 0.5
    x = latents / abar**0.5
    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    named = {str(n): comfy.sampler_helpers.convert_cond(cond) for n, cond in enumerate(conds)}
    options = copy.deepcopy(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, named, options)
    ready = comfy.samplers.process_conds(model.model, x, named, x.device)
    sigmas = torch.full((len(x),), sigma)
    denoised = comfy.samplers.calc_cond_batch(model.model, list(ready.values()), x, sigmas, options)
    return [(x - one) / sigma for one in denoised]


def compare(name: str, known: Any, model: Any, clip: Any, prompts: list[str], written: Any = None) -> None:
    """The worst relative error over five timesteps, of every prompt in a batch of two."""
    latents, worst = normal((2, *LATENT), 0, "noisy"), 0.0
    for t in (3, 250, 500, 750, 990):
        conds = [conditioned(clip, prompt) for prompt in (written or prompts)]
        for prompt, theirs in zip(prompts, noises(model, conds, latents, t), strict=True):
            ours = known.predict(latents, torch.full((2,), t), known.encode_prompts([prompt] * 2))
            worst = max(worst, relative(theirs, ours))
    found[name] = worst


def picture(name: str, known: Any, model: Any, clip: Any, prompt: str) -> None:
    seed, steps, guidance = 7, 5, 4.0
    *_, ours = known.denoise(
        known.encode_prompts([prompt]),
        known.encode_prompts([""]),
        seeds=[seed],
        steps=steps,
        guidance=guidance,
    )
    noise = normal(LATENT, seed, "latents")[None]
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, *LATENT))
    theirs = comfy.sample.sample(
        model, noise, steps, guidance, "ddim", "ddim_uniform", conditioned(clip, prompt),
        conditioned(clip, ""), empty, seed=seed, disable_pbar=True,
    )  # fmt: skip
    error = float((vae.decode(theirs).movedim(-1, 1) - known.decode(ours)).square().mean())
    found[name] = 10 * math.log10(1 / max(error, 1e-12))
    heun = comfy.sample.sample(
        model, noise, 3, guidance, "heun", "karras", conditioned(clip, prompt), conditioned(clip, "<finn>"),
        empty, seed=seed, disable_pbar=True,
    )  # fmt: skip
    found["another sampler is finite"] = bool(torch.isfinite(heun).all())


with torch.inference_mode():
    model, clip, vae = open_native(base)
    applied = with_concepts(model, clip, [(word, 1.0)])
    with apply_concepts(backbone, [(word, 1.0)], other_base=True) as known:
        compare("one word", known, *applied, ["a photo of <finn> in the snow", "a cat"])
        compare("two conditionings", known, *applied, ["<finn>", "a red <finn> on a beach"])
        compare("without the word", known, *applied, ["a cat", "a dog"])
        picture("sampler psnr", known, *applied, "a photo of <finn> in the snow")
    with apply_concepts(backbone, [(word, 1.0), (second, 1.0)], other_base=True) as known:
        both = with_concepts(model, clip, [(word, 1.0), (second, 1.0)])
        compare("two words", known, *both, ["<nemo> and <finn>", ""])
    with apply_concepts(backbone, [(word, 1.0), (lora, 0.7)], other_base=True) as known:
        compare(
            "a LoRA applied", known, *with_concepts(model, clip, [(word, 1.0), (lora, 0.7)]), ["<finn>", ""]
        )
        file = comfy.utils.load_torch_file(lora_file)
        compare("Load LoRA behind it", known, *comfy.sd.load_lora_for_models(*applied, file, 0.7, 0.7),
                ["a photo of <finn>", ""])  # fmt: skip
    with apply_concepts(backbone, [(word, 1.0)], other_base=True) as known:
        compare("after the LoRA", known, *applied, ["a photo of <finn>", ""])
    compare("the untouched model", backbone, model, clip, ["a cat", ""])
    # The conditioning is stretched beside a longer one, and joined behind another: its part stays its own.
    long = "a photo of <finn> " + "and a cat " * 40
    stretched = noises(applied[0], [conditioned(applied[1], p) for p in ("<finn>", long)],
                       normal((1, *LATENT), 0, "noisy"), 300)  # fmt: skip
    alone = noises(applied[0], [conditioned(applied[1], "<finn>")], normal((1, *LATENT), 0, "noisy"), 300)
    found["beside a longer prompt"] = relative(stretched[0], alone[0])
    weighted = noises(
        applied[0], [conditioned(applied[1], "a (<finn>:1.3)")], normal((1, *LATENT), 0, "n"), 300
    )
    unweighted = noises(applied[0], [conditioned(applied[1], "a <finn>")], normal((1, *LATENT), 0, "n"), 300)
    found["weight effect"] = relative(weighted[0], unweighted[0])
    plain = [[cond, {k: v for k, v in more.items() if k != "model_conds"}]
             for cond, more in conditioned(applied[1], "a <finn>")]  # fmt: skip
    unmarked = noises(applied[0], [plain], normal((1, *LATENT), 0, "n"), 300)
    found["effect of the layers"] = relative(unmarked[0], unweighted[0])

SD15 = {  # runwayml/stable-diffusion-v1-5, unet/config.json
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "cross_attention_dim": 768,
    "in_channels": 4, "out_channels": 4, "sample_size": 64,
}  # fmt: skip
full = UNetModel(
    **unet_shape(SD15), device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init
)
found["SD 1.5's places"] = [[kind, block] for kind, block, _ in places(full)]
Path(out).write_text(json.dumps(found))

"""Run by test_comfy_core.py in a process of its own: what ComfyUI core itself makes of our files.

    python comfy_core_child.py COMFYUI_FOLDER WORK_FOLDER

Every WORK/<name>.safetensors that has a WORK/<name>.expected (dense changes by our parameter names) is loaded
as core's LoraLoader does it, and the patched weights compared; WORK/fish.safetensors is the embedding.
"""

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
work = Path(sys.argv[2])

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

UNET = {  # the tiny pipeline's, in core's words
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 0, 0],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 32,
    "adm_in_channels": None,
    "legacy": False,
    "num_heads": 4,
    "num_head_channels": -1,
    "dtype": torch.float32,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}


class Warnings(logging.Handler):
    """Core tells of unmatched keys by a warning alone."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def build():
    torch.manual_seed(0)
    model = comfy.model_base.BaseModel(comfy.supported_models.SD15(dict(UNET)), device="cpu")
    options = {"clip_l_model_config": CLIP}
    clip = comfy.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32, model_options=options)
    for module in (model, clip):
        for parameter in module.parameters():
            parameter.data = torch.randn_like(parameter)
    return model, clip


def native_names() -> dict[str, str]:
    names = comfy.utils.unet_to_diffusers(UNET)
    return {f"unet.{k}": f"diffusion_model.{v}" for k, v in names.items()}


def check(path: Path, model, clip, warnings: Warnings) -> dict:
    warnings.texts.clear()
    key_map = comfy.lora.model_lora_keys_unet(model, {})
    key_map = comfy.lora.model_lora_keys_clip(clip, key_map)
    file = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    patches = comfy.lora.load_lora(file, key_map)
    weights = {**model.state_dict(), **clip.state_dict()}
    names = native_names()
    worst, seen = 0.0, set()
    for name, change in load_file(path.with_suffix(".expected")).items():
        text = name.replace("text_encoder.", "clip_l.transformer.text_model.")
        key = names.get(name, text)
        before = weights[key]
        after = comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, None)], before.clone(), key)
        worst = max(worst, float((after - (before + change)).abs().max()))
        seen.add(key)
    return {"warnings": list(warnings.texts), "worst": worst, "extra": sorted(set(patches) - seen)}


def main() -> None:
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    model, clip = build()
    result = {
        p.stem: check(p.with_suffix(".safetensors"), model, clip, warnings) for p in work.glob("*.expected")
    }
    rows = comfy.sd1_clip.load_embed("fish", str(work), 32, "clip_l")
    (work / "result.json").write_text(json.dumps({"files": result, "rows": rows.tolist()}))


main()

"""Runs in a process of its own, because ComfyUI's modules are global: its models on our weights.

python comfyui_child.py COMFYUI CHECKPOINT INPUTS OUTPUT
"""

from __future__ import annotations

import sys

comfyui, inputs, output, *checkpoints = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfyui)

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

prefix = "model.diffusion_model."
given, out = load_file(inputs), {}
for number, checkpoint in enumerate(checkpoints):
    state = load_file(checkpoint)
    config = comfy.model_detection.detect_unet_config(state, prefix)
    config |= {"num_head_channels": 64} if config["use_linear_in_transformer"] else {"num_heads": 8}
    unet = UNetModel(**config, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    unet.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    with torch.no_grad():
        out[str(number)] = unet.eval()(given["noisy"], given["t"], context=given["context"])
save_file(out, output)

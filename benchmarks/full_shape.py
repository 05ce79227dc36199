"""DreamBooth LoRA and textual inversion on Stable Diffusion 1.5's full shape, on the CPU, within 12 GB.

The weights are random: memory and time do not depend on their values. They are written as a single-file
checkpoint in half precision, as most people have theirs, and opened and trained through the ordinary way.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import close_backbone, ldm
from ..backbones.base import BaseModel
from ..core.randomness import generator
from ..core.tensorfile import write_tensors
from ..subjects import from_images
from ..trainers.dreambooth import DreamBoothConfig, train_dreambooth
from ..trainers.events import Step
from ..trainers.textual_inversion import TextualInversionConfig, train_textual_inversion
from . import bar

BAR_GB = 12.0
STEPS = 3


def run(quick: bool) -> dict[str, Any]:
    """Seconds of each step and the process's peak memory. Quick: one step of DreamBooth."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        checkpoint = scratch / "sd15-shape.safetensors"
        num_parameters = write_random_checkpoint(checkpoint)
        base = BaseModel(source=str(checkpoint), device="cpu", dtype="fp32", gradient_checkpointing=True)
        images_BHWC = torch.rand(2, 640, 512, 3, generator=generator(0, "photos"))
        subject = from_images(images_BHWC, scratch / "photos", class_noun="dog")
        steps_s: dict[str, list[float]] = {}
        for method, train in _METHODS[:1] if quick else _METHODS:
            events = train(base, subject, 1 if quick else STEPS, scratch / "runs")
            steps_s[method] = [event.seconds for event in events if isinstance(event, Step)]
        close_backbone()
    peak_gb = _peak_bytes() / 1e9
    made = min(map(len, steps_s.values()))
    return {
        "numbers": {
            "step, s": {method: statistics.median(times) for method, times in steps_s.items()},
            "steps, s": steps_s,
            "parameters": num_parameters,
        },
        "bars": [
            bar("peak memory, GB", value=peak_gb, op="<=", bar=BAR_GB),
            bar("steps of every method", value=made, op=">=", bar=1 if quick else STEPS),
        ],
        "seeds": [0],
    }


def _dreambooth(base: BaseModel, subject: Any, steps: int, runs: Path) -> Iterator[Any]:
    config = DreamBoothConfig.practical("sd1", steps=steps, crop="center", checkpoint_every=steps)
    return train_dreambooth(base, subject, config, runs_root=runs, seed=0)


def _textual_inversion(base: BaseModel, subject: Any, steps: int, runs: Path) -> Iterator[Any]:
    config = TextualInversionConfig.practical("sd1", steps=steps, batch_size=1, checkpoint_every=steps)
    return train_textual_inversion(base, subject, config, runs_root=runs, seed=0)


_METHODS = (("dreambooth_lora", _dreambooth), ("textual_inversion", _textual_inversion))


# --- a checkpoint of random weights ----------------------------------------------------------------


def _unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    # runwayml/stable-diffusion-v1-5, unet/config.json; the rest are the class's defaults.
    module: nn.Module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return module


def _vae() -> nn.Module:
    from diffusers import AutoencoderKL

    module: nn.Module = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    return module


def _text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    module: nn.Module = CLIPTextModel(CLIPTextConfig(vocab_size=49408, num_hidden_layers=12, **sizes))
    return module


def write_random_checkpoint(path: Path) -> int:
    """SD 1.5's tensors with random values in fp16, 2.1 GB; returns the number of parameters."""
    tensors: dict[str, Tensor] = {}
    for make, prefix, table in (
        (_unet, ldm.UNET, ldm.unet_table),
        (_vae, ldm.VAE, ldm.vae_table),
        (_text_encoder, f"{ldm.CLIP}text_model.", None),
    ):
        tensors |= _random_tensors(make, prefix, table)
    write_tensors(path, tensors, {"modelspec.prediction_type": "epsilon"})
    return sum(tensor.numel() for tensor in tensors.values())


def _random_tensors(
    make: Callable[[], nn.Module], prefix: str, table_of: Callable[[Any], Mapping[str, str]] | None
) -> dict[str, Tensor]:
    with torch.device("meta"):
        module = make()
    table = table_of(module.config) if table_of else None
    tensors = {}
    for name, empty in module.state_dict().items():
        key = name.removeprefix("text_model.") if table is None else ldm.rename(name, table)
        written = _random(name, empty.shape)
        if prefix == ldm.VAE and ".attentions." in name and written.ndim == 2:
            written = written[:, :, None, None].contiguous()  # the VAE's attention: 1 x 1 convolutions
        tensors[f"{prefix}{key}"] = written
    return tensors


def _random(name: str, shape: torch.Size) -> Tensor:
    """Values that keep activations near 1 through the whole depth."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
    scale = math.sqrt(shape[1:].numel())
    return (torch.randn(shape, generator=generator(0, name)) / scale).half()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

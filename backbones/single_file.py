"""A single-file checkpoint, opened by the shapes of its tensors (names: ``ldm``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LikenessError
from ..core.tensorfile import read_metadata
from . import ldm, recognise
from .parts import Parts, Reader, fill, opened, text_module, unet_module, vae_module
from .schedule import SD_SCHEDULER, Schedule, schedule_from_config
from .tokens import ClipTokens, clip_tokens

_SD1_HEADS = 8  # CompVis/stable-diffusion v1-inference.yaml; later models have heads of 64 channels
_OPEN_CLIP_PAD = "!"  # open_clip pads with id 0, which is this sign
# The VAE's scaling: CompVis/stable-diffusion v1-inference.yaml; generative-models sd_xl_base.yaml.
_SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


def read_single_file(path: Path, dtype: torch.dtype) -> Parts:
    """The parts of an SD 1.x, 2.x or XL checkpoint, the UNet in ``dtype``, all else in fp32.

    Raises LikenessError naming what the file is instead, or which tensor it lacks.
    """
    recognise.refuse_pickle(path)
    metadata = read_metadata(path)
    with opened(path) as (shapes, read):
        family = recognise.family_of_keys(path, shapes)
        try:
            unet_config = ldm.unet_config(shapes, heads=_SD1_HEADS if family == "sd1" else None)
            vae_config = ldm.vae_config(shapes, scaling=_SCALING[family])
            stored = [make(shapes, read) for make in _ENCODERS[family]]
        except KeyError as error:
            raise LikenessError(
                f"{path} lacks the tensor {error.args[0]}", fix="Copy or download it again"
            ) from error
        recognise.check_unet(path, unet_config["in_channels"], vae_config["latent_channels"])
        prediction = _prediction(family == "sd2", metadata, shapes, read)
        image_size = _image_size(family, prediction)
        unet = fill(
            f"The UNet of {path}",
            lambda: unet_module({**unet_config, "sample_size": image_size // 8}),
            shapes,
            _prefixed(ldm.UNET, ldm.unet_table(unet_config)),
            read,
            dtype,
        )
        vae = fill(
            f"The VAE of {path}",
            lambda: vae_module(vae_config),
            shapes,
            _prefixed(ldm.VAE, ldm.vae_table(vae_config)),
            read,
            torch.float32,
        )
        encoders = tuple(one.fill(path) for one in stored)
    tokens = tuple(one.tokens(path) for one in stored)
    return Parts(family, unet, vae, encoders, tokens, _schedule(prediction, shapes), image_size)


def file_family(path: Path) -> str:
    """ "sd1", "sd2" or "sdxl", from the header alone. Raises LikenessError for another kind of file."""
    recognise.refuse_pickle(path)
    with opened(path) as (shapes, _):
        return recognise.family_of_keys(path, shapes)


def _prefixed(prefix: str, table: Mapping[str, str]) -> Callable[[str], str | None]:
    def name_in_file(name: str) -> str | None:
        found = ldm.rename(name, table)
        return None if found is None else prefix + found

    return name_in_file


def _image_size(family: str, prediction: str) -> int:
    if family == "sdxl":
        return 1024
    return 768 if family == "sd2" and prediction == "v_prediction" else 512


# --- text encoders -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """A text encoder as a file has it."""

    config: Mapping[str, Any]
    name_in_file: Callable[[str], str | None]
    shapes: ldm.Shapes
    read: Reader
    pad: str | None = None  # None: the tokenizer's own, the end sign
    projects: bool = False

    def fill(self, path: Path) -> nn.Module:
        return fill(
            f"The text encoder of {path}",
            lambda: text_module(self.config, projects=self.projects),
            self.shapes,
            lambda name: self.name_in_file(name.removeprefix("text_model.")),
            self.read,
            torch.float32,
        )

    def tokens(self, path: Path) -> ClipTokens:
        tokens = clip_tokens(pad=self.pad) if self.pad else clip_tokens()
        if self.config["vocab_size"] != tokens.num_ids:
            raise LikenessError(
                f"The text encoder of {path} knows {self.config['vocab_size']} tokens",
                expected=f"CLIP's {tokens.num_ids}",
            )
        return tokens


def _clip(start: str, shapes: ldm.Shapes, read: Reader) -> _Stored:
    prefix = ldm.clip_prefix(start, shapes)
    return _Stored(ldm.clip_config(prefix, shapes), lambda name: prefix + name, shapes, read)


def _sd2_clip(shapes: ldm.Shapes, read: Reader) -> _Stored:
    """Without the last layer, which SD 2.x never uses."""
    return _open_clip(ldm.OPEN_CLIP, ldm.open_clip_config(ldm.OPEN_CLIP, shapes, unused=1), shapes, read)


def _xl_clip_g(shapes: ldm.Shapes, read: Reader) -> _Stored:
    """Whole: its last layer and its projection make the pooled state."""
    prefix = ldm.XL_OPEN_CLIP
    return _open_clip(prefix, ldm.open_clip_config(prefix, shapes), shapes, read, projects=True)


_ENCODERS: Mapping[str, tuple[Callable[[ldm.Shapes, Reader], _Stored], ...]] = {
    "sd1": (partial(_clip, ldm.CLIP),),
    "sd2": (_sd2_clip,),
    "sdxl": (partial(_clip, ldm.XL_CLIP), _xl_clip_g),
}


def _open_clip(
    prefix: str, config: Mapping[str, Any], shapes: ldm.Shapes, read: Reader, *, projects: bool = False
) -> _Stored:
    """Open_clip keeps q, k and v of a layer in one tensor, each a third of its rows, and its projection the
    other way round."""
    table = _prefixed(prefix, ldm.open_clip_table(config["num_hidden_layers"]))
    thirds: dict[str, tuple[str, int]] = {}
    for n in range(config["num_hidden_layers"]):
        for side in ("weight", "bias"):
            joined = f"{prefix}transformer.resblocks.{n}.attn.in_proj_{side}"
            for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
                if joined in shapes:
                    thirds[f"encoder.layers.{n}.self_attn.{name}.{side}"] = joined, third
    projection = f"{prefix}text_projection"  # without .weight it is a matrix from the right
    alone = {
        "embeddings.position_embedding.weight": f"{prefix}positional_embedding",
        "text_projection.weight": projection if projection in shapes else f"{projection}.weight",
    }

    def name_in_file(name: str) -> str | None:
        return name if name in thirds else alone.get(name) or table(name)

    def read_part(key: str) -> Tensor:
        if key in thirds:
            joined, third = thirds[key]
            return read(joined).chunk(3)[third]
        return read(key).T if key == projection else read(key)

    everything = {**shapes, **dict.fromkeys(thirds, ())}
    return _Stored(config, name_in_file, everything, read_part, pad=_OPEN_CLIP_PAD, projects=projects)


# --- what it predicts --------------------------------------------------------------------------------


def _prediction(sd2: bool, metadata: Mapping[str, str], shapes: ldm.Shapes, read: Reader) -> str:
    """What an SD checkpoint predicts: its metadata, a marker tensor, or for SD 2.x its weights, say so.

    The last is ComfyUI's test (comfy/supported_models.py, SD20): v models have a wider first norm bias.
    """
    stated = metadata.get("modelspec.prediction_type", "")
    if stated in ("v", "epsilon"):
        return "v_prediction" if stated == "v" else "epsilon"
    if "v_pred" in shapes:
        return "v_prediction"
    bias = f"{ldm.UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    wide = sd2 and bias in shapes and float(read(bias).float().std(unbiased=False)) > 0.09
    return "v_prediction" if wide else "epsilon"


def _schedule(prediction: str, shapes: ldm.Shapes) -> Schedule:
    """SD's own; with the marker "ztsnr" (as ComfyUI reads it) the last timestep is pure noise."""
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in shapes else {}
    return schedule_from_config({**SD_SCHEDULER, "prediction_type": prediction, **zero_snr})

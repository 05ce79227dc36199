"""The way into ComfyUI's own nodes: its MODEL, CLIP and VAE, from a base model and what it learned.

A checkpoint opens through core's loader. A diffusers folder of Stable Diffusion's shape (1.x, 2.x or XL),
whatever its size, the built-in Toybox too, is built from core's own classes: same weights, same numbers,
nothing downloaded.
Beside ``host``, this file and ``patching`` are the only ones that import ComfyUI, when a graph runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError
from . import host, sockets
from .host import io

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones.base import BaseModel
    from .sockets import AppliedModel

    Tensors = dict[str, Tensor]
    Config = Mapping[str, Any]


class UseInComfyUI(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessUseInComfyUI",
            display_name="Use in ComfyUI",
            category="Likeness/model",
            description="ComfyUI's own MODEL, CLIP and VAE of a base model, with all that Apply Concept "
            "put on it: for KSampler, Load LoRA and every other node. Needs ComfyUI.",
            inputs=[
                sockets.BaseOrModel.Input("model", tooltip="A base model, or one with concepts applied.")
            ],
            outputs=[
                io.Custom("MODEL").Output(
                    "diffusion", display_name="MODEL", tooltip="For KSampler and Load LoRA."
                ),
                io.Custom("CLIP").Output(
                    "clip",
                    display_name="CLIP",
                    tooltip="For CLIP Text Encode. An applied embedding is written as its word, such as "
                    "<fish>; embedding:NAME works as ever.",
                ),
                io.Custom("VAE").Output("vae", display_name="VAE", tooltip="For VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    def execute(cls, model: BaseModel | AppliedModel) -> io.NodeOutput:
        from .patching import with_concepts

        if not host.IN_COMFYUI:
            raise LikenessError(
                "Use in ComfyUI needs ComfyUI, which is not running here",
                fix="Use Generate, or queue the graph there",
            )
        known = sockets.applied(model)
        model, clip, vae = open_native(known.base)
        return io.NodeOutput(*with_concepts(model, clip, known.concepts), vae)


NODES: list[type[io.ComfyNode]] = [UseInComfyUI]


def open_native(base: BaseModel) -> tuple[Any, Any, Any]:
    """Core's MODEL, CLIP and VAE of ``base``.

    Raises LikenessError naming the file or setting when core's classes cannot hold such a model.
    """
    import comfy.sd
    import folder_paths

    from ..backbones.loading import family_of, source_path

    path = source_path(base)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if path.is_dir():
        clip = _xl_clip if family_of(base) == "sdxl" else _clip
        return _model(path, base.dtype), clip(path, base.dtype, embeddings), _vae(path, base.dtype)
    opened = comfy.sd.load_checkpoint_guess_config(str(path), embedding_directory=embeddings)
    return tuple(opened[:3])


# --- the UNet --------------------------------------------------------------------------------------

# What core's classes have built in: a model that differs there would draw something else.
UNET_FIXED = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
VAE_FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
TEXT_FIXED = {"layer_norm_eps": 1e-5}
SCHEDULER_FIXED = {"trained_betas": None}
# diffusers' names of noise schedules and predictions, and core's.
SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}


def _model(folder: Path, dtype: str) -> Any:
    import comfy.model_base
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models_base
    import comfy.utils

    config, weights = _part(folder, "unet", "diffusion_pytorch_model", UNET_FIXED)
    shape = unet_shape(config)
    ours = comfy.supported_models_base.BASE(shape)
    ours.unet_config.update(shape)  # BASE overwrites the number of heads
    ours.latent_format = _latent_format(folder)
    ours.sampling_settings, prediction = _schedule(folder)
    size = sum(tensor.numel() for tensor in weights.values())
    stored = _dtype(dtype) or management.unet_dtype(model_params=size)
    ours.set_inference_dtype(stored, management.unet_manual_cast(stored, management.get_torch_device()))
    offload = management.unet_offload_device()
    kind = comfy.model_base.ModelType[prediction]
    make = comfy.model_base.SDXL if shape["adm_in_channels"] else comfy.model_base.BaseModel
    model = make(ours, model_type=kind, device=offload)
    names = comfy.utils.unet_to_diffusers(ours.unet_config)
    _load(
        model.diffusion_model,
        {names.get(key, key): tensor for key, tensor in weights.items()},
        folder / "unet",
    )
    return comfy.model_patcher.ModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=offload
    )


def unet_shape(config: Config) -> dict[str, Any]:
    """diffusers' ``UNet2DConditionModel`` configuration as core's ``unet_config``."""
    channels: list[int] = list(config["block_out_channels"])
    layers = _per_level(config["layers_per_block"], len(channels))
    depths = _per_level(config.get("transformer_layers_per_block", 1), len(channels))
    kinds = config["down_block_types"]
    depths = [depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths, kinds, strict=True)]
    return {
        "image_size": config.get("sample_size") or 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "channel_mult": _multiples(channels, "the UNet"),
        "num_res_blocks": layers,
        "transformer_depth": [depth for depth, n in zip(depths, layers, strict=True) for _ in range(n)],
        "transformer_depth_output": [
            depth for depth, n in zip(depths, layers, strict=True) for _ in range(n + 1)
        ],
        "transformer_depth_middle": _per_level(config.get("transformer_layers_per_block", 1), len(channels))[
            -1
        ],
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "use_spatial_transformer": True,
        "legacy": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        **_added_conditions(config),
        **_heads(config, channels, depths),
    }


def _added_conditions(config: Config) -> dict[str, Any]:
    """SDXL's pooled text and sizes, which core writes as sines of 256 numbers each."""
    kind, width = config.get("addition_embed_type"), config.get("addition_time_embed_dim") or 256
    if kind is None:
        return {"adm_in_channels": None}
    if kind != "text_time" or width != 256:
        raise _unfit("the UNet", "addition_embed_type", f"{kind} of {width}", "none, or text_time of 256")
    return {"adm_in_channels": config["projection_class_embeddings_input_dim"], "num_classes": "sequential"}


def _heads(config: Config, channels: Sequence[int], depths: Sequence[int]) -> dict[str, int]:
    """Core knows one number of heads, or one width of a head, for all levels that attend (``depths``), the
    middle among them.

    diffusers' ``attention_head_dim`` is in truth the number of heads (its issue 2011).
    """
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    if isinstance(heads, int):
        return {"num_heads": heads, "num_head_channels": -1}
    attends = [*depths[:-1], 1]
    widths = {c // n for c, n, depth in zip(channels, heads, attends, strict=True) if depth}
    if len(widths) > 1:
        raise _unfit(
            "the UNet", "attention_head_dim", heads, "one number, or heads of one width at every level"
        )
    return {"num_heads": -1, "num_head_channels": widths.pop()}


def _latent_format(folder: Path) -> Any:
    import comfy.latent_formats

    config = _config(folder, "vae", VAE_FIXED)
    latent_format = comfy.latent_formats.LatentFormat()
    latent_format.scale_factor = config.get("scaling_factor", 0.18215)  # older folders do not say: SD 1's
    latent_format.latent_channels = config["latent_channels"]
    return latent_format


def _schedule(folder: Path) -> tuple[dict[str, Any], str]:
    """Core's ``sampling_settings``, and the name of its ``ModelType``."""
    config = _config(folder, "scheduler", SCHEDULER_FIXED)
    kind, predicts = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if kind not in SCHEDULES:
        raise _unfit("the scheduler", "beta_schedule", kind, ", ".join(SCHEDULES))
    if predicts not in PREDICTIONS:
        raise _unfit("the scheduler", "prediction_type", predicts, ", ".join(PREDICTIONS))
    settings = {
        "beta_schedule": SCHEDULES[kind],
        "linear_start": config.get("beta_start", 1e-4),  # this and the next are diffusers' defaults
        "linear_end": config.get("beta_end", 0.02),
        "timesteps": config.get("num_train_timesteps", 1000),
        "zsnr": config.get("rescale_betas_zero_snr", False),
    }
    return settings, PREDICTIONS[predicts]


# --- the autoencoder -------------------------------------------------------------------------------


def _vae(folder: Path, dtype: str) -> Any:
    import comfy.sd
    import torch

    config, weights = _part(folder, "vae", "diffusion_pytorch_model", VAE_FIXED)
    channels = list(config["block_out_channels"])
    if len(channels) != 4 or config["layers_per_block"] > 2:
        raise _unfit("the VAE", "block_out_channels", channels, "four levels of at most two layers")
    shape = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config.get("sample_size", 256),
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": channels[0],
        "ch_mult": _multiples(channels, "the VAE"),
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    parameters = {"ddconfig": shape, "embed_dim": config["latent_channels"]}
    vae = comfy.sd.VAE(
        sd=weights,
        config={"params": parameters},
        dtype=torch.float32 if dtype == "fp32" else None,  # core knows best which others a VAE stands
    )
    vae.latent_channels = config["latent_channels"]  # core sets it only where it guesses the shape
    return vae


# --- the text encoders -----------------------------------------------------------------------------

CLIP_IDS = 49408
XL_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def _clip(folder: Path, dtype: str, embeddings: Sequence[str]) -> Any:
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base
    import torch
    from transformers import CLIPTokenizer

    config, weights = _part(folder, "text_encoder", "model", TEXT_FIXED)
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    length, width = config["max_position_embeddings"], config["hidden_size"]
    encoder = partial(
        comfy.sd1_clip.SDClipModel,
        max_length=length,
        textmodel_json_config={**config, "eos_token_id": words.eos_token_id},
        special_tokens={"start": words.bos_token_id, "end": words.eos_token_id, "pad": words.pad_token_id},
        model_class=_text_model,
        return_projected_pooled=False,
    )
    tokenizer = partial(
        comfy.sd1_clip.SDTokenizer,
        str(folder / "tokenizer"),
        max_length=length,
        embedding_size=width,
        pad_token=words.pad_token_id,
    )
    target = comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=tokenizer),
        partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoder),
    )
    # Differs: core would take fp16 on a CPU; a text encoder is small, and LoRA on it loses in fp16.
    options = {"dtype": _dtype(dtype) or torch.float32}
    clip = comfy.sd.CLIP(target, embedding_directory=list(embeddings), model_options=options)
    _load_text(clip.cond_stage_model.clip_l.transformer, weights, folder / "text_encoder")
    return clip


def _xl_clip(folder: Path, dtype: str, embeddings: Sequence[str]) -> Any:
    """Core's own pair at the folder's sizes. Its tokenizers are core's: the vocabulary must be CLIP's."""
    import comfy.sd
    import comfy.sdxl_clip
    import comfy.supported_models_base
    import torch

    parts = {name: _part(folder, part, "model", TEXT_FIXED) for name, part in XL_ENCODERS.items()}
    options: dict[str, Any] = {"dtype": _dtype(dtype) or torch.float32}  # as above
    for name, (config, _) in parts.items():
        if config["vocab_size"] != CLIP_IDS:
            raise _unfit(f"{folder / XL_ENCODERS[name]}", "vocab_size", config["vocab_size"], str(CLIP_IDS))
        options[f"{name}_model_config"] = config
    target = comfy.supported_models_base.ClipTarget(
        comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
    )
    clip = comfy.sd.CLIP(target, embedding_directory=list(embeddings), model_options=options)
    for name, (_, weights) in parts.items():
        encoder = getattr(clip.cond_stage_model, name).transformer
        _load_text(encoder, weights, folder / XL_ENCODERS[name])
    return clip


def _load_text(encoder: Any, weights: Tensors, source: Path) -> None:
    import torch

    projection, inner = "text_projection.weight", "text_model."
    named = {
        key if key == projection else inner + key.removeprefix(inner): tensor
        for key, tensor in weights.items()
        if not key.endswith("position_ids")  # a buffer of older transformers
    }
    # Where there is none, it is unused; core's own is uninitialised.
    width = encoder.get_input_embeddings().weight.shape[1]
    _load(encoder, {projection: torch.eye(width)} | named, source)


def _text_model(config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> Any:
    """Core's CLIP text model with this vocabulary's size, where core's own is fixed."""
    import comfy.clip_model

    model = comfy.clip_model.CLIPTextModel(config, dtype, device, operations)
    table = operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
    model.set_input_embeddings(table)
    return model


# --- reading ---------------------------------------------------------------------------------------


def _part(folder: Path, part: str, stem: str, fixed: Config) -> tuple[dict[str, Any], Tensors]:
    """A part's configuration and its weights under diffusers' or transformers' names."""
    from ..core.tensorfile import read_tensors

    config = _config(folder, part, fixed)
    found = [
        path for ending in ("", ".fp16") if (path := folder / part / f"{stem}{ending}.safetensors").is_file()
    ]
    if not found:
        raise LikenessError(
            f"{folder / part} has no {stem}.safetensors",
            expected="a diffusers folder with weights as safetensors in one file a part",
            fix="Download or save the model again",
        )
    return config, dict(read_tensors(found[0])[0])


def _config(folder: Path, part: str, fixed: Config) -> dict[str, Any]:
    """A part's JSON. LikenessError when it is missing, damaged, or differs from what core has built in."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LikenessError(
            f"{path} cannot be read: {error}", expected="a diffusers folder of Stable Diffusion's shape"
        ) from error
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise _unfit(str(path), name, config[name], str(value))
    return dict(config)


def _load(module: Any, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Every weight in its place and none left over."""
    expected = {name: weight.shape for name, weight in module.state_dict().items()}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if wrong:
        raise LikenessError(
            f"{source} does not fit ComfyUI's own model: {len(wrong)} weights, the first is {wrong[0]}",
            expected="a model of Stable Diffusion 1.x, 2.x or XL's shape",
            fix="Save it as one checkpoint file and load that",
        )
    module.load_state_dict(tensors)


def _unfit(what: str, name: str, value: object, expected: str) -> LikenessError:
    return LikenessError(
        f"ComfyUI's own classes cannot hold {what}: {name} is {value}",
        expected=expected,
        fix="Use Generate instead",
    )


def _multiples(channels: Sequence[int], what: str) -> list[int]:
    if any(c % channels[0] for c in channels):
        raise _unfit(what, "block_out_channels", list(channels), "multiples of the first")
    return [c // channels[0] for c in channels]


def _per_level(value: int | Sequence[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)


def _dtype(name: str) -> Any:
    """A torch dtype, or None for what core prefers on this device."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(name)

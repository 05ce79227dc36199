"""The layout of a single-file Stable Diffusion checkpoint: its key names, and configs read off its shapes.

Single files keep the names of the code that trained them (CompVis/latent-diffusion and mlfoundations/
open_clip); the modules here have diffusers' and transformers' names. Each table maps a module path of
the second kind to one of the first and is one to one, so that it serves both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."  # SD 1.x: names of transformers
OPEN_CLIP = "cond_stage_model.model."  # SD 2.x: names of open_clip
XL_CLIP = "conditioner.embedders.0.transformer."  # SDXL has one of each
XL_OPEN_CLIP = "conditioner.embedders.1.model."

Shapes = Mapping[str, tuple[int, ...]]

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL's
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_RESNET = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "conv_shortcut": "nin_shortcut",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _expand(new: str, old: str, inner: Mapping[str, str]) -> dict[str, str]:
    return {f"{new}.{a}": f"{old}.{b}" for a, b in inner.items()}


def unet_table(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers module path to checkpoint path, for a UNet2DConditionModel config."""
    layers = config["layers_per_block"]
    attends = ["CrossAttn" in name for name in config["down_block_types"]]
    num = len(attends)
    table = dict(_UNET_OUTSIDE)
    for level in range(num):
        first, last = 1 + (layers + 1) * level, (layers + 1) * (level + 1)
        for j in range(layers):
            new, old = f"down_blocks.{level}", f"input_blocks.{first + j}"
            table |= _expand(f"{new}.resnets.{j}", f"{old}.0", _UNET_RESNET)
            if attends[level]:
                table[f"{new}.attentions.{j}"] = f"{old}.1"
        if level < num - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{last}.0.op"
    table |= _expand("mid_block.resnets.0", "middle_block.0", _UNET_RESNET)
    table |= _expand("mid_block.resnets.1", "middle_block.2", _UNET_RESNET)
    table["mid_block.attentions.0"] = "middle_block.1"
    for level in range(num):
        attend = attends[num - 1 - level]
        for j in range(layers + 1):
            new, old = f"up_blocks.{level}", f"output_blocks.{(layers + 1) * level + j}"
            table |= _expand(f"{new}.resnets.{j}", f"{old}.0", _UNET_RESNET)
            if attend:
                table[f"{new}.attentions.{j}"] = f"{old}.1"
        if level < num - 1:  # behind the last ResNet block, and behind its attention where there is one
            table[f"up_blocks.{level}.upsamplers.0.conv"] = f"{old}.{2 if attend else 1}.conv"
    return table


def vae_table(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers module path to checkpoint path, for an AutoencoderKL config."""
    layers, num = config["layers_per_block"], len(config["block_out_channels"])
    table = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        table |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for j in (0, 1):
            table |= _expand(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}", _VAE_RESNET)
        table |= _expand(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _VAE_ATTENTION)
    for level in range(num):
        down, up = f"encoder.down.{level}", f"decoder.up.{num - 1 - level}"  # the code counts up from the end
        for j in range(layers):
            table |= _expand(f"encoder.down_blocks.{level}.resnets.{j}", f"{down}.block.{j}", _VAE_RESNET)
        for j in range(layers + 1):
            table |= _expand(f"decoder.up_blocks.{level}.resnets.{j}", f"{up}.block.{j}", _VAE_RESNET)
        if level < num - 1:
            table[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{down}.downsample.conv"
            table[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return table


def open_clip_table(num_layers: int) -> dict[str, str]:
    """Transformers module path to open_clip path, but for ``attn.in_proj``, which joins q, k and v."""
    table = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    for n in range(num_layers):
        table |= _expand(f"encoder.layers.{n}", f"transformer.resblocks.{n}", _OPEN_CLIP_LAYER)
    return table


def rename(key: str, table: Mapping[str, str]) -> str | None:
    """``key`` with its longest known module path replaced; None when no path is known."""
    words = key.split(".")
    for count in range(len(words), 0, -1):
        if (found := table.get(".".join(words[:count]))) is not None:
            return ".".join([found, *words[count:]])
    return None


# --- configs from shapes ------------------------------------------------------------------------------


def _levels(shapes: Shapes, old: str) -> list[tuple[int, int, int]]:
    """Of a UNet's levels: channels, depth of its transformers (0: it does not attend), number of ResNet
    blocks."""
    levels: list[tuple[int, int, int]] = []
    num_blocks, index = 0, 1
    while True:
        block = f"{old}input_blocks.{index}"
        if (conv := shapes.get(f"{block}.0.in_layers.2.weight")) is not None:
            num_blocks += 1
            depth = len(_numbers(shapes, f"{block}.1.transformer_blocks."))
            here = (conv[0], depth, num_blocks)
        elif f"{block}.0.op.weight" in shapes:
            levels.append(here)
            num_blocks = 0
        else:
            return [*levels, here]
        index += 1


def unet_config(shapes: Shapes, *, heads: int | None) -> dict[str, Any]:
    """A UNet2DConditionModel config read off a checkpoint's shapes.

    ``heads`` is the number of attention heads (8 in SD 1.x); None means heads of 64 channels (SD 2.x, XL).
    Raises KeyError when a tensor that every SD UNet has is missing.
    """
    levels = _levels(shapes, UNET)
    channels = [width for width, _, _ in levels]
    attends = [depth > 0 for _, depth, _ in levels]
    middle = f"{UNET}middle_block.1"
    down = ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends]
    up = ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    return {
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": levels[0][2],
        "transformer_layers_per_block": [max(1, depth) for _, depth, _ in levels],
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": heads or [width // 64 for width in channels],  # diffusers' word for heads
        "use_linear_projection": len(shapes[f"{middle}.proj_in.weight"]) == 2,
        **_added_conditions(shapes),
    }


def _added_conditions(shapes: Shapes) -> dict[str, Any]:
    """SDXL's: the pooled text state, and six sizes as sines of 256 numbers each."""
    if (added := shapes.get(f"{UNET}label_emb.0.0.weight")) is None:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": added[1],
    }


def vae_config(shapes: Shapes, *, scaling: float) -> dict[str, Any]:
    """An AutoencoderKL config read off a checkpoint's shapes. ``scaling`` brings latents to a std of 1."""
    num = len(_numbers(shapes, f"{VAE}encoder.down."))
    layers = len(_numbers(shapes, f"{VAE}encoder.down.0.block."))
    widths = [shapes[f"{VAE}encoder.down.{n}.block.0.conv1.weight"][0] for n in range(num)]
    return {
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * num,
        "up_block_types": ["UpDecoderBlock2D"] * num,
        "latent_channels": shapes[f"{VAE}post_quant_conv.weight"][0],
        "scaling_factor": scaling,
    }


def clip_config(prefix: str, shapes: Shapes) -> dict[str, Any]:
    """A CLIPTextConfig read off the shapes of OpenAI's CLIP, under the names of transformers."""
    rows, width = shapes[f"{prefix}embeddings.token_embedding.weight"]
    layers = f"{prefix}encoder.layers."
    inner = shapes[f"{layers}0.mlp.fc1.weight"][0]
    return _text_config(rows, width, inner, len(_numbers(shapes, layers)), act="quick_gelu")


def open_clip_config(prefix: str, shapes: Shapes, *, unused: int = 0) -> dict[str, Any]:
    """A CLIPTextConfig read off the shapes of an open_clip model, without its last ``unused`` layers."""
    rows, width = shapes[f"{prefix}token_embedding.weight"]
    layers = f"{prefix}transformer.resblocks."
    inner = shapes[f"{layers}0.mlp.c_fc.weight"][0]
    config = _text_config(rows, width, inner, len(_numbers(shapes, layers)) - unused, act="gelu")
    projection = shapes.get(f"{prefix}text_projection") or shapes.get(f"{prefix}text_projection.weight")
    # Square in every public model, so that it does not matter which way round the matrix is.
    return {**config, "projection_dim": projection[1]} if projection else config


def _text_config(rows: int, width: int, inner: int, layers: int, *, act: str) -> dict[str, Any]:
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "hidden_act": act,
        "max_position_embeddings": 77,
        "bos_token_id": rows - 2,
        "eos_token_id": rows - 1,
    }


def clip_prefix(start: str, keys: Iterable[str]) -> str:
    """Old files have ``text_model.`` behind the ``start``, some newer ones do not."""
    return f"{start}text_model." if any(k.startswith(f"{start}text_model.") for k in keys) else start


def _numbers(shapes: Shapes, prefix: str) -> set[str]:
    """The different words (numbers) that follow ``prefix``."""
    return {key[len(prefix) :].split(".", 1)[0] for key in shapes if key.startswith(prefix)}

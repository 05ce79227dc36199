"""The names of learned tensors: ours to the keys that other tools read, and theirs back. No IO, no model.

    ours    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A
    kohya   lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight

Kohya's form is the one that ComfyUI core, diffusers and A1111 all read (core maps no attention layer of
the newer diffusers and PEFT forms). A module's dots become underscores there, so the way back needs the
words that hold an underscore themselves: ``COMPOUNDS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ..core.errors import LikenessError

Role = Literal["lora_A", "lora_B", "alpha", "weight", "bias", "unread"]

# What a key ends in, and what the tensor is. Order matters: the first that fits is taken.
SUFFIXES: tuple[tuple[str, Role], ...] = (
    (".lora_down.weight", "lora_A"),  # kohya
    (".lora_up.weight", "lora_B"),
    (".lora_A.default.weight", "lora_A"),  # PEFT, adapter name kept
    (".lora_B.default.weight", "lora_B"),
    (".lora_A.weight", "lora_A"),  # PEFT and newer diffusers
    (".lora_B.weight", "lora_B"),
    (".lora_linear_layer.down.weight", "lora_A"),  # diffusers 0.18 to 0.21
    (".lora_linear_layer.up.weight", "lora_B"),
    (".lora.down.weight", "lora_A"),
    (".lora.up.weight", "lora_B"),
    ("_lora.down.weight", "lora_A"),  # diffusers' attention processors
    ("_lora.up.weight", "lora_B"),
    (".lora_A", "lora_A"),  # ours
    (".lora_B", "lora_B"),
    (".alpha", "alpha"),
    (".diff_b", "bias"),  # ComfyUI core: a whole weight or bias, trained minus base
    (".diff", "weight"),
    (".dora_scale", "unread"),  # DoRA and others: a layer without this part of it would be another layer
    (".lora_magnitude_vector", "unread"),
    (".lora_magnitude_vector.weight", "unread"),
    (".lora_mid.weight", "unread"),
    (".set_weight", "unread"),
    (".reshape_weight", "unread"),
)

# What a key starts with: the part of the model, and whether dots were turned into underscores.
PREFIXES: tuple[tuple[str, str, bool], ...] = (
    ("lora_unet_", "unet", True),  # kohya, OneTrainer
    ("lycoris_", "unet", True),  # SimpleTuner
    ("lora_te1_", "text_encoder", True),
    ("lora_te2_", "text_encoder_2", True),
    ("lora_te_", "text_encoder", True),
    ("unet.base_model.model.", "unet", False),  # PEFT
    ("text_encoder.base_model.model.", "text_encoder", False),
    ("text_encoder_2.base_model.model.", "text_encoder_2", False),
    ("diffusion_model.", "unet", False),  # ComfyUI core's own trainer
    ("text_encoders.clip_l.transformer.", "text_encoder", False),
    ("text_encoders.clip_h.transformer.", "text_encoder", False),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", False),
    ("unet.", "unet", False),
    ("text_encoder_2.", "text_encoder_2", False),
    ("text_encoder.", "text_encoder", False),
    ("base_model.model.", "", False),  # PEFT saved from one module: the part shows in the path
    ("", "", False),
)

ROOTS: Mapping[str, frozenset[str]] = {  # first words of a path, by part
    "unet": frozenset({"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_norm_out", "conv_out"})
    | {"time_embedding", "add_embedding", "class_embedding"},
    "text_encoder": frozenset({"encoder", "embeddings", "final_layer_norm", "text_projection"}),
}

COMPOUNDS = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "to_q", "to_k", "to_v", "to_out"),
    *("proj_in", "proj_out", "conv_in", "conv_norm_out", "conv_out", "conv_shortcut", "time_emb_proj"),
    *("time_embedding", "add_embedding", "class_embedding", "linear_1", "linear_2"),
    *("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers"),
    *("skip_connection", "time_embed", "label_emb"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm1", "layer_norm2"),
    *("final_layer_norm", "token_embedding", "position_embedding", "text_projection"),
)
_WORD = re.compile(rf"({'|'.join(sorted(COMPOUNDS, key=len, reverse=True))}|[^_]+)(?=_|$)_?")

# The original Stable Diffusion code's names inside a ResNet block, and outside the blocks.
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BASIC = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
# Diffusers' first names for a text encoder's attention layers.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# An embedding inside a LoRA file: A1111's and ComfyUI core's form. Ours is "embedding.<token>", and where
# there are two text encoders "embedding.<token>.clip_l" and ".clip_g".
BUNDLED, ONE_ENCODER = "bundle_emb.", ".string_to_param.*"
EMBEDDING = "embedding."
ENCODERS = ("clip_l", "clip_g")

# Words in a key that tell another model from a Stable Diffusion UNet, for the error message only.
OTHER_MODELS = (
    ("double_blocks", "Flux"),
    ("single_blocks", "Flux"),
    ("single_transformer_blocks", "Flux"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("transformer.transformer_blocks", "a diffusion transformer (Stable Diffusion 3, Flux or newer)"),
    ("lora_transformer_", "a diffusion transformer (Stable Diffusion 3, Flux or newer)"),
    ("lora_prior_", "Stable Cascade"),
    ("diffusion_model.blocks.", "a video or diffusion transformer model"),
)


@dataclass(frozen=True)
class Key:
    """What a file's key means. ``module`` is a diffusers path (for text encoders without the leading
    ``text_model.``, which transformers has since version 5 left out)."""

    part: str
    module: str
    role: Role

    @property
    def name(self) -> str:
        """Our name of the tensor."""
        return f"{self.part}.{self.module}.{self.role}"


# --- reading ---------------------------------------------------------------------------------------


def parse_key(key: str, layers_per_block: int = 2) -> Key | None:
    """What ``key`` means, or None when it names no layer of a Stable Diffusion UNet or text encoder.

    ``layers_per_block`` (2 in every public SD model) is only needed for the original code's names.
    """
    stem, role = _split_suffix(key)
    if role is None:
        return None
    prefix, part, underscored = next(row for row in PREFIXES if stem.startswith(row[0]))
    path = stem[len(prefix) :]
    path = dotted(path) if underscored else path
    module = canonical(_diffusers_name(path, layers_per_block).replace(".processor.", "."))
    part = part or _part_of(module)
    return Key(part, _modern(part, module), role) if _is_known(part, module) else None


def _split_suffix(key: str) -> tuple[str, Role | None]:
    for suffix, role in SUFFIXES:
        if key.endswith(suffix):
            return key[: -len(suffix)], role
    return key, None


def is_weight_key(key: str) -> bool:
    """Whether ``key`` ends as a layer's tensor does, of whatever model."""
    return _split_suffix(key)[1] is not None


def dotted(underscored: str) -> str:
    """``down_blocks_0_attn1_to_q`` to ``down_blocks.0.attn1.to_q``."""
    return ".".join(_WORD.findall(underscored))


def canonical(module: str) -> str:
    """A text encoder's module path in the form without ``text_model.``; other paths as they are."""
    return module.removeprefix("text_model.")


def _part_of(module: str) -> str:
    return next((part for part in ROOTS if _is_known(part, module)), "")


def _is_known(part: str, module: str) -> bool:
    return module.split(".", 1)[0] in ROOTS.get(part.removesuffix("_2"), ())


def _modern(part: str, module: str) -> str:
    """Today's name of a layer that diffusers once named otherwise (``to_out`` for ``to_out.0``)."""
    head, _, leaf = module.rpartition(".")
    if part == "unet":
        return f"{module}.0" if leaf == "to_out" else module
    return f"{head}.{_OLD_TEXT[leaf]}" if leaf in _OLD_TEXT else module


def _diffusers_name(path: str, layers_per_block: int) -> str:
    """A path of the original Stable Diffusion code as diffusers names it; other paths as they are."""
    table = _native_table(layers_per_block)
    words = path.split(".")
    for count in range(min(4, len(words)), 0, -1):
        found = table.get(".".join(words[:count]))
        if found is not None:
            rest = ".".join(words[count:])
            rest = _RESNET.get(rest, rest)
            return f"{found}.{rest}" if rest else found
    return path


@cache
def _native_table(layers_per_block: int, levels: int = 4) -> Mapping[str, str]:
    """Prefixes of the original code's paths and what they are in diffusers, for up to 4 levels."""
    table = dict(_BASIC)
    for level in range(levels):
        first = 1 + (layers_per_block + 1) * level
        for layer in range(layers_per_block):
            table[f"input_blocks.{first + layer}.0"] = f"down_blocks.{level}.resnets.{layer}"
            table[f"input_blocks.{first + layer}.1"] = f"down_blocks.{level}.attentions.{layer}"
        last = first + layers_per_block
        table[f"input_blocks.{last}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for layer in range(layers_per_block + 1):
            n = (layers_per_block + 1) * level + layer
            table[f"output_blocks.{n}.0"] = f"up_blocks.{level}.resnets.{layer}"
            table[f"output_blocks.{n}.1"] = f"up_blocks.{level}.attentions.{layer}"
            for place in (1, 2):  # after the attention where there is one
                table[f"output_blocks.{n}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return table


def other_model(keys: Iterable[str]) -> str:
    """The name of the other model that these keys belong to, or ``""``."""
    marks = (name for key in keys for mark, name in OTHER_MODELS if mark in key)
    return next(marks, "")


# --- writing ---------------------------------------------------------------------------------------

NETI = "neti."  # how every key of a NeTI word begins
_LORA_SUFFIX = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
_DIFF_SUFFIX = {"weight": "diff", "bias": "diff_b"}
_TEXT_PREFIX = {"text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_CORE_ENCODER = {"sd2": "clip_h"}  # core's name of the first text encoder where it is not clip_l


def file_key(name: str, family: str) -> str:
    """The key under which our tensor ``name`` is written, for ``family`` ("sd1", "sd2", "sdxl", "toybox").

    LoRA in kohya's form; whole weights as core's ``.diff``. Raises LikenessError for any other name.
    """
    part, _, rest = name.partition(".")
    module, _, leaf = rest.rpartition(".")
    if module and part in ("unet", *_TEXT_PREFIX):
        if leaf in _LORA_SUFFIX:
            return f"{kohya_module(part, module, family)}.{_LORA_SUFFIX[leaf]}"
        if leaf in _DIFF_SUFFIX:
            return f"{_diff_module(part, module, family)}.{_DIFF_SUFFIX[leaf]}"
    raise LikenessError(
        f"The learned tensor {name!r} has no place in a LoRA file",
        expected="unet.<module> or text_encoder.<module>, ending in .lora_A, .lora_B, .weight or .bias",
    )


def word_name(token: str, encoder: str = "") -> str:
    """Our name of a word's rows beside weights; ``encoder`` where there are two."""
    return f"{EMBEDDING}{token}.{encoder}" if encoder else EMBEDDING + token


def word_of(name: str) -> tuple[str, str]:
    """Token and text encoder of ``embedding.<token>`` or ``embedding.<token>.<encoder>``."""
    word = name.removeprefix(EMBEDDING)
    token, _, encoder = word.rpartition(".")
    return (token, encoder) if token and encoder in ENCODERS else (word, ENCODERS[0])


def bundled_key(name: str) -> str:
    """The file key of ``embedding.<token>`` or ``embedding.<token>.<encoder>``."""
    word = name.removeprefix(EMBEDDING)
    return BUNDLED + word + ("" if word_of(name)[0] != word else ONE_ENCODER)


def bundled_name(key: str) -> str | None:
    """Our name of a file's key, or None when it is no bundled embedding."""
    if not key.startswith(BUNDLED):
        return None
    word = key.removeprefix(BUNDLED)
    if word.endswith(ONE_ENCODER):
        return word_name(word.removesuffix(ONE_ENCODER)) if word != ONE_ENCODER else None
    return EMBEDDING + word if word_of(word)[0] != word else None


def kohya_module(part: str, module: str, family: str) -> str:
    """``lora_unet_...``; ``lora_te_...`` (SDXL numbers its two encoders: ``lora_te1_``, ``lora_te2_``)."""
    if part == "unet":
        return "lora_unet_" + module.replace(".", "_")
    prefix = "lora_te1_" if family == "sdxl" and part == "text_encoder" else _TEXT_PREFIX[part]
    return prefix + _with_text_model(module).replace(".", "_")


def _diff_module(part: str, module: str, family: str) -> str:
    # Kohya names only the linear layers of a text encoder; core's own form reaches all of its weights.
    if part == "unet":
        return kohya_module(part, module, family)
    encoder = "clip_g" if part == "text_encoder_2" else _CORE_ENCODER.get(family, "clip_l")
    return f"text_encoders.{encoder}.transformer.{_with_text_model(module)}"


def _with_text_model(module: str) -> str:
    module = canonical(module)
    return module if module.startswith("text_projection") else f"text_model.{module}"

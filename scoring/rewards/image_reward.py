"""ImageReward (Xu et al. 2023, arXiv:2304.05977): BLIP with a reward head, on transformers' own BLIP.

    r = (MLP(BERT_[CLS](prompt, attending to ViT(picture))) - mean) / std

The authors' package pins timm 0.6.13 and breaks on current transformers; here its released checkpoint is
opened strictly: every tensor that the model has must be in the file, and everything else in it is named.
"""
# Shapes: B pictures, L tokens, P image tokens, D width.

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import LikenessError
from ...core.hashing import hash_file
from ..encoders import CLIP_PREPROCESSING
from .reward import NetReward

log = logging.getLogger(__name__)

# ImageReward/ImageReward.py: the mean and spread of raw scores over the authors' training data
MEAN, STD = 0.16717362830052426, 1.0333394966054072
LENGTH = 35  # tokens of a prompt, padded and cut
HEAD = (1024, 128, 64, 16, 1)  # widths of the head's linear layers
HEAD_PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the released head; the others are dropouts

VISION: Mapping[str, Any] = {  # ViT-L/16 at 224 px
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,  # transformers' default is 1e-5
    "hidden_act": "gelu",
}
TEXT: Mapping[str, Any] = {  # BERT base with cross-attention in every layer
    "vocab_size": 30524,  # with [DEC] and [ENC], which ImageReward never uses
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,  # transformers' default is 8: the shapes match and every score is wrong
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "is_decoder": True,  # gives the layers their cross-attention; the forward is bidirectional
}


class ImageRewardNet(nn.Module):
    """The model. ``vision`` and ``text`` change its size for tests; the released one has the defaults."""

    def __init__(self, vision: Mapping[str, Any] = VISION, text: Mapping[str, Any] = TEXT) -> None:
        super().__init__()
        from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        text_config = BlipTextConfig(**text)
        text_config._attn_implementation = "eager"  # the only one that BLIP's text model has
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        widths = (text["hidden_size"], *HEAD)
        # no activations in between: the head is linear overall, as released
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, pixels_B3HW: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Standardised scores, (B,)."""
        image_BPD = self.vision(
            pixel_values=pixels_B3HW
        ).last_hidden_state  # normed once; pooled would be twice
        states_BLD = self.text(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            encoder_hidden_states=image_BPD,
            encoder_attention_mask=torch.ones(image_BPD.shape[:2], dtype=torch.long, device=ids_BL.device),
            is_decoder=False,
        ).last_hidden_state
        raw_B1: Tensor = self.head(states_BLD[:, 0])
        return (raw_B1[:, 0] - MEAN) / STD


# --- the released checkpoint ---------------------------------------------------------------------------

_RENAMES = (  # of the authors' modules, first match wins
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(.*)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(.*)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.*)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.*)",
        r"vision.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(.*)", r"vision.encoder.layers.\1.mlp.\2"),
    (r"blip\.visual_encoder\.norm\.(.*)", r"vision.post_layernorm.\1"),
)
UNUSED = (  # what the file holds beside the reward model, and why it is not needed
    (r"blip\.text_encoder\.embeddings\.position_ids", "a buffer of positions, made anew"),
    (r"blip\.(vision_proj|text_proj)\..*", "BLIP's contrastive projections, which no reward uses"),
)


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """``names``: a checkpoint's key to the model's. ``unused``: key to why it is not needed."""

    names: Mapping[str, str]
    unused: Mapping[str, str]


def key_map(keys: Iterable[str], needed: Iterable[str]) -> KeyMap:
    """Where every tensor of a released checkpoint goes.

    Raises LikenessError when one that the model needs is missing, and when one has no known use.
    """
    keys, needed = list(keys), set(needed)
    unused = {k: why for k in keys for pattern, why in UNUSED if re.fullmatch(pattern, k)}
    names = {k: own for k in keys if k not in unused and (own := _own_name(k)) in needed}
    missing = sorted(needed - set(names.values()))
    unknown = sorted(set(keys) - set(names) - set(unused))
    if missing or unknown:
        wrong = f"{len(missing)} tensors are missing, the first is {missing[0]}" if missing else ""
        more = f"{len(unknown)} have no known use, the first is {unknown[0]}" if unknown else ""
        raise LikenessError(
            f"This is not ImageReward's checkpoint: {'; '.join(filter(None, (wrong, more)))}",
            expected="the released ImageReward.pt (v1.0)",
        )
    return KeyMap(names=names, unused=unused)


def _own_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    if key.startswith("blip.text_encoder."):
        return "text." + key.removeprefix("blip.text_encoder.")
    if match := re.fullmatch(r"mlp\.layers\.(\d+)\.(weight|bias)", key):
        place = int(match[1])
        return f"head.{HEAD_PLACES.index(place)}.{match[2]}" if place in HEAD_PLACES else ""
    return ""


def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> KeyMap:
    """Put a released checkpoint's tensors into ``net``, strictly; what was not used is logged."""
    own = {name: p for name, p in net.state_dict().items() if not name.endswith("position_ids")}
    found = key_map(state, own)
    wrong = [k for k, name in found.names.items() if state[k].shape != own[name].shape]
    if wrong:
        raise LikenessError(
            f"{wrong[0]} has the shape {tuple(state[wrong[0]].shape)} in the file",
            expected=str(tuple(own[found.names[wrong[0]]].shape)),
        )
    with torch.no_grad():
        for key, name in found.names.items():
            own[name].copy_(state[key])
    if found.unused:
        log.info(
            "ImageReward: %d tensors of the file are not used: %s", len(found.unused), dict(found.unused)
        )
    return found


# --- opening -------------------------------------------------------------------------------------------

WEIGHTS = ("ImageReward.safetensors", "ImageReward.pt")
VOCABULARY = "vocab.txt"


def weights_file(folder: Path) -> Path:
    """The checkpoint in ``folder``, the safer format first. LikenessError saying what to put where."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None or not (folder / VOCABULARY).is_file():
        raise LikenessError(
            f"ImageReward's files are not in {folder}",
            expected=f"ImageReward.pt from THUDM/ImageReward and {VOCABULARY} from bert-base-uncased, "
            "both on the Hugging Face hub",
            fix=f"Put the two files into {folder}. Likeness never downloads by itself.",
        )
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of the released plain pickle, which is opened without code."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    except Exception as error:  # torch, pickle and safetensors each raise their own
        raise LikenessError(
            f"{path} cannot be opened as a checkpoint: {error}", expected="ImageReward's released weights"
        ) from error


def tokenizer(vocabulary: Path) -> Any:
    """bert-base-uncased's WordPiece, from its vocab.txt."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab=str(vocabulary), do_lower_case=True)


def reward_of(
    net: ImageRewardNet, tokens: Any, *, weights_hash: str, device: str, batch_size: int
) -> NetReward:
    """The model with its tokenizer as a reward. The first token stays [CLS]: [ENC] is only BLIP's."""
    net = net.eval().requires_grad_(False).to(device)

    def score(pixels_B3HW: Tensor, prompts: list[str]) -> Tensor:
        words = tokens(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        out: Tensor = net(pixels_B3HW, words["input_ids"].to(device), words["attention_mask"].to(device))
        return out

    return NetReward(
        id="ImageReward-v1.0",
        label="ImageReward",
        weights_hash=weights_hash,
        prepare=CLIP_PREPROCESSING,
        net=score,
        device=device,
        batch_size=batch_size,
    )


def open_image_reward(folder: Path, *, device: str, batch_size: int) -> NetReward:
    """ImageReward v1.0 from a folder with its checkpoint and bert's vocabulary. fp32."""
    path = weights_file(folder)
    with torch.device("meta"):
        net = ImageRewardNet()
    net = _on_cpu(net)
    load_weights(net, read_checkpoint(path))
    tokens = tokenizer(folder / VOCABULARY)
    return reward_of(net, tokens, weights_hash=hash_file(path), device=device, batch_size=batch_size)


def _on_cpu(net: ImageRewardNet) -> ImageRewardNet:
    """Empty weights, without drawing random numbers for them first; buffers as they are made."""
    net = net.to_empty(device="cpu")
    for name, buffer in net.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return net

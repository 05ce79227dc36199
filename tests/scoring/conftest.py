"""Tiny random CLIP and DINO models on disk, in the layouts that the real ones come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel


def write_tokenizer(folder: Path) -> None:
    """CLIP's BPE with bytes and whole-word bytes only: every text tokenizes, no merge is learned."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    units = list(bytes_to_unicode().values())
    words = [*units, *(unit + "</w>" for unit in units), "<|startoftext|>", "<|endoftext|>"]
    folder.joinpath("vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    folder.joinpath("merges.txt").write_text("#version: 0.2\n")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip-tiny"
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = CLIPConfig(
        text_config={**text, **tokens},
        vision_config={**text, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dino-tiny"
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**size, image_size=32, patch_size=8)
    torch.manual_seed(0)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder

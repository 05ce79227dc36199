"""What every folder's tests share: a tiny Stable-Diffusion-shaped pipeline with seeded random weights."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

# One thread for every process of the suite, its children too: workers that share two cores otherwise wait for
# each other at every operation (ten times slower), and bits are equal only under equal threads.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import likeness
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package: this is how they share a module

from likeness.headless.comfyui import Install, NoComfyUI

# A busy machine is no bug: no example has a time limit of its own. The same examples every time, so that what
# fails here fails everywhere.
hypothesis.settings.register_profile("patient", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("patient")

# Every word here is one BPE token of the tiny tokenizer; any other word falls apart into pieces.
TINY_TEXT = """
a an the of in on at with and photo picture painting drawing rendering close up cropped good bad dark bright
clean dirty nice small large cool weird my one this that style sks ohwx person cat dog fish bird bear toy boat
cup car tree house flower robot object background red green blue yellow white black garden beach forest snow
sitting standing wearing hat playing
"""

TinyPipelineMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def pack_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which this checkout is ``likeness``, for interpreters that do not have it installed."""
    folder = tmp_path_factory.mktemp("packs")
    (folder / "likeness").symlink_to(Path(likeness.__path__[0]), target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def comfyui() -> Install:
    """The real ComfyUI of this machine; where there is none, the test is skipped, and says so."""
    try:
        return Install.find()
    except NoComfyUI as missing:
        pytest.skip(f"NOT CHECKED. {missing}")


def _byte_symbols() -> list[str]:
    """The printable stand-ins of CLIP's 256 bytes, in the order of its vocabulary."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return [chr(b) for b in kept] + [chr(256 + n) for n in range(256 - len(kept))]


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until every word is one symbol: the most frequent pair first, ties by spelling."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for p in pieces for pair in pairwise(p)):
        left, right = best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for p in pieces:
            while best in (seen := list(pairwise(p))):
                at = seen.index(best)
                p[at : at + 2] = [left + right]
    return merges


def write_tiny_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> int:
    """A CLIP tokenizer in the classic files; returns the number of ids. The last two are start and end."""
    symbols, merges = _byte_symbols(), _learn_merges(TINY_TEXT.split())
    names = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocab = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
        "errors": "replace",
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(names)


def _tiny_models(num_ids: int, seed: int) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,  # heads, as in SD 1.x
            norm_num_groups=32,
        )
        models = {
            "unet": unet,
            "vae": _tiny_vae(0.18215),
            "text_encoder": _tiny_text_encoder(num_ids, hidden_size=32, num_attention_heads=4),
        }
        _unsettle(models)
    return models


def _tiny_sdxl_models(num_ids: int, seed: int) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2],
            cross_attention_dim=32 + 64,
            attention_head_dim=(1, 1),  # where it attends, heads of 64 channels, as in SDXL
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=64 + 6 * 256,
            norm_num_groups=32,
        )
        models = {
            "unet": unet,
            "vae": _tiny_vae(0.13025),
            "text_encoder": _tiny_text_encoder(num_ids, hidden_size=32, num_attention_heads=1),
            "text_encoder_2": _tiny_text_encoder(
                num_ids,
                hidden_size=64,
                num_attention_heads=1,
                num_hidden_layers=3,
                hidden_act="gelu",
                projection_dim=64,
                pad_token_id=0,
                projects=True,
            ),
        }
        _unsettle(models)
    return models


def _tiny_vae(scaling_factor: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _tiny_text_encoder(num_ids: int, *, projects: bool = False, **changes: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = {
        "vocab_size": num_ids,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": 77,
        "bos_token_id": num_ids - 2,
        "eos_token_id": num_ids - 1,
        "pad_token_id": num_ids - 1,
    }
    config = CLIPTextConfig(**{**settings, **changes})
    return CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)


def _unsettle(models: dict[str, Any]) -> None:
    """Ones and zeros would hide a swapped key."""
    for model in models.values():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.data.add_(0.1 * torch.randn_like(p))
            if "token_embedding" in name or "position_embedding" in name:
                p.data.normal_(std=0.5)


def _scheduler(prediction_type: str) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def write_tiny_pipeline(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """A diffusers folder in SD 1.x's shape: 64x64 pictures, 4 latent channels at f=8, text width 32."""
    num_ids = write_tiny_tokenizer(folder / "tokenizer")
    for name, model in _tiny_models(num_ids, seed).items():
        model.save_pretrained(folder / name)
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def write_tiny_sdxl(folder: Path, *, seed: int = 0) -> Path:
    """A diffusers folder in SDXL's shape: two text encoders of widths 32 and 64, 64x64 pictures."""
    num_ids = write_tiny_tokenizer(folder / "tokenizer")
    write_tiny_tokenizer(folder / "tokenizer_2", pad="!")
    for name, model in _tiny_sdxl_models(num_ids, seed).items():
        model.save_pretrained(folder / name)
    _scheduler("epsilon").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


@pytest.fixture(scope="session")
def make_tiny_pipeline() -> TinyPipelineMaker:
    """``make_tiny_pipeline(folder, prediction_type=..., seed=...)`` for tests that need another one."""
    return write_tiny_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline folder, built offline once a session. Read it; never write into it."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder in SDXL's shape, likewise."""
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny_sdxl")

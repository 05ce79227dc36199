"""The shapes that ComfyUI's own classes are built with, and the refusals, without a ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.nodes import native, patching

# runwayml/stable-diffusion-v1-5 and stabilityai/stable-diffusion-2-1, unet/config.json.
SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
}
SD21 = SD15 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
# stabilityai/stable-diffusion-xl-base-1.0, likewise.
SDXL = SD15 | {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_sdxl_has_cores_own_shape() -> None:
    """ComfyUI 0.3.64, model_detection.py, SDXL."""
    shape = native.unet_shape(SDXL)
    assert shape["channel_mult"] == [1, 2, 4] and shape["context_dim"] == 2048
    assert shape["transformer_depth"] == [0, 0, 2, 2, 10, 10]
    assert shape["transformer_depth_output"] == [0, 0, 0, 2, 2, 2, 10, 10, 10]
    assert shape["transformer_depth_middle"] == 10
    assert (shape["num_heads"], shape["num_head_channels"]) == (-1, 64)
    assert (shape["num_classes"], shape["adm_in_channels"]) == ("sequential", 2816)


@pytest.mark.parametrize("changed", [{"addition_embed_type": "text"}, {"addition_time_embed_dim": 128}])
def test_other_added_conditions_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(LikenessError, match="addition_embed_type"):
        native.unet_shape(SDXL | changed)


def test_sd15_has_cores_own_shape() -> None:
    """ComfyUI 0.3.64, model_detection.py, SD15_diffusers_inpaint but for its input channels."""
    shape = native.unet_shape(SD15)
    assert shape["channel_mult"] == [1, 2, 4, 4]
    assert shape["num_res_blocks"] == [2, 2, 2, 2]
    assert shape["transformer_depth"] == [1, 1, 1, 1, 1, 1, 0, 0]
    assert shape["transformer_depth_output"] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert (shape["num_heads"], shape["num_head_channels"]) == (8, -1)
    assert not shape["use_linear_in_transformer"]


def test_sd21_has_heads_of_64() -> None:
    shape = native.unet_shape(SD21)
    assert (shape["num_heads"], shape["num_head_channels"]) == (-1, 64)
    assert shape["use_linear_in_transformer"] and shape["context_dim"] == 1024


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"attention_head_dim": [2, 8, 8, 8]}, "attention_head_dim"),
        ({"block_out_channels": [320, 480, 1280, 1280]}, "block_out_channels"),
    ],
)
def test_a_shape_that_core_cannot_hold_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(LikenessError, match=named):
        native.unet_shape(SD15 | changed)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (json.dumps({"norm_num_groups": 16}), "norm_num_groups is 16"),
        ("{", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, text: str | None, named: str) -> None:
    (tmp_path / "unet").mkdir()
    if text is not None:
        (tmp_path / "unet" / "config.json").write_text(text)
    with pytest.raises(LikenessError, match=named) as refused:
        native._part(tmp_path, "unet", "diffusion_pytorch_model", native.UNET_FIXED)
    assert str(tmp_path) in str(refused.value)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(LikenessError, match=r"has no diffusion_pytorch_model\.safetensors"):
        native._part(tmp_path, "unet", "diffusion_pytorch_model", native.UNET_FIXED)


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [({"beta_schedule": "sigmoid"}, "beta_schedule"), ({"prediction_type": "sample"}, "prediction_type")],
)
def test_a_schedule_that_core_lacks_is_refused(tmp_path: Path, scheduler: dict[str, Any], named: str) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(LikenessError, match=named):
        native._schedule(tmp_path)


def test_a_weight_of_another_shape_is_named() -> None:
    with pytest.raises(LikenessError, match=r"the first is bias"):
        native._load(
            torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, Path("unet")
        )


def test_without_comfyui_the_node_says_so() -> None:
    with pytest.raises(LikenessError, match="needs ComfyUI"):
        native.UseInComfyUI.execute(SimpleNamespace())  # type: ignore[arg-type]


# --- words ---------------------------------------------------------------------------------------------


def spelled(text: str, *words: str) -> str:
    names = {word: f"?{n}" for n, word in enumerate(words)}
    return str(patching._spelled(names, lambda text: text, text))


def test_a_word_becomes_an_embedding_of_cores() -> None:
    assert spelled("a <fish>, red", "<fish>") == "a  embedding:?0 , red"
    assert spelled("(<fish>:1.2)", "<fish>") == "( embedding:?0 :1.2)"


def test_a_word_inside_a_longer_one_is_left() -> None:
    assert "?1" in spelled("a <fish-2>", "<fish>", "<fish-2>")
    assert "?0" not in spelled("a <fish-2>", "<fish>", "<fish-2>")


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_text_without_the_word_is_untouched(text: str) -> None:
    assert "<fish>" in text or spelled(text, "<fish>") == text


def test_other_names_are_still_cores() -> None:
    rows = {"?0": torch.ones(1, 2)}
    assert patching._find(rows, lambda name: ("file", name), "cat red") == ("file", "cat red")
    found, rest = patching._find(rows, lambda name: ("file", name), "?0 , red")
    assert torch.equal(found, rows["?0"]) and rest == ", red"

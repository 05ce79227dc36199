"""Key names there and back, and what foreign keys mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.concepts import formats
from likeness.core.errors import LikenessError

BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0"
Q = f"unet.{BLOCK}.attn1.to_q"
TEXT_Q = "text_encoder.encoder.layers.3.self_attn.q_proj"

number = st.integers(0, 12).map(str)
leaf = st.sampled_from(
    ["attn1.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1", "attn2.to_k", "attn1.to_v"]
)
attention = st.builds("attentions.{}.transformer_blocks.{}.{}".format, number, number, leaf)
resnet = st.builds(
    "resnets.{}.{}".format,
    number,
    st.sampled_from(["conv1", "conv2", "norm1", "time_emb_proj", "conv_shortcut"]),
)
other = st.sampled_from(
    ["downsamplers.0.conv", "upsamplers.0.conv", "attentions.0.proj_in", "attentions.0.norm"]
)
block = st.one_of(
    st.builds("{}.{}".format, st.sampled_from(["down_blocks", "up_blocks"]), number), st.just("mid_block")
)
outside = ["conv_in", "conv_norm_out", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"]
unet = st.one_of(
    st.builds("unet.{}.{}".format, block, st.one_of(attention, resnet, other)),
    st.sampled_from(outside).map("unet.{}".format),
)
text_leaf = st.sampled_from(["self_attn.out_proj", "mlp.fc1", "layer_norm1", "self_attn.k_proj"])
text = st.one_of(
    st.builds("encoder.layers.{}.{}".format, number, text_leaf),
    st.sampled_from(["final_layer_norm", "embeddings.token_embedding", "text_projection"]),
)
text_encoder = st.builds("{}.{}".format, st.sampled_from(["text_encoder", "text_encoder_2"]), text)
roles = st.sampled_from(["lora_A", "lora_B", "weight", "bias"])
families = st.sampled_from(["sd1", "sd2", "sdxl", "toybox"])


@settings(deadline=None)
@given(st.one_of(unet, text_encoder), roles, families)
def test_our_names_come_back_from_the_file(module: str, role: str, family: str) -> None:
    name = f"{module}.{role}"
    parsed = formats.parse_key(formats.file_key(name, family))
    assert parsed is not None and parsed.name == name


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_key_or_none(key: str) -> None:
    parsed = formats.parse_key(key)
    assert parsed is None or parsed.module.split(".")[0] in formats.ROOTS[parsed.part.removesuffix("_2")]


FOREIGN = {  # public forms of the same layer
    "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight": f"{Q}.lora_A",
    "lycoris_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_up.weight": f"{Q}.lora_B",
    f"unet.{BLOCK}.attn1.to_q.lora_A.weight": f"{Q}.lora_A",
    f"unet.{BLOCK}.attn1.to_q.lora.down.weight": f"{Q}.lora_A",
    f"unet.{BLOCK}.attn1.processor.to_q_lora.up.weight": f"{Q}.lora_B",
    f"{BLOCK}.attn1.processor.to_q_lora.down.weight": f"{Q}.lora_A",
    f"unet.{BLOCK}.attn1.processor.to_out_lora.down.weight": f"unet.{BLOCK}.attn1.to_out.0.lora_A",
    f"base_model.model.{BLOCK}.attn1.to_q.lora_A.weight": f"{Q}.lora_A",
    f"base_model.model.{BLOCK}.attn1.to_q.lora_B.default.weight": f"{Q}.lora_B",
    f"unet.base_model.model.{BLOCK}.attn1.to_q.lora_A.weight": f"{Q}.lora_A",
    "lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.alpha": f"{Q}.alpha",
    "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_up.weight": f"{Q}.lora_B",
    "diffusion_model.input_blocks.3.0.op.diff": "unet.down_blocks.0.downsamplers.0.conv.weight",
    "diffusion_model.output_blocks.2.1.conv.diff_b": "unet.up_blocks.0.upsamplers.0.conv.bias",
    "diffusion_model.output_blocks.5.2.conv.diff": "unet.up_blocks.1.upsamplers.0.conv.weight",
    "diffusion_model.middle_block.2.in_layers.2.diff": "unet.mid_block.resnets.1.conv1.weight",
    "diffusion_model.out.2.diff": "unet.conv_out.weight",
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_down.weight": f"{TEXT_Q}.lora_A",
    "lora_te1_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight": f"{TEXT_Q}.lora_B",
    "lora_te2_text_model_encoder_layers_3_mlp_fc1.lora_up.weight": (
        "text_encoder_2.encoder.layers.3.mlp.fc1.lora_B"
    ),
    "text_encoder.text_model.encoder.layers.3.mlp.fc2.lora_linear_layer.up.weight": (
        "text_encoder.encoder.layers.3.mlp.fc2.lora_B"
    ),
    "text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.down.weight": f"{TEXT_Q}.lora_A",
    "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight": f"{TEXT_Q}.lora_A",
    "base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight": f"{TEXT_Q}.lora_A",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj.diff": f"{TEXT_Q}.weight",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_public_forms_are_understood(key: str) -> None:
    parsed = formats.parse_key(key)
    assert parsed is not None and parsed.name == FOREIGN[key]


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
        "lora_unet_down_blocks_0.hada_w1_a",
        "model.diffusion_model.out.2.weight",
        "",
        ".lora_A",
    ],
)
def test_keys_of_other_models_and_methods_mean_nothing(key: str) -> None:
    assert formats.parse_key(key) is None


def test_one_layer_per_block_counts_the_original_names_otherwise() -> None:
    key = "diffusion_model.output_blocks.3.0.in_layers.0.diff"
    two, one = formats.parse_key(key, 2), formats.parse_key(key, 1)
    assert two is not None and two.module == "up_blocks.1.resnets.0.norm1"
    assert one is not None and one.module == "up_blocks.1.resnets.1.norm1"


@pytest.mark.parametrize(
    "name", ["unet", "unet.lora_A", "vae.conv_in.weight", "unet.conv_in.gain", "unet..", ""]
)
def test_names_without_a_place_in_a_file_are_refused(name: str) -> None:
    with pytest.raises(LikenessError, match="no place"):
        formats.file_key(name, "sd1")

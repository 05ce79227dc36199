"""Opening models from files alone, and naming what is wrong with those that are not one."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import close_backbone, ldm, loading, open_backbone, single_file
from likeness.backbones.base import BaseModel
from likeness.core.errors import LikenessError
from likeness.core.randomness import normal
from likeness.core.tensorfile import read_tensors, write_tensors
from torch import Tensor, nn

T = torch.tensor([10, 900])
Models = dict[str, nn.Module]
Stored = tuple[Path, Models]


def base(source: Path | str, **settings: Any) -> BaseModel:
    return BaseModel(source=str(source), device="cpu", **settings)


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def stored(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    single_file_models: Callable[[str], Models],
    write_single_file: Callable[..., Path],
) -> Stored:
    """A single-file checkpoint and the diffusers modules whose weights it holds."""
    models = single_file_models(request.param)
    path = tmp_path_factory.mktemp("checkpoints") / f"{request.param}.safetensors"
    return write_single_file(path, request.param, models), models


# --- single file ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_single_file_predicts_as_the_modules_it_was_written_from(stored: Stored) -> None:
    path, models = stored
    model = loading.load_backbone(base(path))
    assert model.family == path.stem
    assert (model.prediction, model.image_size, model.latent_scale) == ("epsilon", 512, 8)
    noisy, images = normal((2, 4, 8, 8), 0, "noisy"), normal((1, 3, 32, 32), 0, "image")
    text = model.encode_prompts(["a photo of sks dog", "*"])
    pad = 0 if model.family == "sd2" else 49407
    ids = [[49406, *model.token_ids(p), 49407] for p in ("a photo of sks dog", "*")]
    ids_BL = torch.tensor([row + [pad] * (77 - len(row)) for row in ids])
    expected = models["text_encoder"](input_ids=ids_BL).last_hidden_state
    torch.testing.assert_close(text.context, expected, rtol=1e-6, atol=1e-6)
    expected = models["unet"](noisy, T, expected).sample
    torch.testing.assert_close(model.predict(noisy, T, text), expected, rtol=1e-6, atol=1e-6)
    posterior = models["vae"].encode(images).latent_dist  # type: ignore[operator]
    torch.testing.assert_close(model.encode_images(images).mean, posterior.mean * 0.18215)
    torch.testing.assert_close(model.decode(noisy), _decoded(models["vae"], noisy), rtol=1e-5, atol=1e-6)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    images: Tensor = vae.decode(latents / 0.18215).sample
    return (images / 2 + 0.5).clamp(0, 1)


def test_diffusers_own_converters_read_the_key_tables_alike(stored: Stored) -> None:
    """An oracle for the tables: both directions must not be wrong in the same way."""
    from diffusers.loaders import single_file_utils as theirs

    path, models = stored
    tensors, _ = read_tensors(path)
    unet = theirs.convert_ldm_unet_checkpoint(dict(tensors), models["unet"].config)
    vae = theirs.convert_ldm_vae_checkpoint(dict(tensors), models["vae"].config)
    _assert_same(unet, models["unet"].state_dict())
    _assert_same(vae, models["vae"].state_dict())
    if path.stem == "sd1":
        text = theirs.convert_ldm_clip_checkpoint(dict(tensors))
    else:
        text = theirs.convert_open_clip_checkpoint(models["text_encoder"], dict(tensors), ldm.OPEN_CLIP)
        layers = "text_model.encoder.layers."
        text = {k: v for k, v in text.items() if not k.startswith(f"{layers}2.") and "projection" not in k}
    _assert_same(
        {k.removeprefix("text_model."): v for k, v in text.items()}, models["text_encoder"].state_dict()
    )


def _assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name].reshape(theirs[name].shape), theirs[name]) for name in theirs)


def test_the_prediction_of_a_single_file(tmp_path: Path) -> None:
    """Metadata, then the marker tensor, then for SD 2.x the width of one bias."""
    bias = f"{ldm.UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    for sd2, metadata, keys, std, expected in (
        (False, {}, [], 0.0, "epsilon"),
        (False, {"modelspec.prediction_type": "v"}, [], 0.0, "v_prediction"),
        (False, {}, ["v_pred"], 0.0, "v_prediction"),
        (True, {}, [bias], 0.2, "v_prediction"),
        (True, {}, [bias], 0.01, "epsilon"),
        (True, {"modelspec.prediction_type": "epsilon"}, [bias], 0.2, "epsilon"),
    ):
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(keys, (320,))
        got = single_file._prediction(sd2, metadata, shapes, lambda key, std=std: std * torch.randn(320))  # type: ignore[misc]
        assert got == expected, (sd2, metadata, keys, std)


def test_a_full_size_checkpoint_is_read_as_published() -> None:
    """Configs of SD 1.5 and 2.1 from shapes alone, against the published config.json files."""
    from diffusers import UNet2DConditionModel

    published = {"layers_per_block": 2, "block_out_channels": [320, 640, 1280, 1280], "in_channels": 4}
    for heads, width, head_dim, linear in ((8, 768, 8, False), (None, 1024, [5, 10, 20, 20], True)):
        with torch.device("meta"):
            unet = UNet2DConditionModel(
                cross_attention_dim=width, attention_head_dim=head_dim, use_linear_projection=linear
            )
        table = ldm.unet_table(unet.config)
        shapes = {f"{ldm.UNET}{ldm.rename(n, table)}": tuple(t.shape) for n, t in unet.state_dict().items()}
        config = ldm.unet_config(shapes, heads=heads)
        expected = {**published, "cross_attention_dim": width, "attention_head_dim": head_dim}
        assert {k: config[k] for k in expected} == expected
        assert config["use_linear_projection"] is linear
        assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
        assert config["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3


# --- folders -------------------------------------------------------------------------------------------


def test_old_folders_open_as_new_ones(tiny_pipeline: Path, tmp_path: Path, backbone: Any) -> None:
    """The official SD 1.x folders have text_model. and the first names of the VAE's attention."""
    folder = shutil.copytree(tiny_pipeline, tmp_path / "old")
    path = folder / "text_encoder/model.safetensors"
    tensors, _ = read_tensors(path)
    write_tensors(path, {f"text_model.{n.removeprefix('text_model.')}": t for n, t in tensors.items()}, {})
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors, _ = read_tensors(path)
    for new_name, old_name in old.items():
        tensors = {n.replace(new_name, old_name): t for n, t in tensors.items()}
    write_tensors(path, tensors, {})
    model = loading.load_backbone(base(folder))
    for part in ("vae", "text_encoder"):
        _assert_same(getattr(model, part).state_dict(), getattr(backbone, part).state_dict())


def test_the_content_hash_is_of_contents(tiny_pipeline: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_pipeline, tmp_path / "moved")
    (moved / "README.md").write_text("read by nobody")
    assert loading.content_hash(base(moved)) == loading.content_hash(base(tiny_pipeline))
    config = moved / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("epsilon", "v_prediction"))
    assert loading.content_hash(base(moved)) != loading.content_hash(base(tiny_pipeline))


def test_one_model_is_kept_until_it_or_the_question_changes(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    close_backbone()
    first = open_backbone(base(folder))
    assert open_backbone(base(folder)) is first
    os.utime(folder / "unet/config.json", ns=(1, 1))
    second = open_backbone(base(folder))
    assert second is not first
    assert open_backbone(base(folder, channels_last=True)) is not second
    close_backbone()


def test_a_small_model_in_bf16_has_plain_attention_on_a_cpu(tiny_pipeline: Path) -> None:
    def processors(dtype: Any) -> set[str]:
        opened: Any = open_backbone(base(tiny_pipeline, dtype=dtype))
        return {type(one).__name__ for one in opened.unet.attn_processors.values()}

    assert processors("bf16") == {"AttnProcessor"}
    assert processors("fp32") == {"AttnProcessor2_0"}
    close_backbone()


# --- offline -------------------------------------------------------------------------------------------


def test_no_socket_is_opened(tiny_pipeline: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for source in (tiny_pipeline, stored[0]):
        model = loading.load_backbone(base(source))
        model.sample(["a cat"], seeds=[1], steps=1, size=(64, 64))


# --- what is not a model -------------------------------------------------------------------------------

FOREIGN = {
    "Stable Diffusion XL refiner": [
        "conditioner.embedders.0.model.ln_final.weight",
        f"{ldm.UNET}input_blocks.0.0.weight",
        f"{ldm.VAE}encoder.conv_in.weight",
    ],
    "Stable Diffusion XL checkpoint that is not whole": [
        "conditioner.embedders.1.model.ln_final.weight",
        f"{ldm.UNET}input_blocks.0.0.weight",
    ],
    "an EDM model": [
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.ln_final.weight",
        f"{ldm.UNET}input_blocks.0.0.weight",
        f"{ldm.VAE}encoder.conv_in.weight",
        "edm_mean",
    ],
    "Stable Diffusion 3": [f"{ldm.UNET}joint_blocks.0.x_block.attn.qkv.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight"],
    "a LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "a textual inversion": ["emb_params"],
    "a ControlNet": ["control_model.input_blocks.0.0.weight"],
    "one part of a diffusers folder": ["down_blocks.0.resnets.0.conv1.weight"],
    "a VAE alone": ["first_stage_model.encoder.conv_in.weight"],
    "a UNet without": [f"{ldm.UNET}input_blocks.0.0.weight"],
    "not a checkpoint of a known kind": ["weight"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "foreign.safetensors"
    write_tensors(path, {key: torch.zeros(2) for key in FOREIGN[what]}, {})
    with pytest.raises(LikenessError, match=f"foreign.safetensors is .*{what}.* Expected: a Stable"):
        loading.load_backbone(base(path))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(LikenessError, match=r"pickle.*Convert it to safetensors"):
        loading.load_backbone(base(path))


def test_a_torn_or_wrong_file_is_named(stored: Stored, tmp_path: Path) -> None:
    whole = stored[0].read_bytes()
    for name, content in {"torn": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 99}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(LikenessError, match=f"{name}.safetensors"):
            loading.load_backbone(base(path))


def test_an_incomplete_or_odd_checkpoint_is_named(stored: Stored, tmp_path: Path) -> None:
    tensors, _ = read_tensors(stored[0])
    odd = tmp_path / "odd.safetensors"
    conv_in, bias = f"{ldm.UNET}input_blocks.0.0.weight", f"{ldm.UNET}out.2.bias"
    write_tensors(odd, {n: t for n, t in tensors.items() if n != bias}, {})
    with pytest.raises(LikenessError, match=r"UNet of .*odd.safetensors lacks 1 of .* conv_out.bias"):
        loading.load_backbone(base(odd))
    write_tensors(odd, {**tensors, conv_in: torch.zeros(tensors[conv_in].shape[0], 9, 3, 3)}, {})
    with pytest.raises(LikenessError, match="9 channels: it is an inpainting"):
        loading.load_backbone(base(odd))
    write_tensors(odd, {**tensors, bias: torch.zeros(5)}, {})
    with pytest.raises(LikenessError, match=r"out.2.bias has the shape \(5,\)"):
        loading.load_backbone(base(odd))


MISSING = ["unet", "vae/config.json", "text_encoder", "tokenizer", "scheduler", "model_index.json"]


@pytest.mark.parametrize("part", MISSING)
def test_a_folder_without_a_part_is_named(tiny_pipeline: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    gone = folder / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(LikenessError, match=part):
        loading.load_backbone(base(folder))


def test_folders_of_other_kinds_are_named(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    index = folder / "model_index.json"
    others = (
        ("XLImg2Img", "XL refiner"),
        ("XLInpaint", "inpainting"),
        ("Flux", "Flux"),
        ("Kolors", "another"),
    )
    for name, what in others:
        pipeline = {"_class_name": f"StableDiffusion{name}Pipeline", "text_encoder_2": [None, None]}
        index.write_text(json.dumps(pipeline))
        with pytest.raises(LikenessError, match=what):
            loading.load_backbone(base(folder))
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(LikenessError, match="pickle"):
        loading.load_backbone(base(folder))


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"source": "/nowhere/at/all"}, "no file or folder"), ({"device": "gpu0"}, "gpu0")],
)
def test_impossible_settings_are_named(tiny_pipeline: Path, settings: dict[str, str], match: str) -> None:
    with pytest.raises(LikenessError, match=match):
        open_backbone(BaseModel(**{"source": str(tiny_pipeline), **settings}))  # type: ignore[arg-type]

"""SDXL equals diffusers' own pipeline, from a folder and from a single file; words live in both encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones import ldm, single_file
from likeness.backbones.base import BaseModel, LoraSpec, TextStates
from likeness.backbones.loading import content_hash, load_backbone, source_files
from likeness.backbones.sdxl import SDXLBackbone
from likeness.backbones.tokens import rows_by_encoder
from likeness.core.errors import LikenessError
from likeness.core.randomness import normal
from torch import Tensor, nn

T = torch.tensor([10, 900])
PROMPTS = ["a photo of a cat", "one small dog in the snow"]
Models = dict[str, nn.Module]


@pytest.fixture(scope="module")
def pipe(tiny_sdxl: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True, add_watermarker=False)


@pytest.fixture
def noisy() -> Tensor:
    return normal((2, 4, 8, 8), 0, "noisy")


# --- parity --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_text_states_and_predictions_equal_diffusers(sdxl: SDXLBackbone, pipe: Any, noisy: Tensor) -> None:
    context, _, pooled, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    ours = sdxl.encode_prompts(PROMPTS)
    assert ours.pooled is not None
    torch.testing.assert_close(ours.context, context, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-6, atol=1e-6)
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    expected = pipe.unet(noisy, T, context, added_cond_kwargs=added).sample
    torch.testing.assert_close(sdxl.predict(noisy, T, ours), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(sdxl: SDXLBackbone, pipe: Any) -> None:
    """With another height than width, so that swapped sizes show."""
    latents = normal((4, 4, 8), 7, "latents")[None]
    settings = {
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "output_type": "pt",
        "height": 32,
        "width": 64,
    }
    expected = pipe("a cat", negative_prompt="a dog", latents=latents, **settings).images
    ours = sdxl.sample(["a cat"], seeds=[7], steps=3, guidance=5.0, negative="a dog", size=(32, 64))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_pooled_states_are_joined_and_each_row_has_its_own(sdxl: SDXLBackbone, noisy: Tensor) -> None:
    text, empty = sdxl.encode_prompts(PROMPTS), sdxl.encode_prompts([""])
    both = empty.joined(text)
    assert both.pooled is not None and text.pooled is not None and empty.pooled is not None
    assert torch.equal(both.pooled, torch.cat([empty.pooled, empty.pooled, text.pooled]))
    with torch.no_grad():
        plain = sdxl.predict(noisy, T, text)
        swapped = sdxl.predict(noisy, T, TextStates(text.context, text.pooled.flip(0)))
    assert (plain - swapped).abs().max() > 1e-4  # the pooled state is read at all


# --- single file ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
    single_file_models: Callable[[str], Models],
    write_single_file: Callable[..., Path],
) -> tuple[Path, Models]:
    models = single_file_models("sdxl")
    path = tmp_path_factory.mktemp("checkpoints") / "sdxl.safetensors"
    return write_single_file(path, "sdxl", models), models


@torch.no_grad()
def test_a_single_file_predicts_as_the_modules_it_was_written_from(stored: tuple[Path, Models]) -> None:
    path, models = stored
    model = load_backbone(BaseModel(source=str(path), device="cpu"))
    assert isinstance(model, SDXLBackbone)
    assert (model.family, model.prediction, model.image_size) == ("sdxl", "epsilon", 1024)
    ids = [49406, *model.token_ids("a photo of sks dog"), 49407]
    states = []
    for name, pad in (("text_encoder", 49407), ("text_encoder_2", 0)):
        padded = torch.tensor([ids + [pad] * (77 - len(ids))])
        out = models[name](input_ids=padded, output_hidden_states=True)
        states.append(out.hidden_states[-2])
    text = model.encode_prompts(["a photo of sks dog"])
    torch.testing.assert_close(text.context, torch.cat(states, dim=-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(text.pooled, out.text_embeds, rtol=1e-6, atol=1e-6)
    images = normal((1, 3, 32, 32), 0, "image")
    posterior = models["vae"].encode(images).latent_dist  # type: ignore[operator]
    torch.testing.assert_close(model.encode_images(images).mean, posterior.mean * 0.13025)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(model, name).state_dict(), models[name].state_dict()
        assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_diffusers_own_converters_read_the_key_tables_alike(stored: tuple[Path, Models]) -> None:
    from diffusers.loaders import single_file_utils as theirs
    from likeness.core.tensorfile import read_tensors

    path, models = stored
    tensors, _ = read_tensors(path)
    unet = theirs.convert_ldm_unet_checkpoint(dict(tensors), models["unet"].config)
    assert {k: v.shape for k, v in unet.items()} == {
        k: v.shape for k, v in models["unet"].state_dict().items()
    }
    assert all(torch.equal(unet[name], tensor) for name, tensor in models["unet"].state_dict().items())
    text = theirs.convert_open_clip_checkpoint(models["text_encoder_2"], dict(tensors), ldm.XL_OPEN_CLIP)
    own = models["text_encoder_2"].state_dict()
    assert set(text) - {"text_model.embeddings.position_ids"} == set(own)
    assert all(torch.equal(text[name], own[name]) for name in own)


def test_a_full_size_checkpoint_is_read_as_published() -> None:
    """SDXL base 1.0's UNet from shapes alone, against its published config.json."""
    from diffusers import UNet2DConditionModel

    published = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "layers_per_block": 2,
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**published)
    table = ldm.unet_table(unet.config)
    shapes = {f"{ldm.UNET}{ldm.rename(n, table)}": tuple(t.shape) for n, t in unet.state_dict().items()}
    assert len(shapes) == 1680  # as many as in the published file
    config = ldm.unet_config(shapes, heads=None)
    assert {key: config[key] for key in published} == published


@pytest.mark.parametrize(
    ("marks", "prediction", "last"), [((), "epsilon", 0.0047), (("v_pred", "ztsnr"), "v_prediction", 0.0)]
)
def test_the_schedule_of_a_single_file(marks: tuple[str, ...], prediction: str, last: float) -> None:
    shapes: ldm.Shapes = dict.fromkeys(marks, ())
    found = single_file._prediction(False, {}, shapes, lambda key: torch.zeros(1))
    schedule = single_file._schedule(found, shapes)
    assert schedule.prediction == prediction
    assert float(schedule.abar[-1]) == pytest.approx(last, abs=1e-4)


# --- words ---------------------------------------------------------------------------------------------


def test_an_embedding_equal_to_a_word_is_that_word_in_both_encoders(sdxl: SDXLBackbone) -> None:
    row = sdxl.token_embedding("cat")
    assert row.shape == (1, 32 + 64) and sdxl.text_widths == {"clip_l": 32, "clip_g": 64}
    got = sdxl.with_embeddings({"<thing>": row}).encode_prompts(["a <thing> hat"])
    expected = sdxl.encode_prompts(["a cat hat"])
    assert torch.equal(got.context, expected.context)
    assert got.pooled is not None and expected.pooled is not None and torch.equal(got.pooled, expected.pooled)
    assert got.words["<thing>"].tolist() == [[0, 2]]


def test_gradients_reach_the_rows_of_both_encoders_and_nothing_else(
    sdxl: SDXLBackbone, noisy: Tensor
) -> None:
    rows = sdxl.token_embedding("cat").requires_grad_()
    text = sdxl.encode_prompts(["a <thing>"] * 2, embeddings={"<thing>": rows})
    sdxl.predict(noisy, T, text).square().mean().backward()
    assert rows.grad is not None
    assert all(half.abs().max() > 0 for half in rows_by_encoder(rows.grad, sdxl.text_widths).values())
    assert all(p.grad is None for part in sdxl.parts for p in sdxl.module(part).parameters())


def test_rows_of_one_encoder_are_refused(sdxl: SDXLBackbone) -> None:
    with pytest.raises(LikenessError, match=r"<thing>.*\(vectors, 96\)"):
        sdxl.encode_prompts(["a <thing>"], embeddings={"<thing>": torch.zeros(1, 32)})


def test_a_mapped_word_is_refused_by_name(sdxl: SDXLBackbone) -> None:
    class Mapper:
        num_layers, width = 8, 96

    for use in (sdxl.with_mappers, lambda words: sdxl.encode_prompts(["a"], mappers=words)):
        with pytest.raises(LikenessError, match=r"NeTI.*Stable Diffusion XL.*Textual Inversion"):
            use({"<thing>": Mapper()})  # type: ignore[dict-item,operator]


# --- adapters ------------------------------------------------------------------------------------------


def test_adapters_sit_where_something_reads_them(sdxl: SDXLBackbone, noisy: Tensor) -> None:
    """Not on the first encoder's last layer: every adapter gets a gradient."""
    lora = sdxl.attach_lora(LoraSpec(rank=2, text_encoder=True, conv=True), seed=1)
    parameters = lora.parameters()
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.05)
    sdxl.predict(noisy, T, sdxl.encode_prompts(PROMPTS)).square().mean().backward()
    lora.detach()
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())
    layers = {name.rsplit(".", 3)[0] for name in parameters if name.startswith("text_encoder")}
    assert layers == {
        "text_encoder.encoder.layers.0",
        *(f"text_encoder_2.encoder.layers.{n}" for n in range(3)),
    }


def test_a_private_copy_and_patches_reach_both_encoders(sdxl: SDXLBackbone) -> None:
    before = sdxl.encode_prompts(PROMPTS)
    copy = sdxl.private_copy("text_encoder_2")
    assert copy.unet is sdxl.unet and copy.text_encoder_2 is not sdxl.text_encoder_2
    name = "encoder.layers.0.self_attn.q_proj.weight"
    for part, width in (("text_encoder", 32), ("text_encoder_2", 64)):
        with sdxl.patched({f"{part}.{name}": torch.ones(width, width)}):
            assert not torch.equal(sdxl.encode_prompts(PROMPTS).context, before.context)
        assert torch.equal(sdxl.encode_prompts(PROMPTS).context, before.context)


# --- modes ---------------------------------------------------------------------------------------------


def test_every_file_of_a_folder_is_in_its_hash(tiny_sdxl: Path) -> None:
    base = BaseModel(source=str(tiny_sdxl), device="cpu")
    names = {file.relative_to(tiny_sdxl).as_posix() for file in source_files(base)}
    assert {
        "text_encoder_2/model.safetensors",
        "text_encoder_2/config.json",
        "tokenizer_2/vocab.json",
    } <= names
    assert len(content_hash(base)) == 64


@torch.no_grad()
def test_half_precision_keeps_text_vae_and_sizes_in_fp32(tiny_sdxl: Path, sdxl: SDXLBackbone) -> None:
    model = load_backbone(BaseModel(source=str(tiny_sdxl), device="cpu", dtype="bf16", offload=True))
    assert isinstance(model, SDXLBackbone)
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    rest = (model.vae, model.text_encoder, model.text_encoder_2)
    assert {p.dtype for module in rest for p in module.parameters()} == {torch.float32}
    text, noisy = (
        model.encode_prompts(PROMPTS),
        normal((2, 4, 125, 125), 0, "noisy"),
    )  # 1000 is no bf16 number
    added = model._added_conditions(noisy.bfloat16(), text)
    assert added["time_ids"].tolist() == [[1000, 1000, 0, 0, 1000, 1000]] * 2
    small = noisy[:, :, :8, :8]
    out, exact = model.predict(small, T, text), sdxl.predict(small, T, text)
    torch.testing.assert_close(out, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))
    assert replace(model, embeddings={}).tokens_2 is model.tokens_2

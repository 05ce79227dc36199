"""The backbone equals diffusers' own components, and its surfaces keep their promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones.base import BaseModel, LoraSpec, TextStates
from likeness.backbones.loading import load_backbone
from likeness.backbones.sd import SDBackbone
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_tensors
from likeness.core.randomness import normal
from torch import Tensor


@pytest.fixture(scope="module")
def pipe(tiny_pipeline: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    assert len(pipe.tokenizer("a photo of sks cat")["input_ids"]) == 7  # each listed word is one token
    return pipe


@pytest.fixture
def noisy() -> Tensor:
    return normal((2, 4, 8, 8), 0, "noisy")


T = torch.tensor([10, 900])
PROMPTS = ["a photo of a cat", "one small dog in the snow"]


def weights_hash(backbone: SDBackbone) -> str:
    state = {
        f"{part}.{k}": v
        for part in ("unet", "vae", "text_encoder")
        for k, v in getattr(backbone, part).state_dict().items()
    }
    return hash_tensors(state)


# --- parity --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_text_states_and_predictions_equal_diffusers(backbone: SDBackbone, pipe: Any, noisy: Tensor) -> None:
    theirs, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    ours = backbone.encode_prompts(PROMPTS)
    torch.testing.assert_close(ours.context, theirs, rtol=1e-6, atol=1e-6)
    expected = pipe.unet(noisy, T, theirs).sample
    torch.testing.assert_close(backbone.predict(noisy, T, ours), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_latents_and_pictures_equal_diffusers(backbone: SDBackbone, pipe: Any) -> None:
    images = normal((3, 3, 64, 64), 0, "images").clamp(-1, 1)
    ours, theirs = backbone.encode_images(images), pipe.vae.encode(images).latent_dist
    torch.testing.assert_close(ours.mean, theirs.mean * 0.18215, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.std, theirs.std * 0.18215, rtol=1e-5, atol=1e-6)
    noise = torch.ones_like(ours.mean)
    torch.testing.assert_close(ours.sample(noise), ours.mean + ours.std)
    expected = pipe.image_processor.postprocess(pipe.vae.decode(ours.mean / 0.18215).sample, "pt")
    torch.testing.assert_close(backbone.decode(ours.mean), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_sampling_equals_the_diffusers_pipeline(backbone: SDBackbone, pipe: Any) -> None:
    latents = normal((4, 8, 8), 7, "latents")[None]
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pt"}
    expected = pipe("a cat", negative_prompt="a dog", latents=latents, **settings).images
    ours = backbone.sample(["a cat"], seeds=[7], steps=4, guidance=5.0, negative="a dog")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# --- sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch(either: SDBackbone, eta: float) -> None:
    together = either.sample(PROMPTS, seeds=[3, 4], steps=3, eta=eta)
    alone = either.sample(PROMPTS[1:], seeds=[4], steps=3, eta=eta)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_denoise_yields_every_step_and_draws_nothing_global(either: SDBackbone) -> None:
    text = either.encode_prompts(PROMPTS)
    state = torch.get_rng_state()
    grid = {"seeds": [1, 2], "steps": 3, "guidance": 2.0, "eta": 1.0, "size": (32, 48)}
    steps = list(either.denoise(text, either.encode_prompts([""]), **grid))  # type: ignore[arg-type]
    assert [s.shape for s in steps] == [(2, 4, 4, 6)] * 3
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(s.requires_grad for s in steps)


def test_guidance_of_one_ignores_the_negative(backbone: SDBackbone) -> None:
    settings: dict[str, Any] = {"seeds": [1], "steps": 2, "guidance": 1.0}
    a = backbone.sample(["a cat"], negative="a dog", **settings)
    assert torch.equal(a, backbone.sample(["a cat"], negative="a hat", **settings))


@pytest.mark.parametrize("size", [(60, 64), (0, 64), (64, 4)])
def test_impossible_sizes_are_refused(backbone: SDBackbone, size: tuple[int, int]) -> None:
    with pytest.raises(LikenessError, match="multiples of 8"):
        backbone.sample(["a cat"], seeds=[0], steps=1, size=size)


def test_prompts_need_one_seed_each(backbone: SDBackbone) -> None:
    with pytest.raises(LikenessError, match="one seed for each prompt"):
        backbone.sample(PROMPTS, seeds=[1])


# --- embeddings ----------------------------------------------------------------------------------------


def test_an_embedding_equal_to_a_word_is_that_word(backbone: SDBackbone) -> None:
    row = backbone.token_embedding("cat")
    view = backbone.with_embeddings({"<thing>": row})
    got, expected = view.encode_prompts(["a <thing> hat"]), backbone.encode_prompts(["a cat hat"])
    assert torch.equal(got.context, expected.context)
    assert view.unet is backbone.unet
    assert "<thing>" not in backbone.embeddings


def test_gradients_reach_the_rows_and_nothing_else(backbone: SDBackbone) -> None:
    """Against finite differences, through text encoder and UNet, in double precision."""
    before = weights_hash(backbone)
    model = replace(backbone, unet=_double(backbone, "unet"), text_encoder=_double(backbone, "text_encoder"))
    model.dtype = torch.float64
    rows = normal((2, 32), 1, "rows").double().requires_grad_()
    noisy = normal((1, 4, 8, 8), 0, "noisy")

    def loss(rows_ND: Tensor) -> Tensor:
        text = model.encode_prompts(["a <thing> and <thing>"], embeddings={"<thing>": rows_ND})
        context = text.context
        return model.unet(noisy.double(), T[:1], context).sample.square().sum()  # type: ignore[no-any-return]

    (grad,) = torch.autograd.grad(loss(rows), rows)
    direction = normal((2, 32), 2, "direction").double()
    h = 1e-5
    with torch.no_grad():
        slope = (loss(rows + h * direction) - loss(rows - h * direction)) / (2 * h)
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-5, atol=1e-8)
    assert all(p.grad is None for p in model.text_encoder.parameters())
    assert weights_hash(backbone) == before


def _double(backbone: SDBackbone, part: Any) -> Any:
    return backbone.private_copy(part).module(part).double().requires_grad_(False)


# --- weights -------------------------------------------------------------------------------------------


def test_a_private_copy_trains_alone(backbone: SDBackbone, noisy: Tensor) -> None:
    before = weights_hash(backbone)
    lora = backbone.attach_lora(LoraSpec(), seed=1)
    copy = backbone.private_copy("unet", "text_encoder")
    lora.detach()
    assert not any(layer._forward_hooks for layer in copy.unet.modules())
    assert copy.vae is backbone.vae
    text = copy.encode_prompts(PROMPTS)
    torch.testing.assert_close(
        copy.predict(noisy, T, text), backbone.predict(noisy, T, backbone.encode_prompts(PROMPTS))
    )
    copy.predict(noisy, T, text).square().mean().backward()
    trained = [*copy.unet.parameters(), *copy.text_encoder.encoder.parameters()]  # type: ignore[union-attr,operator]
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        for p in trained:
            p.sub_(0.1 * p.grad)  # type: ignore[operator]
    assert weights_hash(backbone) == before
    assert not any(p.requires_grad for p in backbone.unet.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_patched_weights_are_taken_back_exactly(backbone: SDBackbone, noisy: Tensor, fails: bool) -> None:
    before, text = weights_hash(backbone), backbone.encode_prompts(PROMPTS)
    plain = backbone.predict(noisy, T, text)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    weight = dict(backbone.unet.named_parameters())[name]
    delta = normal(weight.shape, 5, "delta")
    try:
        with backbone.patched({f"unet.{name}": delta}, 0.5) as patched:
            torch.testing.assert_close(weight.detach(), patched.unet.get_parameter(name))
            assert (patched.predict(noisy, T, text) - plain).abs().max() > 1e-4
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert weights_hash(backbone) == before
    assert torch.equal(backbone.predict(noisy, T, text), plain)


@pytest.mark.parametrize("key", ["unet.nothing.weight", "vae.conv_in.weight", "unet.conv_in.bias"])
def test_a_delta_that_does_not_fit_changes_nothing(backbone: SDBackbone, key: str) -> None:
    before = weights_hash(backbone)
    good = {"unet.conv_in.weight": torch.ones(32, 4, 3, 3)}
    with pytest.raises(LikenessError, match=key), backbone.patched({**good, key: torch.ones(3)}):
        pass
    assert weights_hash(backbone) == before


# --- modes ---------------------------------------------------------------------------------------------


def test_checkpointing_gives_the_same_gradients(
    tiny_pipeline: Path, backbone: SDBackbone, noisy: Tensor
) -> None:
    base = BaseModel(source=str(tiny_pipeline), device="cpu", gradient_checkpointing=True)
    grads = []
    for model in (backbone, load_backbone(base)):
        lora = model.attach_lora(LoraSpec(conv=True, text_encoder=True), seed=1)
        with torch.no_grad():
            for p in lora.parameters().values():
                p.add_(0.05)
        rows = model.token_embedding("cat").requires_grad_()
        text = model.encode_prompts(["a <x>", "<x> hat"], embeddings={"<x>": rows})
        model.predict(noisy, T, text).square().mean().backward()
        grads.append([rows.grad, *(p.grad for p in lora.parameters().values())])
        lora.detach()
    assert all(g is not None for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_half_precision_keeps_trainables_and_results_in_fp32(tiny_pipeline: Path, noisy: Tensor) -> None:
    model = load_backbone(BaseModel(source=str(tiny_pipeline), device="cpu", dtype="bf16"))
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.text_encoder.parameters()} == {torch.float32}
    lora = model.attach_lora(LoraSpec(conv=True))
    assert {p.dtype for p in lora.parameters().values()} == {torch.float32}
    out = model.predict(noisy, T, model.encode_prompts(PROMPTS))
    out.square().mean().backward()
    assert out.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora.parameters().values())
    lora.detach()
    copy = model.private_copy("unet")
    assert {p.dtype for p in copy.unet.parameters()} == {torch.float32}
    again = copy.predict(noisy, T, copy.encode_prompts(PROMPTS))
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, out, rtol=0.05, atol=0.05 * float(out.detach().abs().max()))


@pytest.mark.parametrize("setting", ["channels_last", "offload"])
def test_layout_and_offload_change_no_numbers(
    tiny_pipeline: Path, backbone: SDBackbone, noisy: Tensor, setting: str
) -> None:
    base = replace(BaseModel(source=str(tiny_pipeline), device="cpu"), **{setting: True})
    model = load_backbone(base)
    with torch.no_grad():
        text = model.encode_prompts(PROMPTS)
        got, expected = model.predict(noisy, T, text), backbone.predict(noisy, T, text)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(noisy), backbone.decode(noisy), rtol=1e-4, atol=1e-5)


def test_everything_trains_after_a_host_in_inference_mode(tiny_pipeline: Path) -> None:
    """ComfyUI runs nodes in inference mode, where tensors are made that can never be trained with."""
    with torch.inference_mode():
        model = load_backbone(BaseModel(source=str(tiny_pipeline), device="cpu"))
        latents = model.encode_images(torch.rand(2, 3, 64, 64) * 2 - 1)
        view = model.with_embeddings({"<x>": torch.randn(1, 32)})
        text = view.encode_prompts(["a <x>", "a dog"])
        view.sample(["a <x>"], seeds=[0], steps=1)
        lora = view.attach_lora(LoraSpec())
        copy = view.private_copy("text_encoder")
        assert torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            noisy = view.add_noise(latents.mean, torch.randn(2, 4, 8, 8), T)
            view.predict(noisy, T, text).square().mean().backward()
            copy.encode_prompts(["a <x>"]).context.sum().backward()
            lora.detach()
    tensors = [latents.mean, latents.std, text.context, *view.embeddings.values(), *view.unet.parameters()]
    assert not any(t.is_inference() for t in tensors)
    assert all(p.grad is not None for p in lora.parameters().values())


def test_no_grad_stays_no_grad(backbone: SDBackbone, noisy: Tensor) -> None:
    lora = backbone.attach_lora(LoraSpec())
    with torch.inference_mode():
        text = backbone.encode_prompts(PROMPTS)
        assert not backbone.predict(noisy, T, text).requires_grad
    with torch.no_grad():
        assert not backbone.predict(noisy, T, TextStates(text.context)).requires_grad
    assert backbone.predict(noisy, T, text).requires_grad
    lora.detach()

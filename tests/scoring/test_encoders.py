from __future__ import annotations

import importlib
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.scoring import encoders
from likeness.scoring.encoders import CLIP_PREPROCESSING, DINO_PREPROCESSING, open_encoders, to_pil, to_tensor
from PIL import Image

SIZES = [(224, 224), (300, 400), (517, 389), (64, 64), (1000, 225), (223, 640)]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random, with structure at several scales, on exact 8-bit levels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 20, (height, width, 3))
    return to_tensor(Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8)))


@pytest.mark.parametrize("size", SIZES)
def test_clip_preprocessing_is_the_published_one(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    published = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    image = picture(*size)
    torch.testing.assert_close(CLIP_PREPROCESSING([image])[0], published(to_pil(image)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_dino_preprocessing_is_the_published_one(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    published = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image = picture(*size)
    torch.testing.assert_close(DINO_PREPROCESSING([image])[0], published(to_pil(image)), atol=1e-6, rtol=0)


def test_clip_preprocessing_agrees_with_transformers() -> None:
    from transformers import CLIPImageProcessor

    image = picture(300, 400)
    theirs = CLIPImageProcessor()(to_pil(image), return_tensors="pt")["pixel_values"][0]
    ours = CLIP_PREPROCESSING([image])[0]
    # torchvision's tensor resize rounds a few pixels to the next 8-bit level
    level = 1 / 255 / 0.26130258
    assert (ours - theirs).abs().max() < 1.01 * level
    assert (ours - theirs).abs().mean() < 5e-3


def test_a_score_does_not_depend_on_where_the_picture_is_kept(tmp_path: Path, dino_folder: Path) -> None:
    dino = encoders.dino_from_folder(dino_folder)
    in_memory = torch.rand(3, 50, 40, generator=torch.Generator().manual_seed(0))
    to_pil(in_memory).save(tmp_path / "picture.png")
    from_disk = to_tensor(Image.open(tmp_path / "picture.png"))
    assert torch.equal(dino.encode([in_memory]), dino.encode([from_disk]))


def test_features_are_the_models_own(clip_folder: Path, dino_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer, ViTModel

    both = open_encoders("standard", device="cpu", clip=str(clip_folder), dino=str(dino_folder))
    images = torch.stack([picture(48, 48, seed) for seed in range(3)])

    clip, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    pixels = encoders._resized(CLIP_PREPROCESSING, 32)(images)
    texts = ["a fish", "a much longer text about a fish"]
    with torch.no_grad():
        vision = clip.visual_projection(clip.vision_model(pixels).pooler_output)
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        hidden = clip.text_projection(clip.text_model(**tokens).pooler_output)
        cls = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False)(
            encoders._resized(DINO_PREPROCESSING, 32)(images)
        ).last_hidden_state[:, 0]

    for ours, theirs in [
        (both.clip.encode(images), vision),
        (both.clip.encode_text(texts), hidden),
        (both.dino.encode(images), cls),
    ]:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(ours)))


def test_a_row_does_not_depend_on_its_batch(clip_folder: Path) -> None:
    clip = encoders.clip_from_folder(clip_folder)
    images = [picture(40, 64, seed) for seed in range(4)]
    texts = ["one", "two words", "a prompt of five words", ""]
    alone = torch.cat([clip.encode([image]) for image in images])
    torch.testing.assert_close(clip.encode(images), alone, atol=1e-6, rtol=0)
    alone = torch.cat([clip.encode_text([text]) for text in texts])
    torch.testing.assert_close(clip.encode_text(texts), alone, atol=1e-6, rtol=0)


def test_a_long_prompt_is_cut_with_a_warning(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = encoders.clip_from_folder(clip_folder)
    assert torch.isfinite(clip.encode_text(["word " * 60, "short"])).all()
    assert "of a longer prompt is not scored" in caplog.text
    caplog.clear()
    clip.encode_text(["short"])
    assert not caplog.text


def test_ids_hashes_and_preprocessing_are_told(clip_folder: Path, dino_folder: Path) -> None:
    clip, dino = encoders.clip_from_folder(clip_folder), encoders.dino_from_folder(dino_folder, id="mine")
    assert (clip.id, dino.id) == ("clip-tiny", "mine")
    assert len(clip.weights_hash) == 64 and clip.weights_hash != dino.weights_hash
    assert clip.preprocessing.startswith("8-bit RGB, short side 32 bicubic, centre crop 32, mean 0.481455/")
    assert "short side 37 bicubic, centre crop 32" in dino.preprocessing  # 256 / 224 of 32


def test_toybox_judges_under_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub(torch.nn.Module):
        def encode_image(self, images_B3HW: torch.Tensor) -> torch.Tensor:
            assert images_B3HW.shape[1:] == (3, 64, 64) and 0 <= images_B3HW.min() <= images_B3HW.max() <= 1
            return images_B3HW.mean(dim=(2, 3))

        forward = encode_image  # as Identity's, which may be differentiated

        def encode_text(self, prompts: list[str]) -> torch.Tensor:
            return torch.tensor([[float(len(prompt)), 1.0, 1.0] for prompt in prompts])

    package = importlib.import_module("likeness.backbones.toybox")
    for part in ("clip", "identity"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(part.encode())
    models = SimpleNamespace(load_clip=Stub, load_identity=Stub, weights_dir=lambda: tmp_path)
    monkeypatch.setattr(package, "models", models, raising=False)
    monkeypatch.setattr(package, "world", SimpleNamespace(SIZE_PX=64), raising=False)
    both = open_encoders("toybox", device="cpu")
    assert (both.clip.id, both.dino.id) == ("toybox-clip", "toybox-identity")
    assert (both.clip.label, both.dino.label) == ("Toybox CLIP", "Toybox identity")
    assert both.clip.preprocessing == "8-bit RGB, short side 64 bicubic, centre crop 64"
    assert both.clip.weights_hash != both.dino.weights_hash
    features = both.dino.encode([picture(64, 64), picture(300, 200)])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    assert both.clip.encode_text(["a"]).shape == (1, 3)


def test_no_socket_is_opened(clip_folder: Path, dino_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    open_encoders("sd1", device="cpu", clip=str(clip_folder), dino=str(dino_folder))


class TestMissing:
    def test_says_what_to_put_where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
        monkeypatch.delenv("LIKENESS_MODELS", raising=False)
        with pytest.raises(LikenessError) as error:
            open_encoders("standard", device="cpu", roots=[tmp_path])
        for part in (encoders.CLIP_ID, str(tmp_path), "config.json", "model.safetensors", "never"):
            assert part in str(error.value)

    def test_finds_models_below_roots_and_in_the_local_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = tmp_path / "hub" / "models--facebook--dino-vits16" / "snapshots" / "abc"
        for folder in (snapshot, tmp_path / "root" / "clip-vit-base-patch32"):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path / "root"))
        assert encoders.find_model("facebook/dino-vits16") == snapshot
        assert encoders.find_model("openai/clip-vit-base-patch32").parent.name == "root"

    @pytest.mark.parametrize("damage", ["truncated", "pickle", "half", "config", "tokenizer"])
    def test_a_damaged_model_is_named(self, damage: str, tmp_path: Path, clip_folder: Path) -> None:
        import shutil

        folder = tmp_path / "damaged"
        shutil.copytree(clip_folder, folder)
        weights = folder / "model.safetensors"
        if damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:5000])
        elif damage == "pickle":
            torch.save({}, folder / "pytorch_model.bin")
            weights.unlink()
        elif damage == "half":
            from safetensors.torch import load_file, save_file

            vision = {k: v for k, v in load_file(weights).items() if not k.startswith("text_model")}
            save_file(vision, weights, metadata={"format": "pt"})
        elif damage == "config":
            (folder / "config.json").write_text("{ not json")
        else:
            (folder / "vocab.json").unlink()
            (folder / "merges.txt").unlink()
        with pytest.raises(LikenessError, match="damaged"):
            encoders.clip_from_folder(folder)


def test_open_clip_models_open_from_a_file(tmp_path: Path) -> None:
    library = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    tiny = library.get_model_config("ViT-B-32")
    tiny["embed_dim"] = 16
    tiny["vision_cfg"] |= {"layers": 1, "width": 64, "patch_size": 32}
    tiny["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    library.factory._MODEL_CONFIGS["likeness-tiny"] = tiny
    torch.manual_seed(0)
    model = library.create_model("likeness-tiny", load_weights=False).eval()
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")

    clip = encoders.clip_from_open_clip(f"open_clip:likeness-tiny={tmp_path / 'tiny.safetensors'}")
    image = picture(230, 250)
    with torch.no_grad():
        theirs = model.encode_image(CLIP_PREPROCESSING([image]), normalize=True)
        text = model.encode_text(library.get_tokenizer("likeness-tiny")(["a fish"]), normalize=True)
    torch.testing.assert_close(clip.encode([image]), theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.encode_text(["a fish"]), text, atol=1e-6, rtol=0)
    for wrong in ("open_clip:ViT-B-32", "open_clip:no-such-model=x.safetensors", "open_clip:ViT-B-32=x.pt"):
        with pytest.raises(LikenessError, match="does not name"):
            encoders.clip_from_open_clip(wrong)

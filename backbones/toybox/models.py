"""The seeing models of Toybox, each a torch module in eval mode with a small interface.

    load_clip()        encode_image(images), encode_text(prompts)     unit rows (B, 192)
    load_identity()    encode_image(images)                           unit rows (B, 128)
    load_preference()  score(images, prompts)                         (B,), higher is better
    load_detector()    detect(image, noun)                            [((x0, y0, x1, y1) in pixels, score)]
    load_judge()       facts(images)                                  a dict of facts per picture

``images`` are float (B, 3, H, W) in [0, 1], resized to 64 x 64 where they are not. The models that learn
(UNet, VAE, text encoder) lie in the same folder as an ordinary diffusers pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import LikenessError
from . import nets, world

Net = TypeVar("Net", bound=nn.Module)


def weights_dir() -> Path:
    """The folder of the shipped weights: a diffusers pipeline with the seeing models beside it."""
    return Path(__file__).parent / "weights"


class ToyClip(nn.Module):
    """The CLIP pair with its tokenizer. ``clip/`` holds the vision tower and the projections; the text tower
    is the pipeline's ``text_encoder/``, which is not stored twice."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        self.model = CLIPModel(CLIPConfig.from_pretrained(folder / "clip"))
        tensors = load_file(folder / "clip" / "model.safetensors") | load_file(
            folder / "text_encoder" / "model.safetensors"
        )
        missing, unknown = self.model.load_state_dict(
            {k: v.float() for k, v in tensors.items()}, strict=False
        )
        assert not [k for k in missing if "position_ids" not in k] and not [
            k for k in unknown if "position_ids" not in k
        ]
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")

    def image_states(self, images_BCHW: Tensor) -> Tensor:
        """The vision tower's pooled states before projection."""
        pixels = fit(images_BCHW) * 2 - 1
        return self.model.vision_model(pixels).pooler_output  # type: ignore[no-any-return]

    def text_states(self, prompts: list[str]) -> Tensor:
        """The text tower's pooled states before projection; too long prompts are cut."""
        words = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        return self.model.text_model(words["input_ids"].to(self.model.device)).pooler_output  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        return F.normalize(self.model.visual_projection(self.image_states(images_BCHW)), dim=-1)

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        return F.normalize(self.model.text_projection(self.text_states(prompts)), dim=-1)


class ToyPreference(nn.Module):
    """The preference head with the CLIP pair that it reads."""

    def __init__(self, clip: ToyClip, head: nets.Preference) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def score(self, images_BCHW: Tensor, prompts: list[str]) -> Tensor:
        """(B,): how well each picture matches its prompt. Differentiable in the images."""
        return self.head(self.clip.image_states(images_BCHW), self.clip.text_states(prompts))  # type: ignore[no-any-return]


def fit(images_BCHW: Tensor) -> Tensor:
    """Pictures of any size as 64 x 64."""
    if images_BCHW.shape[-2:] == (world.SIZE_PX, world.SIZE_PX):
        return images_BCHW
    return F.interpolate(images_BCHW, size=(world.SIZE_PX, world.SIZE_PX), mode="bilinear", antialias=True)


def load_clip(folder: Path | None = None) -> ToyClip:
    folder = _present(folder, "clip")
    return ToyClip(folder).eval()


def load_identity(folder: Path | None = None) -> nets.Identity:
    return _load(nets.Identity(), _present(folder, "identity") / "identity")


def load_judge(folder: Path | None = None) -> nets.Judge:
    return _load(nets.Judge(), _present(folder, "judge") / "judge")


def load_detector(folder: Path | None = None) -> nets.Detector:
    """Its trunk is the judge's."""
    folder = _present(folder, "detector")
    trunk = {f"trunk.{k}": v for k, v in load_judge(folder).trunk.state_dict().items()}
    return _load(nets.Detector(), folder / "detector", trunk)


def load_preference(folder: Path | None = None) -> ToyPreference:
    folder = _present(folder, "preference")
    return ToyPreference(load_clip(folder), _load(nets.Preference(), folder / "preference")).eval()


def _present(folder: Path | None, part: str) -> Path:
    folder = folder or weights_dir()
    if not (folder / part / "model.safetensors").exists():
        raise LikenessError(
            f"Toybox's '{part}' has no weights in {folder}",
            expected="weights that ship with the package",
            fix=f"Reinstall, or train it: likeness toybox train {part}",
        )
    return folder


def _load(net: Net, folder: Path, more: dict[str, Tensor] | None = None) -> Net:
    from safetensors.torch import load_file

    tensors = {**load_file(folder / "model.safetensors"), **(more or {})}
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return net.eval()

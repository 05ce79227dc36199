"""Rewards on a CLIP model: CLIP-T, PickScore, and the LAION aesthetic predictor."""
# Shapes: B pictures, D feature width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import LikenessError
from ...core.hashing import hash_file
from ..encoders import ImageEncoder, TextImageEncoder, load_clip_folder
from .reward import NetReward, same_length

PICK_SCORE_ID = "yuvalkirstain/PickScore_v1"
AESTHETIC_CLIP_ID = "openai/clip-vit-large-patch14"
AESTHETIC_FILES = ("sac+logos+ava1-l14-linearMSE.safetensors", "sac+logos+ava1-l14-linearMSE.pth")
AESTHETIC_HEAD = (768, 1024, 128, 64, 16, 1)


@dataclass(kw_only=True)
class ClipT:
    """Cosine of a picture and its prompt (Radford et al. 2021); satisfies ``Reward``."""

    encoder: TextImageEncoder
    differentiable: bool = True

    def __post_init__(self) -> None:
        self.id, self.weights_hash = f"clip_t:{self.encoder.id}", self.encoder.weights_hash
        self.label = f"{self.encoder.label}-T"

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        same_length(images_B3HW, prompts)
        image_BD = features(self.encoder, images_B3HW)
        text_BD = self.encoder.encode_text(list(prompts)).to(image_BD.device)
        return (image_BD * text_BD).sum(dim=-1)


@dataclass(kw_only=True)
class Identity:
    """Mean cosine of a picture with the subject's training photos, by the encoder in DINO's role.

    A prompt that does not name the subject has nothing to keep: its pictures score 1. Held-out photos never
    enter, since they are to judge. Satisfies ``Reward``.
    """

    encoder: ImageEncoder
    photos_MD: Tensor
    trigger: str
    differentiable: bool = True

    def __post_init__(self) -> None:
        self.id, self.weights_hash = f"identity:{self.encoder.id}", self.encoder.weights_hash
        self.label = (
            self.encoder.label if "identity" in self.encoder.label else f"{self.encoder.label} identity"
        )

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        same_length(images_B3HW, prompts)
        image_BD = features(self.encoder, images_B3HW)
        similar_B = (image_BD @ self.photos_MD.to(image_BD).T).mean(dim=1)
        named = [self.trigger.lower() in prompt.lower() for prompt in prompts]
        return torch.where(
            torch.tensor(named, device=similar_B.device), similar_B, torch.ones_like(similar_B)
        )


def features(encoder: ImageEncoder, images_B3HW: Tensor) -> Tensor:
    """Unit rows: with gradients where the pictures ask for them, as published evaluations do otherwise."""
    if images_B3HW.requires_grad and torch.is_grad_enabled():
        return encoder.embed(images_B3HW)
    return encoder.encode(images_B3HW)


def open_pick_score(folder: Path, *, device: str, batch_size: int) -> NetReward:
    """PickScore (Kirstain et al. 2023, arXiv:2305.01569): ``exp(logit_scale) * cos``, about 19 to 23.

    InstructBooth's tables show the plain cosine, a hundredth of it.
    """
    clip = load_clip_folder(folder, device)
    scale = float(clip.model.logit_scale.exp())

    def score(pixels_B3HW: Tensor, prompts: list[str]) -> Tensor:
        image_BD = F.normalize(clip.image(pixels_B3HW).float(), dim=-1)
        return scale * (image_BD * F.normalize(clip.text(prompts).float(), dim=-1)).sum(dim=-1)

    return NetReward(
        id=PICK_SCORE_ID,
        label="PickScore",
        weights_hash=clip.weights_hash,
        prepare=clip.prepare,
        net=score,
        device=device,
        batch_size=batch_size,
    )


def open_aesthetic(folder: Path, clip_folder: Path, *, device: str, batch_size: int) -> NetReward:
    """The LAION aesthetic predictor v2 (christophschuhmann/improved-aesthetic-predictor): 1 to 10, no text.

    ``folder`` holds its head, ``clip_folder`` CLIP ViT-L/14.
    """
    clip = load_clip_folder(clip_folder, device)
    path = aesthetic_file(folder)
    head = aesthetic_head(path).to(device)

    def score(pixels_B3HW: Tensor, prompts: list[str]) -> Tensor:
        out: Tensor = head(F.normalize(clip.image(pixels_B3HW).float(), dim=-1))[:, 0]
        return out

    return NetReward(
        id="aesthetic-v2",
        label="Aesthetic",
        weights_hash=hash_file(path),
        prepare=clip.prepare,
        net=score,
        device=device,
        batch_size=batch_size,
    )


def aesthetic_file(folder: Path) -> Path:
    found = next((folder / name for name in AESTHETIC_FILES if (folder / name).is_file()), None)
    if found is None:
        raise LikenessError(
            f"The aesthetic predictor is not in {folder}",
            expected=AESTHETIC_FILES[1],
            fix="Put it there from christophschuhmann/improved-aesthetic-predictor on GitHub.",
        )
    return found


def aesthetic_head(path: Path) -> nn.Sequential:
    """Its five linear layers, strictly: the file names them layers.0, 2, 4, 6 and 7, dropouts between."""
    from .image_reward import HEAD_PLACES, read_checkpoint

    widths = AESTHETIC_HEAD
    head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    places = {f"layers.{place}": str(n) for n, place in enumerate(HEAD_PLACES)}
    state = {_renamed(key, places): value for key, value in read_checkpoint(path).items()}
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise LikenessError(
            f"{path} is not the aesthetic predictor's head: {error}", expected=AESTHETIC_FILES[1]
        ) from error
    return head.eval().requires_grad_(False)


def _renamed(key: str, places: dict[str, str]) -> str:
    module, _, leaf = key.rpartition(".")
    return f"{places.get(module, module)}.{leaf}"


def open_toybox_preference(*, device: str, batch_size: int) -> NetReward:
    """Toybox's own model in ImageReward's role. Its scores say nothing beside ImageReward's."""
    from ...backbones.toybox import models, world
    from ..encoders import Preprocessing

    net: Any = models.load_preference().requires_grad_(False).to(device)
    return NetReward(
        id="toybox-preference",
        label="Toybox preference",
        weights_hash=hash_file(models.weights_dir() / "preference" / "model.safetensors"),
        prepare=Preprocessing(resize=world.SIZE_PX, crop=world.SIZE_PX),
        net=net.score,
        device=device,
        batch_size=batch_size,
    )

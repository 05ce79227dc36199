"""From a reward's name to the opened model: from files on this machine, or a word on what to put where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import LikenessError
from ...core.hashing import hash_file, hash_json
from ...subjects.subject import Photo
from ..encoders import CLIP_ID, DINO_ID, Encoders, find_model, open_encoders, to_tensor
from ..metrics import strip_identifier
from . import clip_family, image_reward
from .combined import Combined, CombinedSpec
from .reward import Reward, RewardSpec

IMAGE_REWARD_FOLDER, AESTHETIC_FOLDER = "ImageReward", "aesthetic"
AnySpec = RewardSpec | CombinedSpec


@dataclass(frozen=True, kw_only=True)
class About:
    """Whom the prompts are about, and who may look: what a reward needs to know of a run."""

    family: str = "toybox"  # of the backbone: chooses "auto" and the encoders
    trigger: str = ""  # "sks dog"
    class_noun: str = ""
    photos: Sequence[Photo] = ()  # training photos, for identity
    encoders: Encoders | None = None  # None: those of the family
    device: str = "cpu"
    roots: Sequence[Path] = ()

    def judges(self) -> Encoders:
        return self.encoders or open_encoders(self.family, device=self.device, roots=self.roots)


@dataclass(kw_only=True)
class WithoutIdentifier:
    """A reward that reads prompts as someone who never met the subject; satisfies ``Reward``."""

    reward: Reward
    trigger: str
    class_noun: str

    def __post_init__(self) -> None:
        self.id, self.label = self.reward.id, self.reward.label
        self.weights_hash, self.differentiable = self.reward.weights_hash, self.reward.differentiable

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        plain = [strip_identifier(prompt, self.trigger, self.class_noun) for prompt in prompts]
        return self.reward(images_B3HW, plain)


def open_reward(spec: AnySpec, about: About) -> Reward:
    """The opened model or models. Raises LikenessError when files are missing, saying what to put where."""
    if isinstance(spec, CombinedSpec):
        return Combined(spec, [open_reward(part.reward, about) for part in spec.parts])
    spec = named(spec, about.family)
    with torch.inference_mode(False):  # a host may run nodes in it; weights must outlive that
        reward = KINDS[spec.name].open(spec, about)
    if spec.name == "identity" or not spec.strip_identifier or not about.class_noun:
        return reward
    return WithoutIdentifier(reward=reward, trigger=about.trigger, class_noun=about.class_noun)


def reward_hash(spec: AnySpec, about: About) -> str:
    """Of the weights that ``open_reward`` would open, without opening them: part of a run's key."""
    if isinstance(spec, CombinedSpec):
        return hash_json([reward_hash(part.reward, about) for part in spec.parts])
    spec = named(spec, about.family)
    return hash_json([spec.name, KINDS[spec.name].hashes(spec, about)])


def named(spec: RewardSpec, family: str) -> RewardSpec:
    """With "auto" decided. LikenessError for a name that is none."""
    if spec.name == "auto":
        return replace(spec, name="toybox_preference" if family == "toybox" else "image_reward")
    if spec.name not in KINDS:
        raise LikenessError(f"There is no reward {spec.name!r}", expected=", ".join(["auto", *KINDS]))
    return spec


# --- where files are -----------------------------------------------------------------------------------


def plain_folder(source: str, name: str, roots: Sequence[Path]) -> Path:
    """A folder that is no transformers model: ``source``, or ``name`` below a known root."""
    if source:
        given = Path(source).expanduser()
        return given.parent if given.is_file() else given
    places = [root / name for root in roots]
    return next((place for place in places if place.is_dir()), places[0] if places else Path(name))


def _model_hashes(folder: Path) -> list[str]:
    return [hash_file(path) for path in sorted(folder.glob("*.safetensors"))]


def _image_reward_folder(spec: RewardSpec, about: About) -> Path:
    return plain_folder(spec.source, IMAGE_REWARD_FOLDER, about.roots)


def _toybox_hashes(*parts: str) -> list[str]:
    from ...backbones.toybox import models

    return [hash_file(models.weights_dir() / part / "model.safetensors") for part in parts]


def _clip_hashes(spec: RewardSpec, about: About) -> list[str]:
    if about.encoders is not None:
        return [about.encoders.clip.weights_hash]
    if about.family == "toybox":
        return _toybox_hashes("clip", "text_encoder")
    return _model_hashes(find_model(CLIP_ID, about.roots))


def _identity_hashes(spec: RewardSpec, about: About) -> list[str]:
    if about.encoders is not None:
        return [about.encoders.dino.weights_hash]
    if about.family == "toybox":
        return _toybox_hashes("identity")
    return _model_hashes(find_model(DINO_ID, about.roots))


# --- opening -------------------------------------------------------------------------------------------


def _identity(spec: RewardSpec, about: About) -> Reward:
    if not about.photos:
        raise LikenessError("The identity reward has no photos to compare with", fix="Plug in a subject")
    encoder = about.judges().dino
    photos_MD = torch.cat([encoder.encode(to_tensor(photo.open())[None]) for photo in about.photos])
    return clip_family.Identity(encoder=encoder, photos_MD=photos_MD, trigger=about.trigger)


def _aesthetic(spec: RewardSpec, about: About) -> Reward:
    clip = find_model(clip_family.AESTHETIC_CLIP_ID, about.roots)
    folder = plain_folder(spec.source, AESTHETIC_FOLDER, about.roots)
    return clip_family.open_aesthetic(folder, clip, device=about.device, batch_size=spec.batch_size)


@dataclass(frozen=True, kw_only=True)
class Kind:
    open: Callable[[RewardSpec, About], Reward]
    hashes: Callable[[RewardSpec, About], list[str]]  # of the weights that it would open
    what: str


KINDS: Mapping[str, Kind] = {
    "image_reward": Kind(
        open=lambda spec, about: image_reward.open_image_reward(
            _image_reward_folder(spec, about), device=about.device, batch_size=spec.batch_size
        ),
        hashes=lambda spec, about: [hash_file(image_reward.weights_file(_image_reward_folder(spec, about)))],
        what="ImageReward (Xu et al. 2023): trained on people's preferences; InstructBooth's reward",
    ),
    "pick_score": Kind(
        open=lambda spec, about: clip_family.open_pick_score(
            find_model(spec.source or clip_family.PICK_SCORE_ID, about.roots),
            device=about.device,
            batch_size=spec.batch_size,
        ),
        hashes=lambda spec, about: _model_hashes(
            find_model(spec.source or clip_family.PICK_SCORE_ID, about.roots)
        ),
        what="PickScore (Kirstain et al. 2023): trained on users' choices",
    ),
    "clip_t": Kind(
        open=lambda spec, about: clip_family.ClipT(encoder=about.judges().clip),
        hashes=_clip_hashes,
        what="CLIP-T: cosine of picture and prompt",
    ),
    "aesthetic": Kind(
        open=_aesthetic,
        hashes=lambda spec, about: [
            hash_file(clip_family.aesthetic_file(plain_folder(spec.source, AESTHETIC_FOLDER, about.roots)))
        ],
        what="The LAION aesthetic predictor: how pretty, whatever the prompt says",
    ),
    "identity": Kind(
        open=_identity,
        hashes=_identity_hashes,
        what="Similarity to the subject's training photos (DINO)",
    ),
    "toybox_preference": Kind(
        open=lambda spec, about: clip_family.open_toybox_preference(
            device=about.device, batch_size=spec.batch_size
        ),
        hashes=lambda spec, about: _toybox_hashes("preference", "clip", "text_encoder"),
        what="Toybox's own model in ImageReward's role",
    ),
}

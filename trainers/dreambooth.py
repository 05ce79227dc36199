"""DreamBooth with prior preservation (Ruiz et al. 2022, arXiv:2208.12242, eq. 2).

    L = |eps_hat - eps|^2  +  weight * |eps_hat_prior - eps_prior|^2

The subject is "a photo of sks fish", its class "a photo of a fish". Either low-rank adapters train (LoRA, Hu
et al. 2021, arXiv:2106.09685) or, as in the paper, every weight of the UNet.
"""
# Shapes: B batch (instance rows first, then class rows), C latent channels, H W latent size.

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, BaseModel, Lora, LoraSpec, TextStates
from ..concepts.concept import Artifact
from ..scoring.encoders import Encoders
from ..subjects.subject import Subject
from ..subjects.views import Crop
from .data import (
    LatentCache,
    Rows,
    cache_latents,
    cache_texts,
    draw_rows,
    drawn_views,
    epoch_of,
    name_subject,
    part_of,
    photo_views,
    pick,
    shuffled,
)
from .entry import learn
from .events import Event, Phase
from .method import LoopConfig, require
from .monitor import HeldOutMonitor
from .objectives import LossTerms, min_snr_weight, prior_preservation_loss
from .prior import PriorPreservation, class_images, load_class_images

# What InstructBooth's text does not say of its first stage, and what stands in for it: it is "built upon"
# diffusers' DreamBooth example.
LEFT_OPEN: Mapping[str, str] = {
    "steps": "800: diffusers' README with prior preservation",
    "schedule": "constant, without warmup: diffusers' README",
    "max_grad_norm": "1: diffusers' script",
    "crop": "random: diffusers' script",
    "flip": "none: diffusers' script",
    "min_snr_gamma": "0: not mentioned",
}


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(LoopConfig):
    steps: int = 500  # diffusers' train_dreambooth_lora.py
    batch_size: int = 4  # instance rows; as many class rows come on top. diffusers' default
    learning_rate: float = 5e-4  # diffusers' default for LoRA
    train: Literal["lora", "unet"] = "lora"  # "unet" trains every weight of it, as the paper
    rank: int = 4  # diffusers' default
    alpha: float = 4.0  # equal to rank: a scale of 1, as diffusers
    conv: bool = False  # LoRA also on the UNet's convolutions
    text_encoder: bool = False  # LoRA also on the text encoder's attention
    min_snr_gamma: float = 0.0  # 5 in Hang et al. 2023; 0 turns it off
    prompt: str = "a photo of {}"  # of photos without a caption
    use_description: bool = False  # "sks triangular plushie": InstructBooth's for rare-looking subjects
    use_captions: bool = True  # InstructBooth and Gen4Gen train on captions; the paper has one prompt
    crop: Crop = "random"  # diffusers' default; the latents of a few crops are cached
    flip: bool = False  # as the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.train in ("lora", "unet"), "train", self.train, "lora or unet")
        require(1 <= self.rank <= 256, "rank", self.rank, "between 1 and 256")
        require(self.alpha > 0, "alpha", self.alpha, "more than 0")
        require(self.min_snr_gamma >= 0, "min_snr_gamma", self.min_snr_gamma, "0 or more")
        require("{}" in self.prompt, "prompt", self.prompt, "a text with {} where the subject stands")
        require(
            self.train == "lora" or not (self.text_encoder or self.conv),
            "train",
            self.train,
            "lora, where text_encoder or conv is on",
        )

    @classmethod
    def paper(cls, **changes: Any) -> DreamBoothConfig:
        """The paper's own way, with its values for Stable Diffusion: every weight, one row of each kind."""
        values = {
            "train": "unet",
            "steps": 1000,  # about 200 per photo, section 4
            "batch_size": 1,
            "learning_rate": 5e-6,  # the paper's supplement, for Stable Diffusion
            "use_captions": False,
        }
        return cls(**{**values, **changes})

    @classmethod
    def instructbooth(cls, **changes: Any) -> DreamBoothConfig:
        """InstructBooth's first stage (arXiv:2312.03011, appendix B), with 200 class images. What it does not
        say: see ``LEFT_OPEN``."""
        values = {
            "train": "unet",  # section 5.1: "we fine-tune the entire U-Net"
            "steps": 800,  # left open
            "batch_size": 1,  # appendix B: one photo and one class image
            "learning_rate": 2e-5,  # appendix B
            "adam_beta2": 0.99,  # appendix B
            "weight_decay": 1e-2,  # appendix B
            "use_description": True,  # section 4.1; without one in the subject it changes nothing
            "use_captions": False,
            "prompt": "a {}",  # section 4.1: "a [identifier] [description] [class noun]"
        }
        return cls(**{**values, **changes})

    @classmethod
    def practical(cls, family: str = "toybox", **changes: Any) -> DreamBoothConfig:
        """Quick and strong for a family: measured on Toybox; for SD the values of diffusers' README."""
        return cls(**{**PRACTICAL.get(family, PRACTICAL["sd1"]), **changes})


PRACTICAL: Mapping[str, Mapping[str, Any]] = {
    "toybox": {
        "steps": 300,
        "batch_size": 8,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "rank": 8,
        "alpha": 8.0,
    },
    # diffusers' README and README_sdxl
    "sd1": {"steps": 500, "batch_size": 1, "learning_rate": 1e-4, "rank": 4, "alpha": 4.0},
    "sdxl": {
        "steps": 500,
        "batch_size": 1,
        "accumulation": 4,
        "learning_rate": 1e-4,
        "rank": 4,
        "alpha": 4.0,
    },
}


@dataclass(frozen=True)
class Batch:
    rows: Rows
    text: TextStates | list[str]  # states, or the prompts where the text encoder learns
    is_prior_B: Tensor  # on the CPU: a mask on the GPU would make every step wait for it


class DreamBooth:
    """The method for ``loop.train``. The base model is changed in ``prepare`` and given back in ``close``."""

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        config: DreamBoothConfig,
        *,
        seed: int,
        prior: PriorPreservation | None,
        base: BaseModel,
        runs_root: Path,
    ) -> None:
        self.base_backbone = self.backbone = backbone
        self.subject, self.config, self.seed, self.prior = subject, config, seed, prior
        self.base, self.runs_root = base, runs_root
        told = [subject.identifier, subject.description * config.use_description, subject.class_noun]
        self.trigger = " ".join(word for word in told if word)
        self.lora: Lora | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        if self.lora is not None:
            return self.lora.parameters()
        return {f"unet.{name}": p for name, p in self.backbone.module("unet").named_parameters()}

    # --- once -------------------------------------------------------------------------------------
    def prepare(self) -> Iterator[Phase]:
        """Class images by the untouched model, latents, text states; only then what is trained."""
        instance = yield from cache_latents(self.backbone, self.instance_views())
        prompts = [self.instance_prompt(photo) for photo in instance.source_N]
        self.cache, self.num_instance = instance, len(instance)
        self.epoch = epoch_of(instance, self.subject.photos)
        if self.prior is not None:
            prior = yield from self.class_cache(self.prior, instance)
            self.cache = instance.joined(prior)
            prompts += [self.prior.class_prompt(self.subject.class_noun)] * len(prior)
        self.prompts = prompts
        self.texts = None if self.config.text_encoder else cache_texts(self.backbone, prompts)
        self.put_on()

    def instance_views(self) -> list[tuple[int, Tensor]]:
        config = self.config
        return photo_views(
            self.subject.photos, self.backbone, crop=config.crop, flip=config.flip, seed=self.seed
        )

    def instance_prompt(self, photo: int) -> str:
        caption = self.subject.photos[photo].caption if self.config.use_captions else None
        return name_subject(caption or self.config.prompt, self.trigger, self.subject)

    def class_cache(
        self, prior: PriorPreservation, instance: LatentCache
    ) -> Generator[Phase, None, LatentCache]:
        """Of every class image in every size of the photos: both pass the model in one batch."""
        paths = yield from class_images(
            prior, self.backbone, self.subject.class_noun, runs_root=self.runs_root, dtype=self.base.dtype
        )
        images = load_class_images(paths, instance.sizes(), self.backbone.latent_scale)
        return (yield from cache_latents(self.backbone, images))

    def put_on(self) -> None:
        config = self.config
        if config.train == "unet":
            self.backbone = self.base_backbone.private_copy("unet")
            return
        spec = LoraSpec(
            rank=config.rank, alpha=config.alpha, conv=config.conv, text_encoder=config.text_encoder
        )
        self.lora = self.backbone.attach_lora(spec, seed=self.seed)

    # --- every step -------------------------------------------------------------------------------
    def batch(self, index: int) -> Batch:
        """Instance rows, then as many class rows."""
        num, cache = self.config.batch_size, self.cache
        views = drawn_views(cache, self.epoch, num, index, self.seed, "photo")
        if self.prior is not None:
            class_views = cache.of_size(cache.size(views[0]), range(self.num_instance, len(cache)))
            views = views + shuffled(class_views, num, index, self.seed, "class image")
        rows = draw_rows(self.backbone, cache, views, self.seed, index)
        text = [self.prompts[v] for v in views] if self.texts is None else pick(self.texts, views)
        return Batch(rows, text, torch.tensor(views) >= self.num_instance)

    def part(self, batch: Batch, rows: slice) -> Batch:
        text = batch.text[rows] if isinstance(batch.text, list) else part_of(batch.text, rows)
        return Batch(batch.rows.part(rows), text, batch.is_prior_B[rows])

    def loss(self, batch: Batch) -> LossTerms:
        model, rows = self.backbone, batch.rows
        text = model.encode_prompts(batch.text) if isinstance(batch.text, list) else batch.text
        noisy_BCHW = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_BCHW = model.predict(noisy_BCHW, rows.t_B, text)
        target_BCHW = model.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        weight = self.prior.weight if self.prior is not None else 0.0
        return prior_preservation_loss(
            pred_BCHW, target_BCHW, batch.is_prior_B, weight, self.min_snr_weights(rows.t_B)
        )

    def min_snr_weights(self, t_B: Tensor) -> Tensor | None:
        gamma = self.config.min_snr_gamma
        return min_snr_weight(self.backbone.snr(t_B), gamma, self.backbone.prediction) if gamma else None

    def after_step(self) -> None:
        """Nothing."""

    # --- the result -------------------------------------------------------------------------------
    def learned(self) -> Backbone:
        return self.backbone

    def export(self) -> Artifact:
        lora = self.lora is not None
        return Artifact(
            kind="lora" if lora else "delta",
            tensors=self.lora_tensors() if lora else self.deltas(),
            trigger=self.trigger,
            class_noun=self.subject.class_noun,
            metadata={"rank": self.config.rank, "alpha": self.config.alpha} if lora else {},
        )

    def lora_tensors(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.parameters().items()}

    def deltas(self) -> dict[str, Tensor]:
        """Trained minus base, fp32."""
        base = dict(self.base_backbone.module("unet").named_parameters())
        return {
            name: (p.detach() - base[name.removeprefix("unet.")].detach().float()).cpu()
            for name, p in self.parameters().items()
        }

    def close(self) -> None:
        if self.lora is not None:
            self.lora.detach()
            self.lora = None
        self.backbone = self.base_backbone


def train_dreambooth(
    base: BaseModel,
    subject: Subject,
    config: DreamBoothConfig,
    *,
    runs_root: Path,
    seed: int = 0,
    prior: PriorPreservation | None = None,
    monitor: HeldOutMonitor | None = None,
    encoders: Encoders | None = None,
) -> Generator[Event, None, None]:
    """Learn a subject as weights. Ends with ``Done``, whose concept is a LoRA, or a delta of the whole UNet.

    Without ``prior`` there is no prior preservation. ``encoders`` judge for the ``monitor``; None opens those
    of the base model's family.
    """

    told: dict[str, Any] = {"subject": subject, "config": config, "seed": seed, "prior": prior, "base": base}
    return learn(
        "dreambooth",
        partial(DreamBooth, **told, runs_root=Path(runs_root)),
        base,
        subject,
        config,
        runs_root=Path(runs_root),
        seed=seed,
        monitor=monitor,
        encoders=encoders,
        prior=prior,
    )

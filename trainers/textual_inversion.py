"""Textual Inversion: a new word for the subject, and nothing else learns (Gal et al. 2022, arXiv:2208.01618).

    v* = argmin_v  E |eps - eps_theta(z_t, t, c(prompt with v))|^2          (eq. 2)

Only the placeholder's rows of the token embedding train, as a parameter of their own.
Differs: the authors' code optimises the whole vocabulary and puts the other rows back after every step; the
result is the same, without AdamW's state for 49,408 rows and without weight decay on any.
"""
# Shapes: B batch, N vectors, D text width, C latent channels, H W latent size.

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, BaseModel
from ..backbones.tokens import initial_row
from ..concepts.concept import Artifact
from ..concepts.words import embedding_tensors
from ..core.errors import LikenessError
from ..core.paths import slug
from ..core.randomness import generator
from ..scoring.encoders import Encoders
from ..subjects.subject import Subject
from ..subjects.views import Crop
from .attractor import (
    PAPER_SETTINGS,
    Attractor,
    Curriculum,
    Lesson,
    name_of,
    no_division,
    require_pairs,
    require_squares,
)
from .data import (
    Rows,
    cache_latents,
    draw_rows,
    drawn_views,
    epoch_of,
    name_subject,
    photo_masks,
    photo_views,
)
from .entry import learn
from .events import Event, Phase
from .method import LoopConfig, require
from .monitor import HeldOutMonitor
from .objectives import LossTerms, clip_norm, denoising_loss

# The paper's appendix lists these (after CLIP's ImageNet templates); the authors' code has the same 27.
TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig(LoopConfig):
    steps: int = 5000  # section 4, implementation details
    batch_size: int = 8  # the paper: 4 on each of 2 GPUs
    learning_rate: float = 0.04  # the paper: 0.005 times batch and GPUs
    weight_decay: float = 0.0  # Differs: 1e-2 in the authors' code, where it also shrinks the trained rows
    max_grad_norm: float = 0.0  # the authors' code does not clip
    num_vectors: int = 1  # the paper's choice; more vectors hold more and edit worse (section 5.3)
    initial_words: str | None = None  # None: the class noun. The paper: one coarse word
    max_norm: float = 0.0  # longest a row may get, in initial norms; 0 leaves it free, as the paper
    use_captions: bool = True  # of photos that have one; the others get a random template per step
    crop: Crop = "center"  # "resize" is the authors' default, which distorts
    flip: bool = False  # Differs: 0.5 in the authors' code; wrong for subjects with text or a side
    attractor: Attractor | None = None  # makes it TI+

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.num_vectors <= 64, "num_vectors", self.num_vectors, "between 1 and 64")
        require(self.max_norm >= 0, "max_norm", self.max_norm, "0 or more")
        require_squares(self.attractor, self.crop)

    @classmethod
    def paper(cls, **changes: Any) -> TextualInversionConfig:
        """Section 4 of the paper, for full-size latent diffusion; with an attractor, of that paper."""
        return cls(**{**(PAPER_SETTINGS if changes.get("attractor") else {}), **changes})

    @classmethod
    def practical(cls, family: str = "toybox", **changes: Any) -> TextualInversionConfig:
        """Quick and strong for a family: measured on Toybox; for SD the values of diffusers' README."""
        return cls(**{**PRACTICAL.get(family, PRACTICAL["sd1"]), **changes})


PRACTICAL: Mapping[str, Mapping[str, Any]] = {
    "toybox": {
        "steps": 300,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "num_vectors": 2,
    },
    "sd1": {  # diffusers' README: 5e-4, scaled by an effective batch of 4
        "steps": 3000,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "num_vectors": 1,
    },
    "sdxl": {  # diffusers' README: 5e-4, scaled by accumulation over 4
        "steps": 500,
        "batch_size": 1,
        "accumulation": 4,
        "learning_rate": 2e-3,
        "num_vectors": 1,
    },
}


def placeholder(subject: Subject) -> str:
    """``<name>``: the new word."""
    return f"<{slug(subject.name).replace(' ', '-')}>"


class TextualInversion:
    """The method for ``loop.train``. Nothing of the base model is touched."""

    def __init__(
        self, backbone: Backbone, subject: Subject, config: TextualInversionConfig, *, seed: int
    ) -> None:
        self.backbone, self.subject, self.config, self.seed = backbone, subject, config, seed
        self.trigger = placeholder(subject)
        self.refuse_known_word()
        start_D = initial_row(backbone, config.initial_words or subject.class_noun).float()
        self.rows_ND = nn.Parameter(start_D.repeat(config.num_vectors, 1).to(backbone.device))
        self.max_norm = config.max_norm * float(start_D.norm())

    def refuse_known_word(self) -> None:
        if self.trigger in self.backbone.embeddings or len(self.backbone.token_ids(self.trigger)) == 1:
            raise LikenessError(
                f"The placeholder {self.trigger} is in the model's vocabulary already.",
                expected="a word that the model does not know",
                fix="Give the subject another name.",
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"rows": self.rows_ND}

    def prepare(self) -> Iterator[Phase]:
        config = self.config
        views = photo_views(
            self.subject.photos, self.backbone, crop=config.crop, flip=config.flip, seed=self.seed
        )
        self.cache = yield from cache_latents(self.backbone, views)
        self.epoch = epoch_of(self.cache, self.subject.photos)

    def batch(self, index: int) -> tuple[Rows, list[str]]:
        """Rows and their prompts."""
        views = drawn_views(self.cache, self.epoch, self.config.batch_size, index, self.seed, "photo")
        rows = draw_rows(self.backbone, self.cache, views, self.seed, index)
        templates = torch.randint(
            len(TEMPLATES), (len(views),), generator=generator(self.seed, "template", index)
        )
        return rows, [
            self.prompt(self.cache.source_N[view], template)
            for view, template in zip(views, templates.tolist(), strict=True)
        ]

    def prompt(self, photo: int, template: int) -> str:
        caption = self.subject.photos[photo].caption if self.config.use_captions else None
        return name_subject(caption or TEMPLATES[template], self.trigger, self.subject)

    def part(self, batch: tuple[Rows, list[str]], rows: slice) -> tuple[Rows, list[str]]:
        return batch[0].part(rows), batch[1][rows]

    def loss(self, batch: tuple[Rows, list[str]]) -> LossTerms:
        rows, prompts = batch
        model = self.backbone
        text = model.encode_prompts(prompts, embeddings={self.trigger: self.rows_ND})
        noisy_BCHW = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_BCHW = model.predict(noisy_BCHW, rows.t_B, text)
        target_BCHW = model.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        loss = denoising_loss(pred_BCHW, target_BCHW)
        return LossTerms(loss, {"denoising": loss})

    def after_step(self) -> None:
        if self.max_norm:
            self.rows_ND.copy_(clip_norm(self.rows_ND, self.max_norm))

    def learned(self) -> Backbone:
        return self.backbone.with_embeddings({self.trigger: self.rows_ND.detach().clone()})

    def export(self) -> Artifact:
        return Artifact(
            kind="embedding",
            tensors=embedding_tensors(self.backbone, self.rows_ND),
            trigger=self.trigger,
            class_noun=self.subject.class_noun,
            metadata={},
        )

    def close(self) -> None:
        """Nothing was borrowed."""


class TextualInversionPlus(TextualInversion):
    """TI+: two words train, v* and A*, by equation 6 of ``attractor.py``; at inference A* is left out.

    Captions are left aside: the paper's pools say what v* and A* are.
    """

    # Shapes: W attractor words, R rows (a photo under a prompt).

    def __init__(
        self, backbone: Backbone, subject: Subject, config: TextualInversionConfig, *, seed: int
    ) -> None:
        super().__init__(backbone, subject, config, seed=seed)
        assert config.attractor is not None
        self.attractor = config.attractor
        batches = config.steps * config.accumulation
        self.curriculum = Curriculum(
            self.attractor, subject, word=self.trigger, seed=seed, num_batches=batches
        )
        self.words = list(dict.fromkeys(self.curriculum.words))
        start_D = initial_row(backbone, self.attractor.initial_words).float()
        start_WND = start_D.repeat(len(self.words), config.num_vectors, 1)
        self.attractor_WND = nn.Parameter(start_WND.to(backbone.device))
        self.attractor_max_norm = config.max_norm * float(start_D.norm())

    def parameters(self) -> dict[str, nn.Parameter]:
        return {**super().parameters(), "attractor": self.attractor_WND}

    def prepare(self) -> Iterator[Phase]:
        config = self.config
        require_pairs(self.attractor, self.subject, config.batch_size)
        yield from super().prepare()
        masks = photo_masks(
            self.subject.photos, self.backbone, crop=config.crop, flip=config.flip, seed=self.seed
        )
        self.curriculum.place_masks(masks, self.cache)

    def batch(self, index: int) -> Lesson:  # type: ignore[override]  # rows and prompts, and more
        rows, _ = super().batch(index)
        return self.curriculum.lesson(rows, index)

    def part(self, batch: Lesson, rows: slice) -> Lesson:  # type: ignore[override]
        raise no_division()

    def loss(self, lesson: Lesson) -> LossTerms:  # type: ignore[override]
        rows, model = lesson.rows, self.backbone
        text = model.encode_prompts(lesson.prompts, embeddings=self.vectors())
        noisy_RCHW = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_RCHW = model.predict(noisy_RCHW, rows.t_B, text)
        target_RCHW = model.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        return self.curriculum.loss(lesson, pred_RCHW, target_RCHW, text.context, text.words)

    def vectors(self) -> dict[str, Tensor]:
        return {self.trigger: self.rows_ND, **dict(zip(self.words, self.attractor_WND, strict=True))}

    def after_step(self) -> None:
        super().after_step()
        if self.attractor_max_norm:
            self.attractor_WND.copy_(clip_norm(self.attractor_WND, self.attractor_max_norm))

    def learned(self) -> Backbone:
        """Prompts may name A* too, as the viewer does."""
        return self.backbone.with_embeddings({w: v.detach().clone() for w, v in self.vectors().items()})

    def export(self) -> Artifact:
        subject = super().export()
        beside = {
            name_of(number, len(self.words)): replace(
                subject, trigger=word, class_noun=self.attractor.initial_words,
                tensors=embedding_tensors(self.backbone, rows_ND),
            )
            for number, (word, rows_ND) in enumerate(zip(self.words, self.attractor_WND, strict=True))
        }  # fmt: skip
        return replace(subject, beside=beside)


def train_textual_inversion(
    base: BaseModel,
    subject: Subject,
    config: TextualInversionConfig,
    *,
    runs_root: Path,
    seed: int = 0,
    monitor: HeldOutMonitor | None = None,
    encoders: Encoders | None = None,
) -> Generator[Event, None, None]:
    """Learn a subject as a new word. Ends with ``Done``, whose concept is an embedding file.

    ``encoders`` judge for the ``monitor``; None opens those of the base model's family.
    """
    kind = TextualInversion if config.attractor is None else TextualInversionPlus
    return learn(
        "textual_inversion",
        partial(kind, subject=subject, config=config, seed=seed),
        base,
        subject,
        config,
        runs_root=runs_root,
        seed=seed,
        monitor=monitor,
        encoders=encoders,
    )

"""TI+: Textual Inversion with the attractor plugged in (see ``attractor.py``).

Two words train, v* and A*; the losses are equation 6's. At inference A* is left out of prompts.
"""
# Shapes: B batch, W attractor words, N vectors, D text width.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from ..backbones.base import Backbone
from ..backbones.tokens import initial_row
from ..concepts.concept import Artifact
from ..concepts.words import embedding_tensors
from ..subjects.subject import Subject
from .attractor import Curriculum, Lesson, no_division, require_pairs
from .data import photo_masks
from .events import Phase
from .objectives import LossTerms, clip_norm
from .textual_inversion import TextualInversion, TextualInversionConfig


class TextualInversionPlus(TextualInversion):
    """The method for ``loop.train``. Captions are left aside: the paper's pools say what v* and A* are."""

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
            self.subject.photos, self.backbone.image_size, crop=config.crop, flip=config.flip, seed=self.seed
        )
        self.curriculum.place_masks(masks, self.cache.source_N, self.cache.latents.mean)

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


def name_of(number: int, total: int) -> str:
    """What an attractor's file is called after the subject's."""
    return "attractor" if total == 1 else f"attractor-{number}"

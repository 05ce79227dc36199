"""NeTI+: NeTI with the attractor plugged in (see ``attractor.py``).

Two mappers train, M_v and M_A, and both words have their bypass. The contrastive features are not told in the
paper: here a word's state as the keys see it, averaged over the layers.
"""
# Shapes: R rows, S cross-attention layers, L tokens, D text width.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from ..backbones.base import Backbone, LayerStates, WordMapper
from ..concepts.concept import Artifact
from ..subjects.subject import Subject
from .attractor import Curriculum, Lesson, no_division, require_pairs
from .data import photo_masks
from .events import Phase
from .neti import Dropped, NeTI, NeTIConfig, frozen, tensors_of
from .objectives import LossTerms
from .textual_inversion_plus import name_of

PlusBatch = tuple[Lesson, "Tensor | None"]


class NeTIPlus(NeTI):
    """The method for ``loop.train``. Captions are left aside: the paper's pools say what v* and A* are."""

    def __init__(self, backbone: Backbone, subject: Subject, config: NeTIConfig, *, seed: int) -> None:
        super().__init__(backbone, subject, config, seed=seed)
        assert config.attractor is not None
        self.attractor = config.attractor
        batches = config.steps * config.accumulation
        self.curriculum = Curriculum(
            self.attractor, subject, word=self.trigger, seed=seed, num_batches=batches
        )
        self.attractors = {
            word: self.fresh_mapper(self.attractor.initial_words, word)
            for word in dict.fromkeys(self.curriculum.words)
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        more = {
            f"attractor.{number}.{name}": p
            for number, mapper in enumerate(self.attractors.values())
            for name, p in mapper.named_parameters()
        }
        return {**super().parameters(), **more}

    def prepare(self) -> Iterator[Phase]:
        config = self.config
        require_pairs(self.attractor, self.subject, config.batch_size)
        yield from super().prepare()
        masks = photo_masks(
            self.subject.photos, self.backbone.image_size, crop=config.crop, flip=config.flip, seed=self.seed
        )
        self.curriculum.place_masks(masks, self.cache.source_N, self.cache.latents.mean)

    def batch(self, index: int) -> PlusBatch:  # type: ignore[override]
        """A photo's rows share their dropout, as they share their noise: v* is one word in a step."""
        rows, _, keep_SB = super().batch(index)
        lesson = self.curriculum.lesson(rows, index)
        return lesson, None if keep_SB is None else keep_SB[:, lesson.photo_R.cpu()]

    def part(self, batch: PlusBatch, rows: slice) -> PlusBatch:  # type: ignore[override]
        raise no_division()

    def loss(self, batch: PlusBatch) -> LossTerms:  # type: ignore[override]
        lesson, keep_SR = batch
        rows, model = lesson.rows, self.backbone
        mappers = {self.trigger: self.mapper, **self.attractors}
        words: dict[str, WordMapper] = {word: Dropped(mapper, keep_SR) for word, mapper in mappers.items()}
        text = model.encode_prompts(lesson.prompts, mappers=words)
        assert text.at is not None
        states = text.at(rows.t_B)  # once, for the UNet and for the features

        def again(t_B: Tensor) -> LayerStates:
            return states

        noisy_RCHW = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_RCHW = model.predict(noisy_RCHW, rows.t_B, replace(text, at=again))
        target_RCHW = model.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        return self.curriculum.loss(lesson, pred_RCHW, target_RCHW, states.keys.mean(0), text.words)

    def learned(self) -> Backbone:
        """Prompts may name A* too, as the viewer does."""
        return super().learned().with_mappers({w: frozen(m) for w, m in self.attractors.items()})

    def export(self) -> Artifact:
        subject = super().export()
        beside = {
            name_of(number, len(self.attractors)): replace(
                subject, trigger=word, class_noun=self.attractor.initial_words, tensors=tensors_of(mapper)
            )
            for number, (word, mapper) in enumerate(self.attractors.items())
        }
        return replace(subject, beside=beside)

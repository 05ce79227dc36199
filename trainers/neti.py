"""NeTI: a word that is another one at every timestep and layer (Alaluf et al. 2023, arXiv:2305.15391).

    M* = argmin_M  E |eps - eps_theta(z_t, t, c(prompt, M(t, l)))|^2          (at every layer l)

The mapper M (``backbones/mapper.py``) gives the word's token embedding and a bypass that only the values of
cross-attention see. With ``mapper="table"`` it is XTI (Voynov et al. 2023, arXiv:2303.09522): a plain vector
for every layer. The prompts of all layers pass the text encoder as one batch.
"""
# Shapes: B batch, S cross-attention layers, D text width, C latent channels, H W latent size.

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, BaseModel, LayerStates, WordMapper, WordRows
from ..backbones.mapper import HIDDEN, LayerTable, Mapper, SpaceTimeMapper, mapper_from_tensors
from ..backbones.tokens import initial_row
from ..concepts.concept import Artifact
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
from .data import Rows, photo_masks
from .entry import learn
from .events import Event, Phase
from .method import LoopConfig, require
from .monitor import HeldOutMonitor
from .objectives import LossTerms, denoising_loss
from .textual_inversion import TextualInversion, placeholder


@dataclass(frozen=True, kw_only=True)
class NeTIConfig(LoopConfig):
    steps: int = 1000  # the authors' code
    batch_size: int = 2  # the authors' code
    accumulation: int = 4  # the authors' code
    learning_rate: float = 8e-3  # the authors' code: 1e-3, times batch and accumulation
    weight_decay: float = 1e-2  # the authors' code
    max_grad_norm: float = 0.0  # the authors' code does not clip
    mapper: Literal["space-time", "table"] = "space-time"  # "table" is XTI
    bypass: bool = True  # the paper's textual bypass; a table has none
    nested_dropout: float = 0.5  # the authors' code: how often it is on, per layer and batch
    sigma_t: float = 0.03  # the authors' code: of the encoding's frequencies for the timestep
    sigma_l: float = 2.0  # the authors' code: for the layer
    initial_words: str | None = None  # None: the class noun. Its norm is the word's; a table starts from it
    use_captions: bool = True  # of photos that have one; the others get a random template per step
    crop: Crop = "center"  # "resize" is the authors' default, which distorts
    flip: bool = False  # Differs: 0.5 in the authors' code; wrong for subjects with text or a side
    attractor: Attractor | None = None  # makes it NeTI+

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.nested_dropout <= 1, "nested_dropout", self.nested_dropout, "between 0 and 1")
        require(self.mapper in ("space-time", "table"), "mapper", self.mapper, "space-time or table")
        require_squares(self.attractor, self.crop)
        for name in ("sigma_t", "sigma_l"):
            require(0 < getattr(self, name) < 1000, name, getattr(self, name), "above 0")

    @classmethod
    def paper(cls, **changes: Any) -> NeTIConfig:
        """The authors' code, for Stable Diffusion 1.4; with an attractor, that paper's."""
        told = {**PAPER_SETTINGS, "accumulation": 1} if changes.get("attractor") else {}
        return cls(**{**told, **changes})

    @classmethod
    def practical(cls, family: str = "toybox", **changes: Any) -> NeTIConfig:
        """Quick and strong for a family."""
        return cls(**{**PRACTICAL.get(family, PRACTICAL["sd1"]), **changes})


PRACTICAL: Mapping[str, Mapping[str, Any]] = {
    # Not tuned on a finished Toybox yet: the authors' rate, in one forward, with a fall at the end.
    "toybox": {"steps": 300, "batch_size": 8, "accumulation": 1, "schedule": "cosine"},
    "sd1": {"steps": 500},  # half of the authors' steps, at which their code has saved twice
}


@dataclass(frozen=True)
class Dropped:
    """A mapper under nested dropout: the first ``keep_SB`` hidden units of each layer and row stay."""

    mapper: Mapper
    keep_SB: Tensor | None

    @property
    def num_layers(self) -> int:
        return self.mapper.num_layers

    @property
    def width(self) -> int:
        return self.mapper.width

    def __call__(self, t_B: Tensor) -> WordRows:
        rows: WordRows = self.mapper(t_B, self.keep_SB)
        return rows


Batch = tuple[Rows, list[str], "Tensor | None"]


class NeTI(TextualInversion):
    """The method for ``loop.train``. Photos, prompts and the word are Textual Inversion's."""

    config: NeTIConfig  # type: ignore[assignment]

    def __init__(self, backbone: Backbone, subject: Subject, config: NeTIConfig, *, seed: int) -> None:
        self.backbone, self.subject, self.seed = backbone, subject, seed
        self.config = config
        self.trigger = placeholder(subject)
        self.refuse_known_word()
        self.mapper = self.fresh_mapper(config.initial_words or subject.class_noun, "subject")
        backbone.with_mappers({self.trigger: self.mapper})  # raises where a model has no place for one
        self.borrowed = ExitStack()

    def fresh_mapper(self, words: str, stream: str) -> Mapper:
        """One that answers with vectors of the norm of ``words``. Frequencies are the same for all words."""
        config, layers = self.config, self.backbone.num_cross_attentions
        start_D = initial_row(self.backbone, words).float()
        if config.mapper == "table":
            return LayerTable(start_D.repeat(layers, 1)).to(self.backbone.device)
        mapper = SpaceTimeMapper(
            num_layers=layers, width=len(start_D), target_norm=float(start_D.norm()), bypass=config.bypass,
            sigma_t=config.sigma_t, sigma_l=config.sigma_l, seed=self.seed, stream=stream,
        )  # fmt: skip
        return mapper.to(self.backbone.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"mapper.{name}": p for name, p in self.mapper.named_parameters()}

    def prepare(self) -> Iterator[Phase]:
        yield from super().prepare()
        self.borrowed.enter_context(self.backbone.layered())

    def batch(self, index: int) -> Batch:  # type: ignore[override]  # nested dropout comes with it
        rows, prompts = super().batch(index)
        return rows, prompts, self.kept(index, len(prompts))

    def kept(self, index: int, size: int) -> Tensor | None:
        """How many hidden units stay, (S, B): all, or by nested dropout a random number for each row.

        As in the authors' code, one throw decides for all rows of a layer whether there is any dropout.
        """
        if not self.config.nested_dropout or self.config.mapper == "table":
            return None
        stream, layers = generator(self.seed, "nested dropout", index), self.backbone.num_cross_attentions
        dropped_S1 = torch.rand(layers, 1, generator=stream) < self.config.nested_dropout
        keep_SB = torch.randint(0, HIDDEN, (layers, size), generator=stream)
        return torch.where(dropped_S1, keep_SB, torch.full_like(keep_SB, HIDDEN))

    def part(self, batch: Batch, rows: slice) -> Batch:  # type: ignore[override]
        drawn, prompts, keep_SB = batch
        return drawn.part(rows), prompts[rows], None if keep_SB is None else keep_SB[:, rows]

    def loss(self, batch: Batch) -> LossTerms:  # type: ignore[override]
        rows, prompts, keep_SB = batch
        model = self.backbone
        words: dict[str, WordMapper] = {self.trigger: Dropped(self.mapper, keep_SB)}
        text = model.encode_prompts(prompts, mappers=words)
        noisy_BCHW = model.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_BCHW = model.predict(noisy_BCHW, rows.t_B, text)
        loss = denoising_loss(pred_BCHW, model.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B))
        return LossTerms(loss, {"denoising": loss})

    def after_step(self) -> None:
        """The norm is the mapper's own business."""

    def learned(self) -> Backbone:
        return self.backbone.with_mappers({self.trigger: frozen(self.mapper)})

    def export(self) -> Artifact:
        return Artifact(
            kind="neti",
            tensors=tensors_of(self.mapper),
            trigger=self.trigger,
            class_noun=self.subject.class_noun,
            metadata={},
        )

    def close(self) -> None:
        self.borrowed.close()


PlusBatch = tuple[Lesson, "Tensor | None"]


class NeTIPlus(NeTI):
    """NeTI+: two mappers train, M_v and M_A, by equation 6 of ``attractor.py``; both words have their bypass.

    The contrastive features are not told in the paper: here a word's state as the keys see it, averaged over
    the layers. Captions are left aside: the paper's pools say what v* and A* are.
    """

    # Shapes: R rows (a photo under a prompt).

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
            self.subject.photos, self.backbone, crop=config.crop, flip=config.flip, seed=self.seed
        )
        self.curriculum.place_masks(masks, self.cache)

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


def tensors_of(mapper: Mapper) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in mapper.state_dict().items()}


def frozen(mapper: Mapper) -> Mapper:
    """A copy that training does not reach."""
    return mapper_from_tensors(tensors_of(mapper)).to(next(mapper.parameters()).device)


def train_neti(
    base: BaseModel,
    subject: Subject,
    config: NeTIConfig,
    *,
    runs_root: Path,
    seed: int = 0,
    monitor: HeldOutMonitor | None = None,
    encoders: Encoders | None = None,
) -> Generator[Event, None, None]:
    """Learn a subject as a word of many faces. Ends with ``Done``, whose concept needs Apply Concept.

    ``encoders`` judge for the ``monitor``; None opens those of the base model's family.
    """
    kind = NeTI if config.attractor is None else NeTIPlus
    return learn(
        "neti",
        partial(kind, subject=subject, config=config, seed=seed),
        base,
        subject,
        config,
        runs_root=runs_root,
        seed=seed,
        monitor=monitor,
        encoders=encoders,
    )

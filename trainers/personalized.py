"""What both ways of aligning share: a frozen personalized model, and a LoRA on it that learns.

InstructBooth (arXiv:2312.03011, section 5.1): "LoRA fine-tuning is crucial in maintaining the personalization
ability". The personalized model is a base with concepts applied, LoRAs or whole fine-tunes.
"""
# Shapes: B rows, P prompts, L tokens, D text width, C latent channels, H W latent size.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, BaseModel, Lora, LoraSpec, TextStates
from ..backbones.device import device_name
from ..concepts.applying import apply_concepts
from ..concepts.concept import Artifact, Concept
from ..core.errors import LikenessError
from ..scoring.encoders import Encoders
from ..scoring.rewards import About
from ..subjects.prompt_pool import PoolPrompt, PromptPool, check_words
from ..subjects.subject import Subject
from .data import cache_texts
from .events import Phase

NUM_SAMPLE_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Personalized:
    """The concepts that are aligned, each with its strength; the last one's trigger names the subject."""

    concepts: tuple[tuple[Concept, float], ...]

    def __post_init__(self) -> None:
        if not self.concepts:
            raise LikenessError(
                "There is no concept to align: the model is a bare base model",
                expected="a personalized model",
                fix="Train DreamBooth first, and plug its concept in through Apply Concept",
            )

    @property
    def trigger(self) -> str:
        return self.concepts[-1][0].trigger

    @property
    def content(self) -> list[list[object]]:
        """For a run's key."""
        return [[concept.sha256, strength] for concept, strength in self.concepts]


def about_of(
    base: BaseModel,
    subject: Subject,
    personalized: Personalized,
    encoders: Encoders | None,
    roots: Sequence[Path],
) -> About:
    """What rewards are told of a run. Photos are the training ones: held-out photos only judge."""
    return About(
        family="toybox" if base.source == "toybox" else "standard",
        trigger=personalized.trigger,
        class_noun=subject.class_noun,
        photos=subject.photos,
        encoders=encoders,
        device=device_name(base.device),
        roots=roots,
    )


def sample_prompts(pool: PromptPool) -> list[str]:
    """A few trained and a few unseen activities, {} for the subject."""
    num = NUM_SAMPLE_PROMPTS
    return [pool.prompt("{}", activity) for activity in (*pool.activities[:num], *pool.unseen[:num])]


class LoraOnConcepts:
    """A LoRA that learns on a personalized model. Everything borrowed is given back in ``close``."""

    def __init__(
        self, backbone: Backbone, personalized: Personalized, pool: PromptPool, class_noun: str
    ) -> None:
        check_words(personalized.trigger, class_noun)
        self.base_backbone = self.backbone = backbone
        self.personalized, self.pool, self.class_noun = personalized, pool, class_noun
        self.trigger = personalized.trigger
        self.prompts: list[PoolPrompt] = pool.all_prompts(self.trigger, class_noun)
        self.number_of = {(p.activity, p.identified): n for n, p in enumerate(self.prompts)}
        self.sample_prompts: Sequence[str] = sample_prompts(pool)
        self.lora: Lora | None = None
        self.borrowed = ExitStack()

    def put_on(self, spec: LoraSpec, seed: int) -> Iterator[Phase]:
        """Concepts onto the model, prompts through its text encoder, then the LoRA that learns."""
        yield Phase("applying concepts", 0, 1)
        self.backbone = self.borrowed.enter_context(
            apply_concepts(self.base_backbone, self.personalized.concepts)
        )
        self.texts = cache_texts(self.backbone, [prompt.text for prompt in self.prompts])
        self.negative = cache_texts(self.backbone, [""])
        self.lora = self.backbone.attach_lora(spec, seed=seed)
        yield Phase("applying concepts", 1, 1)

    def parameters(self) -> dict[str, nn.Parameter]:
        assert self.lora is not None, "parameters exist after prepare()"
        return self.lora.parameters()

    def learned(self) -> Backbone:
        return self.backbone

    def artifact(self, rank: int, alpha: float) -> Artifact:
        return Artifact(
            kind="lora",
            tensors={name: p.detach().cpu().clone() for name, p in self.parameters().items()},
            trigger=self.trigger,
            class_noun=self.class_noun,
            metadata={"rank": rank, "alpha": alpha, "on_concepts": self.personalized.content},
        )

    def after_step(self) -> None:
        """Nothing."""

    def close(self) -> None:
        if self.lora is not None:
            self.lora.detach()
            self.lora = None
        self.borrowed.close()
        self.backbone = self.base_backbone


def guided(
    model: Backbone, noisy_BCHW: Tensor, t_B: Tensor, text: TextStates, negative: TextStates, guidance: float
) -> Tensor:
    """``out_neg + guidance * (out_text - out_neg)`` (arXiv:2207.12598) in one forward.

    Rollouts and updates both come through here: with other guidance, ratios would not begin at 1. Gradients
    flow through both branches.
    """
    if guidance == 1:
        return model.predict(noisy_BCHW, t_B, text)
    pooled = None
    if text.pooled is not None and negative.pooled is not None:
        pooled = torch.cat([negative.pooled.expand_as(text.pooled), text.pooled])
    both = TextStates(torch.cat([negative.context.expand_as(text.context), text.context]), pooled)
    out_2B = model.predict(torch.cat([noisy_BCHW, noisy_BCHW]), torch.cat([t_B, t_B]), both)
    without, with_text = out_2B.chunk(2)
    return without + guidance * (with_text - without)

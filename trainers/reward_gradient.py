"""Aligning by the reward's own gradient, where it has one: ReFL and DRaFT on a personalized model.

    ReFL    L = weight * relu(2 - r(z_0 as a late step estimates it))   (Xu et al. 2023, arXiv:2304.05977)
    DRaFT   L = -weight * r(z_0), backwards through the last K steps    (Clark et al. 2023, arXiv:2309.17400)

Fast, and the fastest way to hack a reward; so DreamBooth's denoising loss on the subject's photos goes with
it. Differs: ReFL's published script leaves its own such term out, and neither paper has a subject.
"""
# Shapes: B pictures, C latent channels, H W latent size, N views.

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones.base import Backbone, BaseModel, LoraSpec
from ..concepts.concept import Artifact, Concept
from ..core.errors import LikenessError
from ..core.hashing import canonical
from ..core.randomness import generator, normal
from ..scoring.encoders import Encoders
from ..scoring.rewards import About, CombinedSpec, RewardSpec, open_reward, reward_hash
from ..subjects.prompt_pool import PromptPool
from ..subjects.subject import Subject
from .data import (
    Rows,
    cache_latents,
    cache_texts,
    draw_rows,
    epoch_of,
    name_subject,
    photo_views,
    pick,
    shuffled,
)
from .entry import learn
from .events import Event, Phase
from .guard import Guarded, IdentityGuard, Warden
from .method import LoopConfig, require
from .objectives import LossTerms, denoising_loss
from .personalized import LoraOnConcepts, Personalized, about_of, guided

REFL_TARGET = 2.0  # ImageReward/ReFL.py: relu(2 - r), in ImageReward's standardised units


@dataclass(frozen=True, kw_only=True)
class RewardGradientConfig(LoopConfig):
    """Defaults are DRaFT-1's where it states them."""

    steps: int = 200
    batch_size: int = 4  # pictures in one forward
    learning_rate: float = 1e-4
    kind: Literal["draft", "refl"] = "draft"
    denoising_steps: int = 50  # DRaFT
    last_steps: int = 1  # DRaFT-1: denoising steps that gradients go through
    window: int = 10  # ReFL: its one step is drawn from so many last ones
    guidance: float = 7.5  # DRaFT; ReFL has none (1)
    eta: float = 1.0  # as ``align``
    reward_weight: float = 1.0
    dreambooth_weight: float = 1.0  # ours: of the denoising loss on the subject's photos
    rank: int = 4
    alpha: float = 4.0
    prompt: str = "a photo of {}"  # of photos without a caption

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kind in ("draft", "refl"), "kind", self.kind, "draft or refl")
        steps = self.denoising_steps
        require(steps >= 2, "denoising_steps", steps, "2 or more")
        asked = "last_steps" if self.kind == "draft" else "window"  # the other one is not used
        value = getattr(self, asked)
        require(1 <= value <= steps, asked, value, f"between 1 and denoising_steps ({steps})")
        for name in ("reward_weight", "rank", "alpha"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        require(self.dreambooth_weight >= 0, "dreambooth_weight", self.dreambooth_weight, "0 or more")
        require(self.guidance >= 1, "guidance", self.guidance, "1 or more")

    @classmethod
    def paper(cls, **changes: Any) -> RewardGradientConfig:
        """DRaFT-1."""
        return cls(**changes)

    @classmethod
    def refl(cls, **changes: Any) -> RewardGradientConfig:
        """ImageReward/ReFL.py: 40 steps, one of the last 10, no guidance, 1e-3 * relu(2 - r), lr 1e-5."""
        values = {"kind": "refl", "steps": 100, "denoising_steps": 40, "guidance": 1.0, "reward_weight": 1e-3,
                  "learning_rate": 1e-5, "batch_size": 2, "accumulation": 4}  # fmt: skip
        return cls(**{**values, **changes})

    @classmethod
    def practical(cls, family: str = "toybox", **changes: Any) -> RewardGradientConfig:
        return cls(**{**PRACTICAL.get(family, {}), **changes})


PRACTICAL: Mapping[str, Mapping[str, Any]] = {
    "toybox": {
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 3e-4,  # 1e-3 wins the reward in a third of the steps, and loses the subject
        "denoising_steps": 20,
        "guidance": 5.0,
        "reward_weight": 0.05,
        "rank": 8,
        "alpha": 8.0,
    },
}


@dataclass(frozen=True)
class Start:
    """Pictures up to where gradients begin: latents before step ``first`` of the grid, and their prompts."""

    latents_BCHW: Tensor
    first: int
    prompts: tuple[int, ...]
    index: int  # of the batch in the run: names its noise
    rows: slice = field(default_factory=lambda: slice(None))  # of the batch: which these are


class RewardGradient(LoraOnConcepts):
    """The method for ``loop.train``; an ``OnPolicy``."""

    def __init__(
        self,
        backbone: Backbone,
        personalized: Personalized,
        subject: Subject,
        config: RewardGradientConfig,
        *,
        reward: RewardSpec | CombinedSpec,
        pool: PromptPool,
        about: About,
        seed: int,
    ) -> None:
        super().__init__(backbone, personalized, pool, about.class_noun)
        self.subject, self.config, self.spec, self.about, self.seed = subject, config, reward, about, seed
        self.grid = backbone.timesteps(config.denoising_steps)
        self.starts: dict[int, Start] = {}

    def prepare(self) -> Iterator[Phase]:
        yield Phase("loading reward", 0, 1)
        self.reward = open_reward(self.spec, self.about)
        if not self.reward.differentiable:
            raise LikenessError(
                f"The reward {self.reward.label} has no gradient",
                expected="a differentiable reward",
                fix="Use Align, which needs scores alone",
            )
        yield Phase("loading reward", 1, 1)
        if self.config.dreambooth_weight:
            photos = self.subject.photos
            views = photo_views(photos, self.backbone, crop="center", flip=False, seed=self.seed)
            self.cache = yield from cache_latents(self.backbone, views)
            self.views = epoch_of(self.cache, self.subject.photos)
        yield from self.put_on(LoraSpec(rank=self.config.rank, alpha=self.config.alpha), self.seed)
        if self.config.dreambooth_weight:
            self.captions = cache_texts(self.backbone, [self.caption(n) for n in self.cache.source_N])

    def caption(self, photo: int) -> str:
        words = self.subject.photos[photo].caption or self.config.prompt
        return name_subject(words, self.trigger, self.subject)

    # --- the part without gradients ---------------------------------------------------------------
    def collect(self, step: int) -> Iterator[Event]:
        """Draw this update's pictures up to where gradients begin. A function of the seed and the weights."""
        num = self.config.accumulation
        starts = {}
        for index in range(step * num, (step + 1) * num):
            starts[index] = yield from self.begun(index, index - step * num)
        self.starts = starts

    def begun(self, index: int, place: int) -> Generator[Phase, None, Start]:
        config, model = self.config, self.backbone
        prompts = self.drawn_prompts(index)
        first = self.first_with_gradient(index)
        edge = model.image_size // model.latent_scale
        x_BCHW = self.noise((config.batch_size, model.latent_channels, edge, edge), index, "start")
        for n in range(first):
            with torch.no_grad():
                x_BCHW = self.denoised(x_BCHW, n, prompts, index)
            yield Phase("drawing", place * first + n + 1, config.accumulation * first)
        return Start(x_BCHW, first, prompts, index)

    def drawn_prompts(self, index: int) -> tuple[int, ...]:
        num = self.config.batch_size
        return tuple(self.number_of[key] for key in self.pool.drawn(num, index * num, seed=self.seed))

    def first_with_gradient(self, index: int) -> int:
        if self.config.kind == "draft":
            return len(self.grid) - self.config.last_steps
        drawn = torch.randint(self.config.window, (1,), generator=generator(self.seed, "refl step", index))
        return len(self.grid) - self.config.window + int(drawn)

    def denoised(
        self, x_BCHW: Tensor, n: int, prompts: Sequence[int], index: int, rows: slice = slice(None)
    ) -> Tensor:
        """One step of the grid further, for some rows of a batch."""
        out, t_B = self.predicted(x_BCHW, n, prompts)
        mean, std_B = self.backbone.transition(x_BCHW, out, t_B, len(self.grid), eta=self.config.eta)
        noise_BCHW = self.noise((self.config.batch_size, *x_BCHW.shape[1:]), index, "step", n)
        return mean + std_B.view(-1, 1, 1, 1) * noise_BCHW[rows]

    def predicted(self, x_BCHW: Tensor, n: int, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        t_B = torch.full((len(x_BCHW),), self.grid[n], device=x_BCHW.device)
        text = pick(self.texts, prompts)
        return guided(self.backbone, x_BCHW, t_B, text, self.negative, self.config.guidance), t_B

    def noise(self, shape: Sequence[int], index: int, *stream: int | str) -> Tensor:
        return normal(shape, self.seed, "reward gradient", index, *stream).to(self.backbone.device)

    # --- every update -----------------------------------------------------------------------------
    def batch(self, index: int) -> Start:
        return self.starts[index]

    def part(self, batch: Start, rows: slice) -> Start:
        return replace(batch, latents_BCHW=batch.latents_BCHW[rows], prompts=batch.prompts[rows], rows=rows)

    def loss(self, batch: Start) -> LossTerms:
        config = self.config
        images_B3HW = self.backbone.decode(self.finished(batch))
        score = self.reward(images_B3HW, [self.prompts[n].text for n in batch.prompts])
        wanted = (REFL_TARGET - score).relu() if config.kind == "refl" else -score
        terms = {"reward": score.detach().mean(), "wanted": wanted.mean()}
        total = config.reward_weight * terms["wanted"]
        if config.dreambooth_weight:
            terms["denoising"] = self.denoising(batch.index, batch.rows)
            total = total + config.dreambooth_weight * terms["denoising"]
        return LossTerms(total, terms)

    def finished(self, start: Start) -> Tensor:
        """Clean latents with gradients: ReFL's estimate at its step, or DRaFT's last steps."""
        x_BCHW = start.latents_BCHW
        if self.config.kind == "refl":
            out, t_B = self.predicted(x_BCHW, start.first, start.prompts)
            return self.backbone.clean(x_BCHW, out, t_B)
        for n in range(start.first, len(self.grid)):
            x_BCHW = self.denoised(x_BCHW, n, start.prompts, start.index, start.rows)
        return x_BCHW

    def denoising(self, index: int, part: slice) -> Tensor:
        views = shuffled(self.views, self.config.batch_size, index, self.seed, "photo")
        rows: Rows = draw_rows(self.backbone, self.cache, views, self.seed, index).part(part)
        noisy_BCHW = self.backbone.add_noise(rows.latents_BCHW, rows.noise_BCHW, rows.t_B)
        pred_BCHW = self.backbone.predict(noisy_BCHW, rows.t_B, pick(self.captions, views[part]))
        return denoising_loss(pred_BCHW, self.backbone.target(rows.latents_BCHW, rows.noise_BCHW, rows.t_B))

    # --- state and result -------------------------------------------------------------------------
    def state(self, step: int) -> dict[str, Tensor]:
        """None: what an update learns from is drawn anew, the same."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.starts = {}

    def export(self) -> Artifact:
        return self.artifact(self.config.rank, self.config.alpha)


def train_reward_gradient(
    base: BaseModel,
    subject: Subject,
    config: RewardGradientConfig,
    *,
    concepts: Sequence[tuple[Concept, float]],
    pool: PromptPool,
    runs_root: Path,
    reward: RewardSpec | CombinedSpec | None = None,
    seed: int = 0,
    guard: IdentityGuard | None = None,
    encoders: Encoders | None = None,
    roots: Sequence[Path] = (),
) -> Generator[Event, None, None]:
    """As ``align.train_align``, by the reward's gradient. The reward must be differentiable."""
    spec, personalized = reward or RewardSpec(), Personalized(concepts=tuple(concepts))
    about = about_of(base, subject, personalized, encoders, roots)
    guarded = None
    if guard is not None:
        guarded = Guarded(guard=guard, reward=spec, pool=pool, about=about, warden=Warden())

    told: dict[str, Any] = {
        "personalized": personalized, "subject": subject, "config": config, "reward": spec, "pool": pool,
        "seed": seed,
    }  # fmt: skip
    beside = {"reward": spec, "reward_weights": reward_hash(spec, about), "pool": pool,
              "concepts": personalized.content}  # fmt: skip
    return learn(
        "reward_gradient", partial(RewardGradient, **told, about=about), base, subject, config,
        runs_root=Path(runs_root), seed=seed, monitor=guarded, encoders=encoders, beside=canonical(beside),
        follower=partial(RewardGradient, **told, about=replace(about, encoders=None)),
    )  # fmt: skip

"""The identity guard: alignment is watched on pictures that it is not rewarded for, and stopped by a rule.

A reward can be raised by forgetting the subject, or by fooling the model that gives it. So at fixed steps the
same pictures are drawn anew and judged thrice: by the reward that is trained on, by their likeness to photos
that training never saw, and by an independent scorer, the witness.
"""
# Shapes: B pictures, D feature width.

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..core.errors import LikenessError
from ..scoring.encoders import Encoders, to_tensor
from ..scoring.metrics import dino
from ..scoring.rewards import About, CombinedSpec, Reward, RewardSpec, checked_scores, open_reward
from ..subjects.prompt_pool import PromptPool
from ..subjects.subject import Subject
from .drawing import draw, picture_seed
from .events import AlignmentScore, Phase

log = logging.getLogger(__name__)

WITNESS = RewardSpec(name="clip_t")


@dataclass(frozen=True, kw_only=True)
class IdentityGuard:
    """When to look, how, and by which rule to act. The numbers are ours: the papers have no guard."""

    every: int = 20  # updates between looks; the last is always scored
    max_drop: float = 0.05  # identity that may be lost against the start
    act: Literal["stop", "weigh"] = "stop"
    witness: RewardSpec = WITNESS  # an independent scorer that training never asks
    witness_fall: float = 0.01  # in the witness's units: less counts as none
    reward_rise: float = 0.25  # in stds of the rewards at the start: less counts as none
    patience: int = 2  # looks in a row that must be suspicious before the alarm
    max_activities: int = 4  # of each list
    images_per_prompt: int = 2
    steps: int = 20  # denoising steps of these pictures
    guidance: float = 5.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("every", "patience", "max_activities", "images_per_prompt", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise LikenessError(f"The guard's {name} is {getattr(self, name)}", expected="1 or more")
        if self.max_drop <= 0 or self.act not in ("stop", "weigh"):
            raise LikenessError(
                f"The guard's max_drop is {self.max_drop} and it acts by {self.act!r}",
                expected="a drop above 0, and stop or weigh",
            )

    @property
    def rule(self) -> str:
        action = {
            "stop": "training stops",
            "weigh": "identity joins the advantages, in proportion to the drop",
        }[self.act]
        return (
            f"when identity lies more than {self.max_drop:g} under the start, more than half of it at "
            f"{self.patience} looks in a row, or the reward rose by {self.reward_rise:g} of its spread while "
            f"the witness fell by {self.witness_fall:g} for {self.patience} looks: {action}; exported is the "
            f"highest reward among the looks without suspicion that lost at most {self.max_drop:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Look:
    """Means at one step. Step 0 is the personalized model before alignment."""

    step: int
    reward: float
    spread: float  # std of the rewards of trained activities
    unseen: float | None
    without: float
    identity: float
    witness: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def suspicious(looks: Sequence[Look], guard: IdentityGuard) -> bool:
    """Whether at the last of ``looks`` the reward is up and the witness down, against the witness's peak."""
    last, start = looks[-1], looks[0]
    peak = max(looks, key=lambda look: (look.witness, -look.step))
    up = last.reward > peak.reward + guard.reward_rise * start.spread
    return up and last.witness < peak.witness - guard.witness_fall


def lost(looks: Sequence[Look]) -> float:
    """Identity lost since the start; negative where it rose."""
    return looks[0].identity - looks[-1].identity


def alarm(looks: Sequence[Look], guard: IdentityGuard) -> str:
    """Why to act now, in words; empty while there is no reason."""
    recent = [looks[: n + 1] for n in range(1, len(looks))][-guard.patience :]
    if not recent:
        return ""
    if lost(looks) > guard.max_drop:
        return f"identity fell by {lost(looks):.3f}, more than {guard.max_drop:g}"
    if len(recent) < guard.patience:
        return ""
    if all(lost(some) > guard.max_drop / 2 for some in recent):
        return f"identity is falling: {lost(looks):.3f} under the start"
    if all(suspicious(some, guard) for some in recent):
        return "reward hacking: the reward rises while the witness falls"
    return ""


def best_look(looks: Sequence[Look], guard: IdentityGuard) -> Look | None:
    """The look to export by the rule; None before the first. Earlier looks never become better by later ones,
    so that their checkpoints may go."""
    trained = range(1, len(looks))
    safe = [
        looks[n]
        for n in trained
        if lost(looks[: n + 1]) <= guard.max_drop and not suspicious(looks[: n + 1], guard)
    ]
    if safe:
        return max(safe, key=lambda look: (look.reward, -look.step))
    return max(looks[1:], key=lambda look: (look.identity, -look.step), default=None)


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """The guard's settings with what they watch: satisfies ``monitor.Monitor``."""

    guard: IdentityGuard
    reward: RewardSpec | CombinedSpec
    pool: PromptPool
    about: About = field(compare=False)  # files and photos: hashed elsewhere in the key
    warden: Warden = field(compare=False)

    @property
    def rule(self) -> str:
        return self.guard.rule

    def watch(self, subject: Subject, backbone: Backbone, encoders: Encoders | None, *, seed: int) -> Warden:
        self.warden.begin(self, subject, encoders, seed=seed)
        return self.warden


class Warden:
    """A guard at work in one run; satisfies ``monitor.Watch``."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.trained: Reward | None = None  # the opened reward, for the trainer to share

    def begin(self, guarded: Guarded, subject: Subject, encoders: Encoders | None, *, seed: int) -> None:
        self.guarded, self.guard, self.subject, self.seed = guarded, guarded.guard, subject, seed
        self.about = replace(guarded.about, encoders=encoders)
        if not subject.held_out:
            log.warning("%s has no held-out photos: the guard compares with those trained on", subject.name)

    def prepare(self) -> Generator[Phase, None, None]:
        """The scorers, and the photos' features, once."""
        yield Phase("loading scorers", 0, 1)
        spec = self.guarded.reward
        if isinstance(spec, CombinedSpec) and spec.normalise == "batch":
            spec = replace(spec, normalise="none")  # a batch's own mean would hide every change
        self.about = replace(self.about, encoders=self.about.judges())
        self.reward, self.witness = open_reward(spec, self.about), open_reward(self.guard.witness, self.about)
        self.trained = self.reward if spec is self.guarded.reward else None
        photos = self.subject.held_out or self.subject.photos
        encoder = self.about.judges().dino
        self.photos_MD = torch.cat([encoder.encode(to_tensor(photo.open())[None]) for photo in photos])
        yield Phase("loading scorers", 1, 1)

    def due(self, step: int, total: int) -> bool:
        wanted = step % self.guard.every == 0 or step == total
        return wanted and all(look.step != step for look in self.looks)

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.looks = [Look(**record) for record in records]

    def score(self, step: int, backbone: Backbone, trigger: str) -> Generator[Phase, None, Look]:
        pool, noun, num = self.guarded.pool, self.subject.class_noun, self.guard.max_activities
        seen, unseen = pool.activities[:num], pool.unseen[:num]
        pictures = yield from self.pictures(backbone, trigger, seen, "seen")
        rewards_B, witness_B = (checked_scores(r, *pictures) for r in (self.reward, self.witness))
        more = (yield from self.pictures(backbone, trigger, unseen, "unseen")) if unseen else None
        plain = yield from self.pictures(backbone, noun, seen, "without")
        look = Look(
            step=step,
            reward=float(rewards_B.mean()),
            spread=float(rewards_B.std(correction=0)),
            unseen=_mean(self.reward, more) if more else None,
            without=_mean(self.reward, plain),
            identity=float(dino(self.about.judges().dino.encode(pictures[0]), self.photos_MD).mean()),
            witness=float(witness_B.mean()),
        )
        self.looks.append(look)
        return look

    def pictures(
        self, backbone: Backbone, words: str, activities: Sequence[str], purpose: str
    ) -> Generator[Phase, None, tuple[Tensor, list[str]]]:
        """The same noise at every look. Their prompts name the subject where ``words`` does."""
        each = self.guard.images_per_prompt
        prompts = [self.guarded.pool.prompt(words, activity) for activity in activities for _ in range(each)]
        seeds = [picture_seed(self.seed, "guard", purpose, n) for n in range(len(prompts))]
        images_B3HW = yield from draw(
            backbone,
            prompts,
            seeds,
            steps=self.guard.steps,
            guidance=self.guard.guidance,
            batch_size=self.guard.batch_size,
            phase="scoring",
        )
        return images_B3HW, prompts

    def event(self, look: Look) -> AlignmentScore:
        return AlignmentScore(
            look.step, look.reward, look.unseen, look.without, look.identity, look.witness, self.verdict()
        )

    def verdict(self) -> str:
        if len(self.looks) == 1:
            return "before alignment"
        return alarm(self.looks, self.guard) or (
            "suspicious" if suspicious(self.looks, self.guard) else "no alarm"
        )

    def stops(self) -> bool:
        return self.guard.act == "stop" and bool(alarm(self.looks, self.guard))

    def best_step(self) -> int | None:
        chosen = best_look(self.looks, self.guard)
        return chosen.step if chosen else None

    def pressure(self) -> float:
        """0 to 1: how much identity counts beside the reward, where the guard weighs."""
        if self.guard.act != "weigh" or len(self.looks) < 2:
            return 0.0
        return min(max(lost(self.looks) / self.guard.max_drop, 0.0), 1.0)


def _mean(reward: Reward, pictures: tuple[Tensor, list[str]]) -> float:
    with torch.no_grad():
        return float(checked_scores(reward, *pictures).mean())

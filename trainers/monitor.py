"""The held-out monitor: the judge of a run is a set of photos that training never saw.

At fixed steps it draws a picture for the caption of every photo, trained and held out, and compares it with
that photo. Overfitting is where the training photos still score well and the held-out ones no longer do: the
curve of Figure 1 of "Towards More Accurate Personalized Image Generation", which training photos alone hide.
"""
# Shapes: B pictures, D feature width.

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from ..backbones.base import Backbone
from ..core.errors import LikenessError
from ..scoring.encoders import Encoders, open_encoders
from ..scoring.metrics import clip_t, paired
from ..subjects.subject import Photo, Subject
from ..subjects.views import load_square
from .data import name_subject
from .drawing import draw, picture_seed
from .events import Event, HeldOutScore, Phase

DEFAULT_CAPTION = "a photo of {}"  # of a photo that has none


class Watch(Protocol):
    """What watches a run: it scores checkpoints, stops the run, and chooses what is exported."""

    def prepare(self) -> Generator[Phase, None, None]: ...
    def due(self, step: int, total: int) -> bool: ...
    def recall(self, records: Iterable[Mapping[str, Any]]) -> None: ...
    def score(self, step: int, backbone: Backbone, trigger: str) -> Generator[Phase, None, Any]: ...
    def event(self, score: Any) -> Event: ...
    def verdict(self) -> str: ...
    def best_step(self) -> int | None: ...
    def stops(self) -> bool: ...


class Monitor(Protocol):
    """The settings of a ``Watch``: they are part of a run's key."""

    @property
    def rule(self) -> str: ...

    def watch(
        self, subject: Subject, backbone: Backbone, encoders: Encoders | None, *, seed: int
    ) -> Watch: ...


@dataclass(frozen=True, kw_only=True)
class HeldOutMonitor:
    """When to score, how to draw, and by which rule the best checkpoint is chosen."""

    every: int = 100  # steps between scores; the last step is always scored
    seeds_per_photo: int = 1  # pictures per caption
    steps: int = 20  # denoising steps
    guidance: float = 5.0
    batch_size: int = 16  # pictures at once
    clip_t_floor: float = 0.9  # share of the base model's CLIP-T that a best checkpoint must keep
    patience: int = 2  # scores behind the peak before the verdict is overfitting
    tolerance: float = 0.01  # in DINO: less than this counts as flat
    stop_when_overfitting: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "seeds_per_photo", "steps", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise LikenessError(f"The monitor's {name} is {getattr(self, name)}", expected="1 or more")

    @property
    def rule(self) -> str:
        return (
            "highest held-out DINO among the scored checkpoints whose CLIP-T is at least "
            f"{self.clip_t_floor:.0%} of the base model's; ties to the earlier; if none is, highest CLIP-T"
        )

    def watch(self, subject: Subject, backbone: Backbone, encoders: Encoders | None, *, seed: int) -> Judge:
        return Judge(self, subject, backbone, encoders, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over photos and seeds at one step. Step 0 is the untouched model, asked for the class noun."""

    step: int
    train_dino: float
    held_out_dino: float
    clip_t: float  # of the held-out captions' pictures, with the class noun in the text

    def record(self) -> dict[str, Any]:
        return asdict(self)


def best(scores: Sequence[Score], clip_t_floor: float) -> Score | None:
    """The best of the trained scores by the monitor's rule; None before the first one."""
    base = next((s for s in scores if s.step == 0), None)
    trained = [s for s in scores if s.step > 0]
    floor = clip_t_floor * base.clip_t if base else float("-inf")
    faithful = [s for s in trained if s.clip_t >= floor]
    if faithful:
        return max(faithful, key=lambda s: (s.held_out_dino, -s.step))
    return max(trained, key=lambda s: (s.clip_t, -s.step), default=None)


def turning_point(scores: Sequence[Score], *, patience: int, tolerance: float) -> Score | None:
    """The peak of held-out DINO, once overfitting set in behind it; None while learning.

    Overfitting: at least ``patience`` scores follow the peak, the last ``patience`` of them all lie more than
    ``tolerance`` under it, and their mean of the training photos is as good as at the peak or better.
    """
    peak, recent = _fallen_from(scores, patience=patience, tolerance=tolerance)
    if peak is None:
        return None
    train_dino = statistics.fmean(s.train_dino for s in recent)
    return peak if train_dino >= peak.train_dino - tolerance else None


def _fallen_from(
    scores: Sequence[Score], *, patience: int, tolerance: float
) -> tuple[Score | None, list[Score]]:
    """The peak of held-out DINO that the last ``patience`` scores lie under, and these; None without one."""
    trained = [s for s in scores if s.step > 0]
    peak = max(trained, key=lambda s: (s.held_out_dino, -s.step), default=None)
    recent = [s for s in trained if peak and s.step > peak.step][-patience:]
    fallen = peak and all(s.held_out_dino < peak.held_out_dino - tolerance for s in recent)
    return (peak, recent) if fallen and len(recent) == patience else (None, [])


def verdict(scores: Sequence[Score], *, patience: int, tolerance: float) -> str:
    """What the scores so far say, in a few words."""
    last = scores[-1]
    if last.step == 0:
        return "base model"
    turn = turning_point(scores, patience=patience, tolerance=tolerance)
    if turn is not None:
        return (
            f"overfitting since step {turn.step}: train {last.train_dino:.2f} "
            f"{_trend(turn.train_dino, last.train_dino, tolerance)}, {_falls(turn, last)}"
        )
    peak, _ = _fallen_from(scores, patience=patience, tolerance=tolerance)
    if peak is not None:
        return (
            f"worse since step {peak.step}: train {peak.train_dino:.2f} -> {last.train_dino:.2f}, "
            f"{_falls(peak, last)}; a lower learning rate may hold it"
        )
    best_so_far = all(last.held_out_dino > s.held_out_dino for s in scores if s.step < last.step)
    return "best so far" if best_so_far else "learning"


def _falls(peak: Score, last: Score) -> str:
    return (
        f"held-out {peak.held_out_dino:.2f} -> {last.held_out_dino:.2f}, "
        f"CLIP-T {peak.clip_t:.2f} -> {last.clip_t:.2f}"
    )


def _trend(before: float, after: float, tolerance: float) -> str:
    return "rising" if after > before + tolerance else "flat"


class Judge:
    """A monitor at work in one run: it owns the photos' features and the scores so far."""

    def __init__(
        self,
        monitor: HeldOutMonitor,
        subject: Subject,
        backbone: Backbone,
        encoders: Encoders | None = None,
        *,
        seed: int,
    ) -> None:
        if not subject.held_out:
            raise LikenessError(
                f"The subject {subject.name!r} has no held-out photos, which the monitor needs.",
                expected="at least one photo that training does not see",
                fix="Split some off with Split Held-out, or train without the monitor.",
            )
        self.monitor, self.subject, self.seed = monitor, subject, seed
        self.size, self.family = backbone.image_size, backbone.family
        self.given_encoders = encoders
        self.scored: list[Score] = []

    @property
    def photos(self) -> tuple[Photo, ...]:
        return self.subject.photos + self.subject.held_out

    def prepare(self) -> Generator[Phase, None, None]:
        """The encoders, and the features of photos and captions, once."""
        num = len(self.photos)
        self.encoders = self.given_encoders or open_encoders(self.family)
        yield Phase("scoring", 0, num)
        features = []
        for done, photo in enumerate(self.photos):
            image, _ = load_square(photo, self.size, crop="center")
            with torch.no_grad():
                features.append(self.encoders.dino.encode((image[None] + 1) / 2))
            yield Phase("scoring", done + 1, num)
        self.photo_features_BD = torch.cat(features)
        with torch.no_grad():
            self.text_features_BD = self.encoders.clip.encode_text(self.prompts(self.subject.class_noun))

    def prompts(self, word: str) -> list[str]:
        return [name_subject(photo.caption or DEFAULT_CAPTION, word, self.subject) for photo in self.photos]

    def due(self, step: int, total: int) -> bool:
        """At 0, every N steps and at the end, unless that step is scored already."""
        wanted = step % self.monitor.every == 0 or step == total
        return wanted and all(score.step != step for score in self.scored)

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.scored = [Score(**record) for record in records]

    def score(self, step: int, backbone: Backbone, trigger: str) -> Generator[Phase, None, Score]:
        """Draw every caption and compare. Yields a Phase per denoising step."""
        prompts = self.prompts(trigger if step else self.subject.class_noun)
        identities, alignments = [], []
        for k in range(self.monitor.seeds_per_photo):
            pictures = yield from draw(
                backbone,
                prompts,
                [picture_seed(self.seed, "monitor", photo.sha256, k) for photo in self.photos],
                steps=self.monitor.steps,
                guidance=self.monitor.guidance,
                batch_size=self.monitor.batch_size,
                phase="scoring",
            )
            with torch.no_grad():
                identities.append(paired(self.encoders.dino.encode(pictures), self.photo_features_BD))
                alignments.append(clip_t(self.encoders.clip.encode(pictures), self.text_features_BD))
        dino_B, clip_t_B = torch.stack(identities).mean(0), torch.stack(alignments).mean(0)
        num = len(self.subject.photos)
        score = Score(
            step=step,
            train_dino=float(dino_B[:num].mean()),
            held_out_dino=float(dino_B[num:].mean()),
            clip_t=float(clip_t_B[num:].mean()),
        )
        self.scored.append(score)
        return score

    def event(self, score: Score) -> HeldOutScore:
        return HeldOutScore(score.step, score.train_dino, score.held_out_dino, score.clip_t, self.verdict())

    def verdict(self) -> str:
        return verdict(self.scored, patience=self.monitor.patience, tolerance=self.monitor.tolerance)

    def best_step(self) -> int | None:
        chosen = best(self.scored, self.monitor.clip_t_floor)
        return chosen.step if chosen else None

    def stops(self) -> bool:
        turn = turning_point(self.scored, patience=self.monitor.patience, tolerance=self.monitor.tolerance)
        return self.monitor.stop_when_overfitting and turn is not None

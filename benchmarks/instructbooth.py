"""InstructBooth's claim, on Toybox: text fidelity up, identity kept, in the shape of its Table 1.

    effect = (reward after - before) / std of the base model's rewards, over seen and unseen activities

Every subject is learned once with DreamBooth; alignment starts from there. Rewards are Toybox's own
preference model, in ImageReward's role; identity is its encoder in DINO's role, against held-out photos.
These numbers say nothing beside those of full-size models. Hours on two cores; ``quick`` some minutes.
Figure 8, appendix F and the guard have runs of their own: ``instructbooth_curves.py``,
``instructbooth_description.py``, ``instructbooth_guard.py``.
"""
# Shapes: B pictures.

from __future__ import annotations

import logging
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..concepts.applying import apply_concepts
from ..concepts.concept import Concept
from ..scoring.encoders import Encoders, open_encoders
from ..scoring.metrics import bootstrap_interval, clip_t, dino
from ..scoring.published import PUBLISHED
from ..scoring.rewards import About, RewardSpec, checked_scores, open_reward
from ..subjects.prompt_pool import PromptPool, pool_of
from ..trainers import METHODS
from ..trainers.align import AlignConfig, train_align
from ..trainers.dreambooth import DreamBoothConfig, train_dreambooth
from ..trainers.guard import IdentityGuard
from . import bar
from .cases import measured
from .learning import PRIOR, SEEDS, SUBJECTS, Problem, drawn, last, load_photos, problem

log = logging.getLogger(__name__)

REWARD = RewardSpec(name="toybox_preference")
IMAGES_PER_PROMPT = 4
GUARD = IdentityGuard(every=10, images_per_prompt=4, guidance=5.0)
# Other methods of the table, by heading: names in METHODS
OTHERS = {
    "Custom Diffusion": "custom_diffusion",
    "NeTI": "neti",
    "Textual Inversion": "textual_inversion",
}
EFFECT_BAR = 0.8  # stds of the base model's rewards
IDENTITY_BAR = 0.9  # of DreamBooth's
Applied = Sequence[tuple[Concept, float]]


@dataclass(frozen=True, kw_only=True)
class World:
    """What every part of the benchmark shares."""

    base: BaseModel
    encoders: Encoders
    pool: PromptPool
    scratch: Path
    quick: bool

    def config(self, **changes: Any) -> AlignConfig:
        small = {"steps": 4, "denoising_steps": 5, "images_per_epoch": 16, "batch_size": 8,
                 "rows_per_forward": 8} if self.quick else {}  # fmt: skip
        return AlignConfig.practical("toybox", **{**small, **changes})

    def case(self, noun: str, number: int) -> Problem:
        return problem(noun, number, self.scratch / "photos")

    def guard(self, **changes: Any) -> IdentityGuard:
        small = {"images_per_prompt": 1, "steps": 5, "max_activities": 2} if self.quick else {}
        return replace(GUARD, **{**small, **changes})


@contextmanager
def small_world(quick: bool) -> Iterator[World]:
    """Toybox, its judges, and a folder that goes with the block."""
    with tempfile.TemporaryDirectory() as name:
        yield World(
            base=BaseModel(source="toybox"),
            encoders=open_encoders("toybox"),
            pool=pool_of("toybox"),
            scratch=Path(name),
            quick=quick,
        )


# --- what pictures are worth ---------------------------------------------------------------------------


def judged(
    here: World,
    case: Problem,
    backbone: Backbone,
    words: str,
    trigger: str,
    activities: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """Mean reward and its std, CLIP-T and identity of pictures of activities."""
    noun = case.subject.class_noun
    each = 1 if here.quick else IMAGES_PER_PROMPT
    prompts = [here.pool.prompt(words, a) for a in activities for _ in range(each)]
    images_B3HW = drawn(backbone, prompts, seed, "activities")
    about = About(trigger=trigger, class_noun=noun, encoders=here.encoders)
    rewards_B = checked_scores(open_reward(REWARD, about), images_B3HW, prompts)
    plain = [here.pool.prompt(noun, a) for a in activities for _ in range(each)]
    text_BD, image_BD = here.encoders.clip.encode_text(plain), here.encoders.clip.encode(images_B3HW)
    photos_BD = here.encoders.dino.encode(load_photos(case.subject.held_out))
    return {
        "reward": float(rewards_B.mean()),
        "spread": float(rewards_B.std(correction=0)),
        "CLIP-T": float(clip_t(image_BD, text_BD).mean()),
        "identity": float(dino(here.encoders.dino.encode(images_B3HW), photos_BD).mean()),
    }


def both_kinds(
    here: World, case: Problem, applied: Applied, words: str, seed: int
) -> dict[str, dict[str, float]]:
    """``judged`` on seen and on unseen activities."""
    lists = {"seen": here.pool.activities, "unseen": here.pool.unseen}
    with apply_concepts(open_backbone(here.base), applied) as backbone:
        return {
            name: judged(here, case, backbone, words, words, activities, seed)
            for name, activities in lists.items()
        }


# --- the effect, and table 1 ---------------------------------------------------------------------------


def stage_one(here: World, case: Problem, seed: int) -> Concept:
    small = {"steps": 4, "batch_size": 2} if here.quick else {}
    config = DreamBoothConfig.practical("toybox", **small)
    prior = replace(PRIOR, num_images=4, steps=4, batch_size=4) if here.quick else PRIOR
    events = train_dreambooth(here.base, case.subject, config, runs_root=here.scratch, seed=seed, prior=prior)
    return last(events).concept


def aligned(here: World, case: Problem, concept: Concept, seed: int, **changes: Any) -> Concept:
    events = train_align(
        here.base, case.subject, here.config(**changes),
        concepts=[(concept, 1.0)], pool=here.pool, reward=REWARD, guard=here.guard(), seed=seed,
        encoders=here.encoders, runs_root=here.scratch,
    )  # fmt: skip
    return last(events).concept


def rows_of(noun: str, number: int, seed: int, quick: bool) -> list[dict[str, Any]]:
    """One row each for the untouched model, DreamBooth and InstructBooth, of one subject and seed."""
    with small_world(quick) as here:
        case = here.case(noun, number)
        concept = stage_one(here, case, seed)
        return staged_rows(here, case, concept, "InstructBooth", aligned(here, case, concept, seed), seed)


def staged_rows(
    here: World, case: Problem, concept: Concept, heading: str, beside: Concept, seed: int
) -> list[dict[str, Any]]:
    """The untouched model, DreamBooth's concept, and under ``heading`` what was aligned on top of it."""
    methods: dict[str, tuple[Applied, str]] = {
        "untouched model": ([], case.subject.class_noun),
        "DreamBooth": ([(concept, 1.0)], concept.trigger),
        heading: ([(concept, 1.0), (beside, 1.0)], concept.trigger),
    }
    return [row_of(here, case, name, applied, words, seed) for name, (applied, words) in methods.items()]


def row_of(
    here: World, case: Problem, method: str, applied: Applied, words: str, seed: int
) -> dict[str, Any]:
    found = both_kinds(here, case, applied, words, seed)
    return {"method": method, "subject": case.subject.name, "seed": seed, **found}


def other_rows(noun: str, number: int, seed: int, quick: bool) -> list[dict[str, Any]]:
    """One row for each of Table 1's other methods, of one subject and seed."""
    with small_world(quick) as here:
        case = here.case(noun, number)
        learned = {heading: other_method(here, case, name, seed) for heading, name in OTHERS.items()}
        return [
            row_of(here, case, heading, [(concept, 1.0)], concept.trigger, seed)
            for heading, concept in learned.items()
        ]


def measured_others(cases: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """``other_rows`` of every case; kept once for all benchmarks that show Table 1."""
    return [row for some in measured("instructbooth", other_rows, cases) for row in some]


def other_method(here: World, case: Problem, name: str, seed: int) -> Concept:
    entry = METHODS[name]
    small = {"steps": 4, "batch_size": 2} if here.quick else {}
    config = entry.config.practical("toybox", **small)
    return last(entry.train(here.base, case.subject, config, runs_root=here.scratch, seed=seed)).concept


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over subjects and seeds by method, each with its 95 % interval over subjects."""
    found: dict[str, Any] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        found[method] = {
            f"{column}, {split}": _with_interval(own, lambda row, s=split, c=column: row[s][c])
            for split in ("seen", "unseen")
            for column in ("reward", "CLIP-T", "identity")
        }
    return found


def _with_interval(rows: Sequence[Mapping[str, Any]], value: Any) -> list[float | None]:
    """[mean, low, high]."""
    subjects = sorted({row["subject"] for row in rows})
    means = [statistics.fmean(value(row) for row in rows if row["subject"] == one) for one in subjects]
    return [statistics.fmean(means), *(v if math.isfinite(v) else None for v in bootstrap_interval(means))]


def effects(rows: Sequence[Mapping[str, Any]], aligned: str = "InstructBooth") -> dict[str, float | None]:
    """The aligned model against DreamBooth, means over subjects and seeds."""
    by_key = {(row["method"], row["subject"], row["seed"]): row for row in rows}
    cases = sorted({(row["subject"], row["seed"]) for row in rows})

    def mean(of: Any) -> float:
        compared = ("untouched model", "DreamBooth", aligned)
        return statistics.fmean(of(*(by_key[(method, *case)] for method in compared)) for case in cases)

    before, kept = mean(lambda b, d, i: d["seen"]["identity"]), mean(lambda b, d, i: i["seen"]["identity"])
    return {
        "reward gain, seen": mean(
            lambda b, d, i: (i["seen"]["reward"] - d["seen"]["reward"]) / b["seen"]["spread"]
        ),
        "reward gain, unseen": mean(
            lambda b, d, i: (i["unseen"]["reward"] - d["unseen"]["reward"]) / b["unseen"]["spread"]
        ),
        "CLIP-T gain, seen": mean(lambda b, d, i: i["seen"]["CLIP-T"] - d["seen"]["CLIP-T"]),
        "identity of DreamBooth's": kept / before if before > 0 else None,
    }


# --- all of it -----------------------------------------------------------------------------------------


def run(quick: bool) -> dict[str, Any]:
    subjects, seeds = (SUBJECTS[:1], SEEDS[:1]) if quick else (SUBJECTS, SEEDS)
    cases = [(*subject, seed, quick) for subject in subjects for seed in seeds]
    rows = [row for some in measured("instructbooth", rows_of, cases) for row in some]
    found, rows = effects(rows), [*rows, *measured_others(cases)]
    numbers = {
        "effects": found,
        "table 1": table(rows),
        "table 1 as published": PUBLISHED["instructbooth"],
        "rows": rows,
    }
    return {"numbers": numbers, "bars": list(effect_bars(found)), "seeds": list(seeds)}


def effect_bars(found: Mapping[str, float | None]) -> Iterator[dict[str, Any]]:
    of = {name: math.nan if value is None else value for name, value in found.items()}
    gain, kept = of["reward gain, seen"], of["identity of DreamBooth's"]
    yield bar("reward of activities, stds of the base model's", value=gain, op=">=", bar=EFFECT_BAR)
    yield bar("CLIP-T gain", value=of["CLIP-T gain, seen"], op=">", bar=0.0)
    yield bar("reward of unseen activities", value=of["reward gain, unseen"], op=">", bar=0.0)
    yield bar("identity, of DreamBooth's", value=kept, op=">=", bar=IDENTITY_BAR)

"""What is learned, on Toybox: identity and prompt on held-out photos, drift of the class, the overfit curve.

    identity = (method - base) / (oracle - base)

each the mean similarity, by the encoder in DINO's role, of a picture to the held-out photo whose caption was
its prompt. *base* is the untouched model asked for the class noun; *oracle* is the renderer drawing the
subject anew for the same caption. Toybox's own encoders judge: these numbers say nothing beside those of
full-size models.
"""
# Shapes: B pictures, H W pixels.

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..backbones.toybox import captions, render, world
from ..concepts.applying import apply_concepts
from ..concepts.concept import Concept
from ..scoring.encoders import Encoders, open_encoders
from ..scoring.metrics import bootstrap_interval, clip_t, dino, paired
from ..subjects import Subject, from_images
from ..trainers import METHODS
from ..trainers.data import name_subject
from ..trainers.drawing import picture_seed
from ..trainers.events import Done, Event, HeldOutScore
from ..trainers.monitor import HeldOutMonitor
from ..trainers.prior import PriorPreservation
from . import bar
from .cases import measured

# Nouns and numbers of the subjects that are reported. Presets were tuned on numbers under 100.
SUBJECTS = (("rabbit", 101), ("bird", 102), ("car", 103), ("cup", 104), ("turtle", 105), ("robot", 106))
SEEDS = (0, 1, 2)
NUM_TRAIN, NUM_HELD_OUT = 5, 10
DRAWN_PER_CAPTION = 2
STEPS, GUIDANCE = 20, 5.0
BARS = {"dreambooth": 0.6, "textual_inversion": 0.4}
CLIP_T_BAR = 0.9  # of the base model's
DRIFT_BAR = 0.5  # with prior preservation, of the drift without
PRIOR = PriorPreservation(num_images=100, steps=20, guidance=5.0, batch_size=25)
# Figure 1 of the attractor paper: DreamBooth of every weight, and far too many steps.
OVERFIT = {
    "train": "unet",
    "learning_rate": 3e-4,
    "steps": 1000,
    "schedule": "constant",
    "checkpoint_every": 1000,
}
FLAT, FALL = 0.02, 0.05  # in DINO and in CLIP-T: less than the one is flat, more than the other a fall
LAST_SCORES = 4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A subject in photos, and what a perfect learner would draw for its held-out captions."""

    subject: Subject
    oracle_BHWC: Tensor

    @property
    def prompts(self) -> list[str]:
        return [photo.caption or "" for photo in self.subject.held_out]

    def held_out(self) -> Tensor:
        return load_photos(self.subject.held_out)


def problem(noun: str, number: int, store: Path) -> Problem:
    """Render a subject's photos, train and held out, and the oracle's pictures."""
    instance = world.subject(noun, number)
    pictures = world.subject_pictures(instance, NUM_TRAIN + NUM_HELD_OUT, seed=number)
    words = [captions.caption(picture).replace(noun, "{}", 1) for picture in pictures]
    train = photos(pictures[:NUM_TRAIN], words[:NUM_TRAIN], store, noun)
    held_out = photos(pictures[NUM_TRAIN:], words[NUM_TRAIN:], store, noun)
    subject = replace(train, name=f"{noun}{number}", held_out=held_out.photos)
    dice = random.Random(f"oracle {noun} {number}")
    anew = [redrawn(picture, dice) for picture in pictures[NUM_TRAIN:]]
    return Problem(subject=subject, oracle_BHWC=rendered(anew))


def one_place(noun: str, number: int, store: Path) -> Problem:
    """The same, but all training photos are taken in one place, and none has a caption: a model that has
    learned them by heart takes the subject there whatever the prompt says."""
    case = problem(noun, number, store)
    pictures = world.subject_pictures(world.subject(noun, number), NUM_TRAIN, seed=number)
    train = from_images(rendered(in_one_place(pictures)), store, class_noun=noun)
    return replace(case, subject=replace(train, name=case.subject.name, held_out=case.subject.held_out))


def in_one_place(
    pictures: Sequence[world.Picture], place: world.Picture | None = None
) -> list[world.Picture]:
    """The same subjects, all where ``place`` was taken; None: where the first of them was."""
    place = place or pictures[0]
    return [replace(one, scene=place.scene, variant=place.variant, light=place.light) for one in pictures]


def photos(pictures: Sequence[world.Picture], words: Sequence[str], store: Path, noun: str) -> Subject:
    return from_images(rendered(pictures), store, class_noun=noun, captions=list(words))


def rendered(pictures: Sequence[world.Picture]) -> Tensor:
    return torch.from_numpy(np.stack(list(render.images(pictures)))).float() / 255


def redrawn(picture: world.Picture, dice: random.Random) -> world.Picture:
    """The same subject for the same caption: another place, side and drawing of the scene."""
    thing = picture.things[0]
    moved = replace(thing, x_px=32 + dice.uniform(-4, 4), mirrored=dice.random() < 0.5)
    return replace(picture, things=(moved,), variant=dice.randrange(16))


def load_photos(some: Sequence[Any]) -> Tensor:
    pixels = [torch.from_numpy(np.array(photo.open())).permute(2, 0, 1).float() / 255 for photo in some]
    return torch.stack(pixels)


# --- drawing and scoring ------------------------------------------------------------------------------


def drawn(backbone: Backbone, prompts: Sequence[str], seed: int, purpose: str) -> Tensor:
    """One picture per prompt."""
    seeds = [picture_seed(seed, purpose, number) for number in range(len(prompts))]
    return backbone.sample(list(prompts), seeds=seeds, steps=STEPS, guidance=GUIDANCE)


def scores(
    case: Problem, backbone: Backbone, encoders: Encoders, word: str, seed: int
) -> tuple[float, float]:
    """(identity similarity, CLIP-T) of pictures of the held-out captions with ``word`` for the subject."""
    reference_BD = encoders.dino.encode(case.held_out())
    noun = case.subject.class_noun
    text_BD = encoders.clip.encode_text([name_subject(p, noun, case.subject) for p in case.prompts])
    prompts = [name_subject(p, word, case.subject) for p in case.prompts]
    similar, faithful = [], []
    for k in range(DRAWN_PER_CAPTION):
        pictures_B3HW = drawn(backbone, prompts, seed, f"held-out {k}")
        similar.append(paired(encoders.dino.encode(pictures_B3HW), reference_BD).mean())
        faithful.append(clip_t(encoders.clip.encode(pictures_B3HW), text_BD).mean())
    return float(torch.stack(similar).mean()), float(torch.stack(faithful).mean())


def oracle_score(case: Problem, encoders: Encoders) -> float:
    pictures_B3HW = case.oracle_BHWC.permute(0, 3, 1, 2)
    return float(paired(encoders.dino.encode(pictures_B3HW), encoders.dino.encode(case.held_out())).mean())


def class_similarity(case: Problem, backbone: Backbone, encoders: Encoders, seed: int) -> float:
    """How much pictures of the bare class noun look like the subject's photos."""
    noun = case.subject.class_noun
    pictures_B3HW = drawn(backbone, [captions.prompt(noun)] * 20, seed, "class")
    photos_BD = encoders.dino.encode(load_photos(case.subject.photos))
    return float(dino(encoders.dino.encode(pictures_B3HW), photos_BD).mean())


@contextmanager
def knowing(base: BaseModel, concept: Concept) -> Iterator[Backbone]:
    with apply_concepts(open_backbone(base), [(concept, 1.0)]) as backbone:
        yield backbone


def last(events: Iterator[Event]) -> Done:
    for event in events:
        done = event
    assert isinstance(done, Done)
    return done


# --- the rows -----------------------------------------------------------------------------------------


def learned_rows(noun: str, number: int, seed: int) -> list[dict[str, Any]]:
    """One row per method, of one subject and seed."""
    base, encoders, rows = BaseModel(source="toybox"), open_encoders("toybox"), []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        case = problem(noun, number, scratch / "photos")
        oracle, untouched = oracle_score(case, encoders), open_backbone(base)
        base_dino, base_clip_t = scores(case, untouched, encoders, noun, seed)
        base_class = class_similarity(case, untouched, encoders, seed)
        for variant, method, prior in VARIANTS:
            row = {"variant": variant, "subject": case.subject.name, "seed": seed}
            done = last(learn(base, case.subject, method, seed, scratch, prior))
            with knowing(base, done.concept) as backbone:
                own_dino, own_clip_t = scores(case, backbone, encoders, done.concept.trigger, seed)
                drift = class_similarity(case, backbone, encoders, seed) - base_class
            row |= {"identity": (own_dino - base_dino) / (oracle - base_dino), "drift": drift}
            row |= {"clip_t_ratio": own_clip_t / base_clip_t, "dino": own_dino, "base_dino": base_dino}
            rows.append(row | {"oracle_dino": oracle, "clip_t": own_clip_t, "base_clip_t": base_clip_t})
    return rows


# (name in the table, method, prior preservation)
VARIANTS = (
    ("textual_inversion", "textual_inversion", None),
    ("dreambooth", "dreambooth", PRIOR),
    ("dreambooth without prior", "dreambooth", None),
)


def learn(
    base: BaseModel, subject: Subject, method: str, seed: int, scratch: Path, prior: PriorPreservation | None
) -> Iterator[Event]:
    entry = METHODS[method]
    extra = {"prior": prior} if method == "dreambooth" else {}
    config = entry.config.practical("toybox")
    events: Iterator[Event] = entry.train(base, subject, config, runs_root=scratch, seed=seed, **extra)
    return events


def overfit_curve(noun: str, number: int, quick: bool) -> dict[str, Any]:
    """A long DreamBooth run under the monitor: train against held-out, and the verdict."""
    entry = METHODS["dreambooth"]
    config = entry.config.practical("toybox", **{**OVERFIT, "steps": 400 if quick else OVERFIT["steps"]})
    monitor = HeldOutMonitor(every=50, seeds_per_photo=1 if quick else 3, steps=STEPS, guidance=GUIDANCE)
    with tempfile.TemporaryDirectory() as name:
        case = one_place(noun, number, Path(name) / "photos")
        events = entry.train(
            BaseModel(source="toybox"), case.subject, config,
            runs_root=Path(name), monitor=monitor, encoders=open_encoders("toybox"),
        )  # fmt: skip
        found = [event for event in events if isinstance(event, HeldOutScore)]
    curve = [
        {"step": e.step, "train": e.train_dino, "held_out": e.held_out_dino, "clip_t": e.clip_t}
        for e in found
    ]
    return {"subject": case.subject.name, "curve": curve, "verdict": found[-1].verdict}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over subjects and seeds of each variant, identity's with its 95 % interval over subjects."""
    table: dict[str, dict[str, Any]] = {}
    for name, _, _ in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        columns = ("identity", "clip_t_ratio", "drift")
        table[name] = {column: statistics.fmean(row[column] for row in own) for column in columns}
        subjects = sorted({row["subject"] for row in own})
        per_subject = [
            statistics.fmean(row["identity"] for row in own if row["subject"] == one) for one in subjects
        ]
        interval = bootstrap_interval(per_subject)
        table[name]["identity interval"] = [v if math.isfinite(v) else None for v in interval]
    return table


def run(quick: bool) -> dict[str, Any]:
    """All effects. ``quick``: one subject, one seed, half the overfit curve."""
    subjects, seeds = (SUBJECTS[:1], SEEDS[:1]) if quick else (SUBJECTS, SEEDS)
    cases = [(*subject, seed) for subject in subjects for seed in seeds]
    rows = [row for found in measured("learning", learned_rows, cases) for row in found]
    overfit = measured("learning", overfit_curve, [(*SUBJECTS[0], quick)])[0]
    means = summary(rows)
    names = [f"{noun}{number}" for noun, number in subjects]
    judge = open_encoders("toybox").dino.id
    numbers = {"subjects": names, "judge": judge, "means": means, "overfit": overfit, "rows": rows}
    return {"numbers": numbers, "bars": list(bars(means, overfit)), "seeds": list(seeds)}


def bars(means: Mapping[str, Mapping[str, float]], overfit: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What must hold of the means and of the overfit curve."""
    for method, least in BARS.items():
        yield bar(f"identity, {method}", value=means[method]["identity"], op=">=", bar=least)
        kept = means[method]["clip_t_ratio"]
        yield bar(f"CLIP-T of the base model's, {method}", value=kept, op=">=", bar=CLIP_T_BAR)
    with_prior, without = (means[name]["drift"] for name in ("dreambooth", "dreambooth without prior"))
    share = with_prior / without if without > 0 else math.nan
    yield bar("drift of the class with prior, of without", value=share, op="<=", bar=DRIFT_BAR)
    named = float("overfitting since" in overfit["verdict"])
    yield bar("the monitor names the turning point", value=named, op="==", bar=1.0)
    change = after_the_peak(overfit["curve"])
    yield bar("train DINO after the peak of held-out DINO", value=change["train"], op=">=", bar=-FLAT)
    yield bar("held-out DINO after its peak", value=change["held_out"], op="<=", bar=-FALL)
    yield bar("CLIP-T after the peak of held-out DINO", value=change["clip_t"], op="<=", bar=-FALL)


def after_the_peak(curve: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of the last scores minus the scores where held-out DINO was best."""
    peak = max(curve, key=lambda score: score["held_out"])
    ends = curve[-LAST_SCORES:]
    return {
        name: statistics.fmean(score[name] for score in ends) - peak[name]
        for name in ("train", "held_out", "clip_t")
    }

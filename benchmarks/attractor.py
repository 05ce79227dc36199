"""What the attractor does, on Toybox: TI against TI+ on held-out photos.

20 subjects, half of them living. The training photos of half of all subjects share one background on purpose:
there the attractor must matter most. Both methods have the same photos, steps, rate, batch and seeds, and
their own prompts (the templates of their papers). Scores are of pictures drawn for held-out captions: DINO
and CLIP-I against the one photo that the caption came from, CLIP-T against the caption with the class noun.

The attractor soaks the background up if "a photo of the A*" looks more like the training photos' empty
scenes than like the subject elsewhere, and "a photo of a v*" the reverse.
Toybox's own encoders judge. A full run takes about 45 minutes on 2 cores; ``quick`` some minutes. NeTI has a
run of its own (``attractor_neti.py``), as has the ablation (``attractor_ablation.py``).
"""
# Shapes: B pictures, D feature width.

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
from ..concepts.loading import load_concept
from ..scoring.encoders import Encoders, open_encoders
from ..scoring.metrics import bootstrap_interval, clip_t, paired
from ..subjects import Subject, from_images
from ..trainers import METHODS
from ..trainers.attractor import Attractor
from ..trainers.data import name_subject
from ..trainers.events import Done
from . import bar
from .cases import measured
from .learning import drawn, in_one_place, load_photos, photos, rendered

# Ten living and ten not; presets were tuned on numbers under 100.
LIVING = ("rabbit", "cat", "bear", "bird", "fish", "turtle", "elephant", "rabbit", "bird", "turtle")
SUBJECTS = tuple((noun, 201 + n) for n, noun in enumerate(LIVING)) + tuple(
    (world.THINGS[n % len(world.THINGS)], 301 + n) for n in range(10)
)
SEEDS = (0, 1, 2)
PLAIN = ("studio", "snow")  # nothing is there that a word could soak up: A* learns hats and flags instead
NUM_TRAIN, NUM_HELD_OUT, SEEN = 5, 10, 16  # photos, and pictures of each word for the soak-up
SETTINGS: Mapping[str, Any] = {
    "steps": 200,
    "batch_size": 4,
    "schedule": "cosine",
    "use_captions": False,
    "accumulation": 1,
}
RATES = {"textual_inversion": 1e-2, "neti": 8e-3}  # the practical presets'
SOAKED = 0.1  # cosine, both ways


@dataclass(frozen=True, kw_only=True)
class Case:
    """A subject in photos with exact masks, and the empty scenes behind its training photos."""

    subject: Subject
    shared: bool  # whether the training photos have one background
    scenes_BHWC: Tensor

    @property
    def captions(self) -> list[str]:
        return [photo.caption or "" for photo in self.subject.held_out]


def case_of(noun: str, number: int, store: Path, *, shared: bool) -> Case:
    """Render a subject. With ``shared``, all training photos are taken where the first one was that is in no
    plain place."""
    pictures = world.subject_pictures(world.subject(noun, number), NUM_TRAIN + NUM_HELD_OUT, seed=number)
    train, held_out = pictures[:NUM_TRAIN], pictures[NUM_TRAIN:]
    if shared:
        places = [one for one in train if one.scene not in PLAIN]
        train = in_one_place(train, next(iter(places), None))
    words = [captions.caption(one).replace(noun, "{}", 1) for one in (*train, *held_out)]
    masks_BHW = torch.from_numpy(np.stack([render.render(one).masks[0] for one in train])).float()
    learned = from_images(
        rendered(train), store, masks=masks_BHW, class_noun=noun, captions=words[:NUM_TRAIN]
    )
    judged = photos(held_out, words[NUM_TRAIN:], store, noun)
    subject = replace(learned, name=f"{noun}{number}", held_out=judged.photos)
    scenes = rendered([replace(one, things=()) for one in train])
    return Case(subject=subject, shared=shared, scenes_BHWC=scenes)


# --- one run ---------------------------------------------------------------------------------------------


def learned(
    case: Case, method: str, seed: int, scratch: Path, steps: int, attractor: Attractor | None
) -> Done:
    entry = METHODS[method]
    settings = {**SETTINGS, "steps": steps, "checkpoint_every": steps, "learning_rate": RATES[method]}
    own = {"num_vectors": 2} if method == "textual_inversion" else {}  # the practical preset's
    config = entry.config(**settings, **own, attractor=attractor)
    base = BaseModel(source="toybox")
    for event in entry.train(base, case.subject, config, runs_root=scratch, seed=seed):
        last = event
    assert isinstance(last, Done)
    return last


def scored(case: Case, done: Done, encoders: Encoders, seed: int) -> dict[str, float]:
    """Means over held-out captions; with an attractor also what A* and v* look like."""
    base = open_backbone(BaseModel(source="toybox"))
    files = sorted(done.concept.path.parent.glob(f"{done.concept.path.stem}-attractor*.safetensors"))
    words = [load_concept(path) for path in files]
    with apply_concepts(base, [(concept, 1.0) for concept in (done.concept, *words)]) as model:
        scores = held_out_scores(case, model, encoders, done.concept.trigger, seed)
        if words:
            scores |= soaked(case, model, encoders, done.concept.trigger, words[0].trigger, seed)
    return scores


def held_out_scores(
    case: Case, model: Backbone, encoders: Encoders, word: str, seed: int
) -> dict[str, float]:
    noun, reference = case.subject.class_noun, load_photos(case.subject.held_out)
    text_BD = encoders.clip.encode_text([name_subject(c, noun, case.subject) for c in case.captions])
    prompts = [name_subject(caption, word, case.subject) for caption in case.captions]
    pictures = drawn(model, prompts, seed, "held-out 0")
    clip_BD = encoders.clip.encode(pictures)
    return {
        "dino": mean(paired(encoders.dino.encode(pictures), encoders.dino.encode(reference))),
        "clip_i": mean(paired(clip_BD, encoders.clip.encode(reference))),
        "clip_t": mean(clip_t(clip_BD, text_BD)),
    }


def soaked(
    case: Case, model: Backbone, encoders: Encoders, word: str, attractor: str, seed: int
) -> dict[str, float]:
    """How much more A* looks like the empty training scenes than like the subject; v*, the reverse."""
    scenes_BD = encoders.dino.encode(case.scenes_BHWC.permute(0, 3, 1, 2))
    subject_BD = encoders.dino.encode(load_photos(case.subject.held_out))
    leads = {}
    for name, own, sign in (("attractor", f"the {attractor}", 1.0), ("subject", f"a {word}", -1.0)):
        pictures = drawn(model, [f"a photo of {own}"] * SEEN, seed, name)
        features_BD = encoders.dino.encode(pictures)
        lead = mean(features_BD @ scenes_BD.T) - mean(features_BD @ subject_BD.T)
        leads[f"{name} lead"] = sign * lead
    return leads


def mean(values: Tensor) -> float:
    return float(values.mean())


# --- tables ----------------------------------------------------------------------------------------------


def row_of(
    place: int, method: str, seed: int, steps: int, changes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Subject number ``place`` learned by "textual_inversion" or "neti" and scored. ``changes`` are what its
    attractor has other than the defaults; None is no attractor."""
    with tempfile.TemporaryDirectory() as name:
        case = case_of(*SUBJECTS[place], Path(name) / "photos", shared=is_shared(place))
        attractor = None if changes is None else replace(Attractor(), **changes)
        done = learned(case, method, seed, Path(name), steps, attractor)
        scores = scored(case, done, open_encoders("toybox"), seed)
    return {"subject": case.subject.name, "shared": case.shared, "seed": seed, **scores}


def is_shared(place: int) -> bool:
    """Every second subject, of the living ones and of the others, was photographed in one place."""
    return place % 2 == 0


def compared(method: str, places: Sequence[int], seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """One row per subject and seed, without the attractor and with it ("plus")."""
    kinds: dict[str, dict[str, Any] | None] = {"plain": None, "plus": {}}
    told = [(kind, place, seed) for seed in seeds for place in places for kind in kinds]
    asked = [(place, method, seed, steps, kinds[kind]) for kind, place, seed in told]
    rows = measured("attractor", row_of, asked)
    return [{"kind": kind, **row} for (kind, _, _), row in zip(told, rows, strict=True)]


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of plus minus plain over subjects and seeds, with the 95 % interval over subjects."""
    table: dict[str, Any] = {}
    subjects = dict.fromkeys(row["subject"] for row in rows)
    for metric in ("dino", "clip_i", "clip_t"):
        of = {
            kind: [
                statistics.fmean(
                    row[metric] for row in rows if row["kind"] == kind and row["subject"] == subject
                )
                for subject in subjects
            ]
            for kind in ("plain", "plus")
        }
        gaps = [plus - plain for plain, plus in zip(of["plain"], of["plus"], strict=True)]
        ends = bootstrap_interval(gaps) if len(gaps) > 1 else (math.nan, math.nan)
        table[metric] = {
            "plain": statistics.fmean(of["plain"]),
            "plus": statistics.fmean(of["plus"]),
            "difference": statistics.fmean(gaps),
            "interval": [end if math.isfinite(end) else None for end in ends],
        }
    return table


def effect(method: str, plain: str, quick: bool) -> dict[str, Any]:
    """The whole comparison for a method, "TI" or "NeTI". ``quick``: one subject of each half, one seed, a few
    steps: it shows that the measurement works, not the effect."""
    places = (0, 11) if quick else range(len(SUBJECTS))
    seeds, steps = (SEEDS[:1], 6) if quick else (SEEDS, int(SETTINGS["steps"]))
    rows = compared(method, places, seeds, steps)
    shared = [row for row in rows if row["shared"]]
    gained = differences(shared)
    numbers = {
        "one background": gained,
        "own backgrounds": differences([row for row in rows if not row["shared"]]),
        "all subjects": differences(rows),
        "judge": open_encoders("toybox").dino.id,
        "rows": rows,
    }
    return {
        "numbers": numbers,
        "bars": list(bars(plain, shared, gained)),
        "seeds": list(seeds),
    }


def bars(
    plain: str, shared: Sequence[Mapping[str, Any]], gained: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for metric in ("dino", "clip_t"):
        low = gained[metric]["interval"][0]
        value = math.nan if low is None else low
        yield bar(
            f"{plain}+ over {plain} with one background, {metric}, lower end", value=value, op=">", bar=0
        )
    for word in ("attractor", "subject"):
        leads = [row[f"{word} lead"] for row in shared if row["kind"] == "plus"]
        yield bar(f"lead of the {word}'s word", value=statistics.fmean(leads), op=">=", bar=SOAKED)


def run(quick: bool) -> dict[str, Any]:
    return effect("textual_inversion", "TI", quick)

"""What the attractor does, on Toybox: TI against TI+ and NeTI against NeTI+ on held-out photos.

20 subjects, half of them living. The training photos of half of all subjects share one background on purpose:
there the attractor must matter most. Every method has the same photos, steps, rate, batch and seeds, and its
own prompts (the templates of its paper). Scores are of pictures drawn for held-out captions: DINO and CLIP-I
against the one photo that the caption came from, CLIP-T against the caption with the class noun.

The attractor soaks the background up if "a photo of the A*" looks more like the training photos' empty
scenes than like the subject elsewhere, and "a photo of a v*" the reverse. Step times are alternated within
one run.
Toybox's own encoders judge. A full run takes about three hours on 2 cores; ``quick`` some minutes.
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
from ..trainers.attractor import SCHEDULES, Attractor
from ..trainers.data import name_subject
from ..trainers.events import Done, Step
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
PAIRS = (("TI", "TI+", "textual_inversion"), ("NeTI", "NeTI+", "neti"))
LOSSES = ("subject", "background", "joint", "contrastive")
SOAKED = 0.1  # cosine, both ways
STEP_BARS = {"TI+": 3.2, "NeTI": 4.0}  # times TI's step
ABLATED = 6  # subjects with one background, one seed


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


def compared(places: Sequence[int], seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """One row per subject, seed and method."""
    methods: dict[str, tuple[str, dict[str, Any] | None]] = {
        name: (method, changes)
        for plain, plus, method in PAIRS
        for name, changes in ((plain, None), (plus, {}))
    }
    names, asked = [], []
    for name, (method, changes) in methods.items():
        for place in places:
            for seed in seeds:
                names.append(name)
                asked.append((place, method, seed, steps, changes))
    rows = measured("attractor", row_of, asked)
    return [{"method": name, **row} for name, row in zip(names, rows, strict=True)]


def differences(rows: Sequence[Mapping[str, Any]], *, shared: bool | None) -> dict[str, Any]:
    """Mean of plus minus plain over subjects and seeds, with the 95 % interval over subjects."""
    table: dict[str, Any] = {}
    for plain, plus, _ in PAIRS:
        for metric in ("dino", "clip_i", "clip_t"):
            gaps: dict[str, list[float]] = {}
            own = {
                (row["subject"], row["seed"], row["method"]): row[metric]
                for row in rows
                if shared is None or row["shared"] == shared
            }
            for (subject, seed, method), value in own.items():
                if method == plus:
                    gaps.setdefault(subject, []).append(value - own[subject, seed, plain])
            per_subject = [statistics.fmean(gap) for gap in gaps.values()]
            table[f"{plus} over {plain}, {metric}"] = interval_of(per_subject)
    return table


def interval_of(per_subject: Sequence[float]) -> dict[str, Any]:
    low, high = bootstrap_interval(per_subject) if len(per_subject) > 1 else (math.nan, math.nan)
    ends = [value if math.isfinite(value) else None for value in (low, high)]
    return {"mean": statistics.fmean(per_subject), "interval": ends, "subjects": len(per_subject)}


def ablation(places: Sequence[int], seed: int, steps: int, quick: bool) -> dict[str, dict[str, float]]:
    """NeTI+ under every schedule (Figure 7), and with each of its losses left out."""
    default = Attractor().schedule
    variants: dict[str, dict[str, Any]] = {
        f"schedule {name}": {} if name == default else {"schedule": name} for name in SCHEDULES
    }
    variants |= {f"without {name}": {f"{name}_weight": 0.0} for name in LOSSES}
    table = {}
    for name, changes in list(variants.items())[:: 4 if quick else 1]:
        scores = measured("attractor", row_of, [(place, "neti", seed, steps, changes) for place in places])
        numbers = [key for key in scores[0] if key not in ("subject", "shared", "seed")]
        table[name] = {key: statistics.fmean(score[key] for score in scores) for key in numbers}
    return table


def step_times(case: Case, scratch: Path, counted: int) -> dict[str, float]:
    """Median seconds of a step, all methods in turns, so that they meet the same machine."""
    runs: dict[str, Iterator[Any]] = {}
    for plain, plus, method in PAIRS:
        for name, attractor in ((plain, None), (plus, Attractor())):
            config = METHODS[method].config(
                steps=10**6, batch_size=8, accumulation=1, checkpoint_every=10**6, attractor=attractor,
                use_captions=False,
            )  # fmt: skip
            runs[name] = METHODS[method].train(
                BaseModel(source="toybox"), case.subject, config, runs_root=scratch / "times" / name
            )
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(counted + 2):
        for name, run in runs.items():
            taken = next(event.seconds for event in run if isinstance(event, Step))
            if number >= 2:
                seconds[name].append(taken)
    for run in runs.values():
        run.close()  # type: ignore[attr-defined]
    return {name: statistics.median(times) for name, times in seconds.items()}


def run(quick: bool) -> dict[str, Any]:
    """All of it. ``quick``: one subject of each half, one seed, a few steps, a part of the ablation: it shows
    that the measurement works, not the effect."""
    places = (0, 11) if quick else range(len(SUBJECTS))
    seeds, steps = (SEEDS[:1], 6) if quick else (SEEDS, int(SETTINGS["steps"]))
    rows = compared(places, seeds, steps)
    shared = [place for place in places if is_shared(place)][: 1 if quick else ABLATED]
    ablated = ablation(shared, seeds[0], steps, quick)
    with tempfile.TemporaryDirectory() as name:
        case = case_of(*SUBJECTS[0], Path(name) / "photos", shared=True)
        times = step_times(case, Path(name), 3 if quick else 30)
    numbers = {
        "one background": differences(rows, shared=True),
        "own backgrounds": differences(rows, shared=False),
        "all subjects": differences(rows, shared=None),
        "ablation of NeTI+": ablated,
        "seconds per step": times,
        "judge": open_encoders("toybox").dino.id,
        "rows": rows,
    }
    return {"numbers": numbers, "bars": list(bars(rows, numbers, times)), "seeds": list(seeds)}


def bars(
    rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any], times: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    for plain, plus, _ in PAIRS:
        for metric in ("dino", "clip_t"):
            low = numbers["one background"][f"{plus} over {plain}, {metric}"]["interval"][0]
            value = math.nan if low is None else low
            yield bar(
                f"{plus} over {plain} with one background, {metric}, lower end", value=value, op=">", bar=0
            )
    for word in ("attractor", "subject"):
        leads = [row[f"{word} lead"] for row in rows if row["shared"] and f"{word} lead" in row]
        yield bar(f"lead of the {word}'s word", value=statistics.fmean(leads), op=">=", bar=SOAKED)
    for method, most in STEP_BARS.items():
        yield bar(f"step of {method}, times TI's", value=times[method] / times["TI"], op="<=", bar=most)

"""InstructBooth's appendix F on Toybox: rare-looking subjects learned with and without a description.

Six subjects whose look no caption names. "a sks dotted red fish" against "a sks fish": identity, by Toybox's
encoder in DINO's role against held-out photos, of pictures of activities. About 10 minutes on 2 cores.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

from ..backbones.toybox import world
from ..scoring.metrics import bootstrap_interval
from ..trainers.dreambooth import DreamBoothConfig, train_dreambooth
from . import bar
from .cases import measured
from .instructbooth import both_kinds, small_world
from .learning import SEEDS, SUBJECTS, last


def described(noun: str, number: int, told: bool, seed: int, quick: bool) -> float:
    """Identity in seen activities, learned with the description in the prompt (``told``) or without."""
    look = world.subject(noun, number).look
    with small_world(quick) as here:
        case = here.case(noun, number)
        case = replace(case, subject=replace(case.subject, description=f"{look.pattern} {look.colour}"))
        small = {"steps": 4, "batch_size": 2} if quick else {}
        config = DreamBoothConfig.practical(
            "toybox", use_description=told, use_captions=False, prompt="a {}", **small
        )
        events = train_dreambooth(here.base, case.subject, config, runs_root=here.scratch, seed=seed)
        concept = last(events).concept
        return both_kinds(here, case, [(concept, 1.0)], concept.trigger, seed)["seen"]["identity"]


def run(quick: bool) -> dict[str, Any]:
    subjects, seed = SUBJECTS[: 1 if quick else None], SEEDS[0]
    scores = {
        name: measured("instructbooth", described, [(*subject, told, seed, quick) for subject in subjects])
        for name, told in (("with", True), ("without", False))
    }
    differences = [a - b for a, b in zip(scores["with"], scores["without"], strict=True)]
    won = statistics.fmean(differences)
    ends = bootstrap_interval(differences) if len(differences) > 1 else (math.nan, math.nan)
    numbers = {
        "subjects": [f"{noun}{number}" for noun, number in subjects],
        **{f"identity {name} the description": values for name, values in scores.items()},
        "difference": won,
        "interval over subjects": [end if math.isfinite(end) else None for end in ends],
    }
    return {"numbers": numbers, "bars": [bar("identity won", value=won, op=">", bar=0.0)], "seeds": [seed]}

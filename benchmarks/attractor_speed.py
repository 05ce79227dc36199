"""A step of TI+, NeTI and NeTI+ beside one of Textual Inversion, on the same photos and batch.

The four take turns within one process, so that they meet the same machine. Wall-clock time is what the bars
ask for; the processor's time is beside it, since it says the same on a machine that has other work. About
2 minutes on 2 cores.
"""
# Shapes: B photos of a batch.

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..scoring.metrics import bootstrap_interval
from ..subjects import Subject
from ..trainers.attractor import Attractor
from ..trainers.loop import Loop
from ..trainers.method import LoopConfig, Method
from ..trainers.neti import NeTI, NeTIConfig, NeTIPlus
from ..trainers.run import Run, Settings
from ..trainers.textual_inversion import TextualInversion, TextualInversionConfig, TextualInversionPlus
from . import bar
from .toys import masked_subject

BATCH = 8  # the papers'
PHOTOS = 5  # the papers'
TIMES_TI = {"TI+": 3.2, "NeTI": 4.0}  # bars
FOREVER = 10**6  # steps: a run that this benchmark leaves before its end

Make = Callable[[Backbone, Subject], tuple[Method, LoopConfig]]


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float


def _textual_inversion(backbone: Backbone, subject: Subject) -> tuple[Method, LoopConfig]:
    config = _rows()
    return TextualInversion(backbone, subject, config, seed=0), config


def _textual_inversion_plus(backbone: Backbone, subject: Subject) -> tuple[Method, LoopConfig]:
    config = _rows(Attractor())
    return TextualInversionPlus(backbone, subject, config, seed=0), config


def _neti(backbone: Backbone, subject: Subject) -> tuple[Method, LoopConfig]:
    config = _mapper()
    return NeTI(backbone, subject, config, seed=0), config


def _neti_plus(backbone: Backbone, subject: Subject) -> tuple[Method, LoopConfig]:
    config = _mapper(Attractor())
    return NeTIPlus(backbone, subject, config, seed=0), config


def _rows(attractor: Attractor | None = None) -> TextualInversionConfig:
    return TextualInversionConfig(
        steps=FOREVER, batch_size=BATCH, checkpoint_every=FOREVER, attractor=attractor
    )


def _mapper(attractor: Attractor | None = None) -> NeTIConfig:
    return NeTIConfig(
        steps=FOREVER, batch_size=BATCH, accumulation=1, checkpoint_every=FOREVER, attractor=attractor
    )


METHODS: Mapping[str, Make] = {
    "TI": _textual_inversion,
    "TI+": _textual_inversion_plus,
    "NeTI": _neti,
    "NeTI+": _neti_plus,
}


def loop_of(make: Make, backbone: Backbone, base: BaseModel, subject: Subject, scratch: Path) -> Loop:
    """A method ready for its first step, with the log and checkpoints that every run has."""
    method, config = make(backbone, subject)
    settings = Settings(
        method=make.__name__.strip("_"), subject=subject.name, subject_hash="", base_hash="",
        dtype=base.dtype, config=config, seed=0,
    )  # fmt: skip
    run = Run(scratch, settings)
    run.start({})
    for _ in method.prepare():
        pass
    return Loop(method, run, config, seed=0, judge=None)


def costs_of(loops: Mapping[str, Loop], warmup: int, counted: int) -> dict[str, list[Cost]]:
    """Every method's steps, one of each in turn."""
    costs: dict[str, list[Cost]] = {name: [] for name in loops}
    for _ in range(warmup + counted):
        for name, loop in loops.items():
            wall, cpu = time.perf_counter(), time.process_time()
            loop.advance()
            costs[name].append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
    return {name: found[warmup:] for name, found in costs.items()}


def times_ti(costs: Mapping[str, list[Cost]], name: str, clock: str) -> list[float]:
    """Of each round, a method's time in those of TI's step beside it."""
    return [
        getattr(one, clock) / getattr(ti, clock) for one, ti in zip(costs[name], costs["TI"], strict=True)
    ]


def run(quick: bool, source: str = "toybox") -> dict[str, Any]:
    """The median over rounds of each step's time over TI's, with an interval over rounds."""
    base = BaseModel(source=source, dtype="fp32")
    backbone: Any = open_backbone(base)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        subject = masked_subject(scratch / "photos", "fish", 1, PHOTOS)
        loops = {n: loop_of(make, backbone, base, subject, scratch / "runs") for n, make in METHODS.items()}
        try:
            costs = costs_of(loops, *((1, 5) if quick else (2, 12)))
        finally:
            for loop in loops.values():
                loop.method.close()
    numbers: dict[str, Any] = {
        "photos in a batch": BATCH,
        "rounds": len(costs["TI"]),
        "cross-attention layers": backbone.num_cross_attentions,
        "tokens of a prompt": backbone.tokens.length,
        "threads": torch.get_num_threads(),
        "a step of TI, s": statistics.median(cost.wall_s for cost in costs["TI"]),
    }
    for name in list(METHODS)[1:]:
        wall, cpu = (times_ti(costs, name, clock) for clock in ("wall_s", "cpu_s"))
        numbers[f"{name}, times TI"] = statistics.median(wall)
        numbers[f"{name}, times TI, interval of the mean"] = list(bootstrap_interval(wall))
        numbers[f"{name}, times TI in processor time"] = statistics.median(cpu)
    bars = [
        bar(f"a step of {name}, times TI's", value=numbers[f"{name}, times TI"], op="<=", bar=most)
        for name, most in TIMES_TI.items()
    ]
    return {"numbers": numbers, "bars": bars, "seeds": [0]}

"""What a trainer yields while it works. The host draws them; nothing calls back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..concepts.concept import Concept


@dataclass(frozen=True)
class Phase:
    """Work before or beside the steps: "loading", "caching", "class images", "sampling", "scoring"."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """Where the run keeps everything: whoever watches it reads there."""

    run_folder: Path


@dataclass(frozen=True)
class Step:
    step: int  # 1-based: steps finished
    total: int
    loss: float
    terms: Mapping[str, float]
    lr: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True)
class Sample:
    step: int
    prompts: tuple[str, ...]
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class HeldOutScore:
    """Scores of pictures drawn with each photo's caption, against that photo. Means over photos and seeds."""

    step: int
    train_dino: float
    held_out_dino: float
    clip_t: float
    verdict: str  # "learning", "best so far", "overfitting since step 120"


@dataclass(frozen=True)
class Checkpoint:
    step: int
    path: Path


@dataclass(frozen=True)
class Done:
    concept: Concept  # the best by the monitor's rule, else the last
    best_step: int
    run_folder: Path
    reused: bool  # True when the finished run was found on disk


Event = Phase | Started | Step | Sample | HeldOutScore | Checkpoint | Done

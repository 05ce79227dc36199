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
    verdict: str  # "learning", "best so far", "overfitting since step 120: ...", "worse since ..."


@dataclass(frozen=True)
class Rollout:
    """What an epoch's pictures were worth, before the updates that learn from them. Means over pictures; a
    kind of prompt that was not drawn has None."""

    step: int  # updates finished before it
    epoch: int  # from 0
    reward: float
    with_identifier: float | None
    without_identifier: float | None
    spread: float  # std of the rewards


@dataclass(frozen=True)
class AlignmentScore:
    """The same pictures drawn anew, with the model as it is: does it obey, and is it still the subject?"""

    step: int
    reward: float  # trained activities, with the identifier
    unseen: float | None  # activities that never train
    without: float  # trained activities, the class alone
    identity: float  # similarity to the photos
    witness: float  # an independent scorer that training never asks
    verdict: str


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


Event = Phase | Started | Step | Sample | HeldOutScore | Rollout | AlignmentScore | Checkpoint | Done

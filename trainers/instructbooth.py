"""InstructBooth in one go (arXiv:2312.03011): DreamBooth with prior preservation, then alignment upon it.

The two trainers as they are, one after the other; each finds its own finished run again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..backbones.base import BaseModel
from ..core.errors import LikenessError
from ..scoring.encoders import Encoders
from ..scoring.rewards import CombinedSpec, RewardSpec
from ..subjects.prompt_pool import PromptPool
from ..subjects.subject import Subject
from .align import AlignConfig, train_align
from .dreambooth import DreamBoothConfig, train_dreambooth
from .events import Done, Event
from .guard import IdentityGuard
from .prior import PriorPreservation


@dataclass(frozen=True, kw_only=True)
class InstructBooth:
    """Both stages' settings."""

    personalize: DreamBoothConfig
    align: AlignConfig
    prior: PriorPreservation | None
    reward: RewardSpec | CombinedSpec
    guard: IdentityGuard | None = None


def train_instructbooth(
    base: BaseModel,
    subject: Subject,
    config: InstructBooth,
    *,
    pool: PromptPool,
    runs_root: Path,
    seed: int = 0,
    encoders: Encoders | None = None,
    roots: Sequence[Path] = (),
) -> Generator[Event, None, None]:
    """Personalize, then align. Each stage ends with a ``Done``: apply both concepts, in their order."""
    first: Done | None = None
    stage_one = train_dreambooth(
        base, subject, config.personalize, prior=config.prior, runs_root=runs_root, seed=seed
    )
    with closing(stage_one) as events:
        for event in events:
            first = event if isinstance(event, Done) else first
            yield event
    if first is None:
        raise LikenessError(f"Personalizing {subject.name} ended without a result")
    yield from train_align(
        base, subject, config.align,
        concepts=[(first.concept, 1.0)], pool=pool, reward=config.reward, guard=config.guard,
        runs_root=runs_root, seed=seed, encoders=encoders, roots=roots,
    )  # fmt: skip

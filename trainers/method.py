"""What the loop asks of a way to learn: settings, and what it must be able to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from ..backbones.base import Backbone
from ..concepts.concept import Artifact
from ..core.errors import LikenessError
from .events import Event, Phase
from .objectives import LossTerms

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every method's settings have in common. The methods give their papers' values."""

    steps: int = 500  # optimizer steps
    batch_size: int = 1  # instance rows in one forward
    accumulation: int = 1  # forwards per optimizer step
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"  # after the warmup: stay, or fall to 0 at the last step
    warmup_steps: int = 0  # linear, from 1/warmup_steps of the rate
    adam_beta1: float = 0.9  # Kingma & Ba 2015
    adam_beta2: float = 0.999  # Kingma & Ba 2015
    weight_decay: float = 1e-2  # decoupled, AdamW's own default (Loshchilov & Hutter 2019, as in torch)
    max_grad_norm: float = 1.0  # of all trained tensors together; 0 turns clipping off
    checkpoint_every: int = 100  # steps
    keep_checkpoints: int = 2  # newest ones; the best is always kept
    sample_every: int = 0  # steps; 0 draws no samples
    sample_steps: int = 20  # denoising steps
    sample_guidance: float = 5.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "sample_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 < self.learning_rate < 10, "learning_rate", self.learning_rate, "between 0 and 10")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, "one of " + ", ".join(SCHEDULES))

    def rate_factor(self, name: str) -> float:
        """How many times the learning rate the trained tensor ``name`` has."""
        return 1.0

    @property
    def rows_per_batch(self) -> int:
        """What several processes may divide a forward by."""
        return self.batch_size


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """LikenessError about a setting, unless it ``holds``."""
    if not holds:
        raise LikenessError(f"{name} is {value!r}.", expected=expected, fix=f"Change {name}.")


SCHEDULES: Mapping[
    str, Callable[[float], float]
] = {  # progress after the warmup, 0..1, to a share of the learning rate
    "constant": lambda p: 1.0,
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
}


class Method(Protocol):
    """A way to learn. It owns what is trained and knows the loss; no optimizer, no files."""

    trigger: str

    def prepare(self) -> Iterator[Phase]:
        """Encode what every step needs, then put on the model what is trained. Called first, once."""
        ...

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Exactly what is trained and checkpointed, fp32, in a fixed order."""
        ...

    def batch(self, index: int) -> Any:
        """The ``index``-th batch of the run, a function of the seed and ``index``."""
        ...

    def part(self, batch: Any, rows: slice) -> Any:
        """One process's rows of a batch; of photos and of class images alike. The loss of a batch is the mean
        of its equal parts' losses: LikenessError where it is not."""
        ...

    def loss(self, batch: Any) -> LossTerms: ...

    def after_step(self) -> None:
        """What the method does to its parameters after each update."""
        ...

    def learned(self) -> Backbone:
        """The model as it now knows the subject: prompts may name the trigger."""
        ...

    def export(self) -> Artifact: ...

    def close(self) -> None:
        """Give back what was borrowed from the base model. Called once, whatever happened."""
        ...


@runtime_checkable
class OnPolicy(Protocol):
    """What a method has besides when its batches come from what it has learned so far."""

    sample_prompts: Sequence[str]

    def collect(self, step: int) -> Iterator[Event]:
        """Make what the update after ``step`` finished ones learns from, unless it is there. Whole or not at
        all: an interrupt in between leaves nothing."""
        ...

    def state(self, step: int) -> Mapping[str, Tensor]:
        """What a run that goes on after ``step`` needs beside the parameters."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None: ...

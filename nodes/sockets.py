"""The pack's own socket types. What flows through them are small frozen handles; the data are on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .host import io

if TYPE_CHECKING:
    from ..backbones.base import BaseModel
    from ..concepts.concept import Concept

Subject = io.Custom("LIKENESS_SUBJECT")  # subjects.Subject
Base = io.Custom("LIKENESS_BASE")  # backbones.BaseModel
Model = io.Custom("LIKENESS_MODEL")  # AppliedModel
BaseOrModel = io.Custom("LIKENESS_BASE,LIKENESS_MODEL")  # a comma means "either"
ConceptSocket = io.Custom("LIKENESS_CONCEPT")  # concepts.Concept
Prior = io.Custom("LIKENESS_PRIOR")  # trainers.PriorPreservation
Monitor = io.Custom("LIKENESS_MONITOR")  # trainers.HeldOutMonitor
Attractor = io.Custom("LIKENESS_ATTRACTOR")  # trainers.attractor.Attractor
Run = io.Custom("LIKENESS_RUN")  # trainers.events.Done
Scorecard = io.Custom("LIKENESS_SCORECARD")  # scoring.Scorecard
Reward = io.Custom("LIKENESS_REWARD")  # scoring.rewards.RewardSpec or CombinedSpec
Prompts = io.Custom("LIKENESS_PROMPTS")  # subjects.prompt_pool.PromptPool
Guard = io.Custom("LIKENESS_GUARD")  # trainers.guard.IdentityGuard
Cast = io.Custom("LIKENESS_CAST")  # composing.Cast: subjects and their cut-outs
LayoutSocket = io.Custom("LIKENESS_LAYOUT")  # composing.Layout
Scene = io.Custom("LIKENESS_SCENE")  # composing.Composition
Scenes = io.Custom("LIKENESS_SCENES")  # composing.SceneDataset
Dataset = io.Custom("LIKENESS_DATASET")  # subjects.dataset.Dataset
Benchmark = io.Custom("LIKENESS_BENCHMARK")  # subjects.dreambench.Benchmark
Evaluation = io.Custom("LIKENESS_EVALUATION")  # scoring.evaluation.Evaluation


@dataclass(frozen=True)
class AppliedModel:
    """A base model with what it learned on top, each with its strength, in the order of applying."""

    base: BaseModel
    concepts: tuple[tuple[Concept, float], ...]


def applied(model: BaseModel | AppliedModel) -> AppliedModel:
    """A bare base model is one with nothing applied."""
    return model if isinstance(model, AppliedModel) else AppliedModel(model, ())

"""From settings to a concept: the frame around ``loop.train`` that every method shares."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..backbones.loading import content_hash
from ..concepts.concept import Concept
from ..concepts.saving import save_concept
from ..core.checkpoint import checkpoint_path, prune_checkpoints
from ..core.errors import LikenessError
from ..core.hashing import canonical
from ..core.lock import run_lock
from ..core.paths import slug
from ..scoring.encoders import Encoders
from ..subjects.subject import Subject
from . import processes
from .events import Done, Event, Phase, Started
from .loop import in_training_mode, train
from .method import LoopConfig, Method
from .monitor import Monitor
from .prior import PriorPreservation
from .run import Run, Settings, provenance

LAST_STEP = "the last step"  # the rule without a monitor


def learn(
    name: str,
    make: Callable[[Backbone], Method],
    base: BaseModel,
    subject: Subject,
    config: LoopConfig,
    *,
    runs_root: Path,
    seed: int = 0,
    monitor: Monitor | None = None,
    encoders: Encoders | None = None,
    prior: PriorPreservation | None = None,
    beside: Any = None,
    follower: Callable[[Backbone], Method] | None = None,
) -> Generator[Event, None, None]:
    """Open the model, find the run finished or train it to its end, export. Ends with ``Done``.

    Close the iterator to interrupt: the state is saved, the base model is as it was, and the same call goes
    on where this one stopped. ``make`` builds the method on the opened model; it must not change it yet.
    ``beside`` is what else decides the result: it enters the key and the concept's metadata with the config.
    ``follower`` makes the method in other processes that take part, where it can do with less; it is pickled.
    """

    def work() -> Generator[Event, None, None]:
        require_photos(subject)
        yield Phase("loading", 0, 2)
        settings = Settings(
            method=name,
            subject=subject.name,
            subject_hash=subject.content_hash,
            base_hash=content_hash(base),
            dtype=base.dtype,
            config=config if beside is None else {"config": config, **canonical(beside)},
            seed=seed,
            monitor=monitor,
            prior=prior,
        )
        run = Run(runs_root, settings)
        if (finished := run.finished()) is not None:
            yield Started(run.folder)
            yield Done(finished.concept, finished.best_step, run.folder, reused=True)
            return
        yield Phase("loading", 1, 2)
        backbone = open_backbone(base)
        yield Phase("loading", 2, 2)
        method = make(backbone)
        judge = monitor.watch(subject, backbone, encoders, seed=seed) if monitor else None
        with run_lock(run.folder), closing(method):
            run.start(provenance(backbone.device) | {"processes": str(processes.size())})
            yield Started(run.folder)
            job = processes.Job(base, follower or make, config, seed)
            crew = processes.Crew(job) if processes.size() > 1 else None
            best_step = yield from train(method, run, config, seed=seed, judge=judge, crew=crew)
            concept = export(method, run, backbone, best_step)
            rule, verdict = (monitor.rule, judge.verdict()) if monitor and judge else (LAST_STEP, "")
            run.finish(concept, best_step=best_step, rule=rule, verdict=verdict)
            prune_checkpoints(run.checkpoints, 1, [checkpoint_path(run.checkpoints, best_step)])
        yield Done(concept, best_step, run.folder, reused=False)

    return in_training_mode(work())


def export(method: Method, run: Run, backbone: Backbone, step: int) -> Concept:
    """Write what was learned, with where it comes from."""
    settings = run.settings
    origin = {
        "method": settings.method, "run": run.key, "seed": settings.seed, "step": step,
        "subject": settings.subject, "subject_hash": settings.subject_hash,
        "config": canonical(settings.config), "prior": canonical(settings.prior),
    }  # fmt: skip
    artifact, name = method.export(), slug(settings.subject)
    named = {name: artifact} | {f"{name}-{key}": more for key, more in artifact.beside.items()}
    saved = {
        file: save_concept(
            replace(one, metadata={**origin, **one.metadata}, beside={}), run.folder / "concept", file,
            family=backbone.family, base_hash=backbone.content_hash,
        )
        for file, one in named.items()
    }  # fmt: skip
    return saved[name]


def require_photos(subject: Subject) -> None:
    """A subject without photos cannot be learned."""
    if not subject.photos:
        raise LikenessError(
            f"The subject {subject.name!r} has no photos to learn from.",
            expected="at least one training photo",
            fix="Load a folder with photos, or hold out fewer of them.",
        )

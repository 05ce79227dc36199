"""A method on a dataset with a split test set: learn each subject, draw every caption, score, go on.

Content-addressed like a run: stopped, it goes on behind the last picture that was scored, and finished it is
found again. Subjects are learned one after the other, so that one concept is on the model at a time.
"""
# Shapes: B pictures, H W pixels.

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..backbones.loading import content_hash
from ..concepts.applying import apply_concepts
from ..concepts.concept import Concept
from ..core.errors import LikenessError
from ..core.hashing import hash_json
from ..core.lock import run_lock
from ..core.paths import slug
from ..scoring.encoders import Encoders
from ..scoring.heldout import Evaluation, Judge, Row, RowFile, Task, require_captions, tabulate, tasks
from ..subjects.dataset import Dataset, Entry
from ..subjects.subject import Subject
from .data import name_subject
from .drawing import draw, picture_seed
from .events import Done, Event, Phase

# What learns a subject: a trainer's events, ending with Done. None: the untouched model and the class noun.
Learner = Callable[[Subject], Generator[Event, None, None]]


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """How many pictures, and how they are drawn."""

    seeds_per_caption: int = 5  # the main text's count (10,000 pictures); its appendix says 10
    captions_per_photo: int = 0  # 0: all, ten in PDST
    steps: int = 25  # the paper is silent; as backbones.Backbone.sample
    guidance: float = 5.0  # likewise
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds_per_caption", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise LikenessError(f"The benchmark's {name} is {getattr(self, name)}", expected="1 or more")
        if self.captions_per_photo < 0:
            raise LikenessError("captions_per_photo is negative", expected="0 for all, or a number")


def evaluate(
    base: BaseModel,
    dataset: Dataset,
    learner: Learner | None,
    encoders: Encoders,
    config: HeldOutConfig,
    *,
    label: str,
    settings: Any,
    root: Path,
) -> Generator[Event, None, Evaluation]:
    """Evaluate one method on every subject. ``settings`` (anything ``hash_json`` takes) is what ``learner``
    learns with: it is part of the evaluation's key, as are base model, dataset, judges and ``config``.

    Yields the trainer's events and phases; close the iterator to stop, and call again to go on. Raises
    LikenessError when a test photo has no caption.
    """
    require_captions(dataset)
    yield Phase("loading", 0, 1)
    protocol = {
        "base": content_hash(base),
        "dtype": base.dtype,
        "dataset": dataset.content_hash,
        "settings": hash_json(settings),
        "encoders": [[e.id, e.weights_hash, e.preprocessing] for e in (encoders.clip, encoders.dino)],
        "config": {k: v for k, v in asdict(config).items() if k != "batch_size"},
        "compared_with": "the one test photo that the caption came from; plain mean over all pictures",
    }
    folder = root / f"{slug(label, default='method')}-{hash_json(protocol)[:16]}"
    with run_lock(folder):
        rows = RowFile(folder / "rows.jsonl")
        yield from _all(base, dataset, learner, encoders, config, rows)
        yield Phase("scoring", rows.count, rows.count)
        found = tabulate(
            iter(rows), label=label, dataset=dataset, folder=folder, encoders=encoders, protocol=protocol
        )
        found.save()
    return found


def _all(
    base: BaseModel,
    dataset: Dataset,
    learner: Learner | None,
    encoders: Encoders,
    config: HeldOutConfig,
    rows: RowFile,
) -> Generator[Event, None, None]:
    counts = [sum(1 for _ in _tasks(entry, config)) for entry in dataset.entries]
    total, before = sum(counts), 0
    for entry, count in zip(dataset.entries, counts, strict=True):
        done = min(max(rows.count - before, 0), count)
        if done < count:
            done -= done % config.batch_size  # whole batches, so that a resumed one is the same to the bit
            rows.keep(before + done)
            concept = yield from _learned(learner, entry)
            left = islice(_tasks(entry, config), done, None)
            for scored in _scored(base, concept, entry, encoders, config, left):
                if isinstance(scored, list):
                    rows.append(scored)
                    yield Phase("drawing and scoring", rows.count, total)
                else:
                    yield scored
        before += count


def _tasks(entry: Entry, config: HeldOutConfig) -> Iterator[Task]:
    return tasks(
        entry, seeds_per_caption=config.seeds_per_caption, captions_per_photo=config.captions_per_photo
    )


def _learned(learner: Learner | None, entry: Entry) -> Generator[Event, None, Concept | None]:
    """Only the training photos go to the learner: test photos never enter training."""
    if learner is None:
        return None
    concept = None
    with closing(learner(replace(entry.subject, held_out=(), split=""))) as events:
        for event in events:
            if isinstance(event, Done):
                concept = event.concept
            yield event
    if concept is None:
        raise LikenessError(f"Learning {entry.name} ended without a result")
    return concept


def _scored(
    base: BaseModel,
    concept: Concept | None,
    entry: Entry,
    encoders: Encoders,
    config: HeldOutConfig,
    left: Iterator[Task],
) -> Iterator[Phase | list[Row]]:
    """Batches of rows, with the phases of their drawing in between."""
    judge = Judge(entry, encoders)
    backbone = open_backbone(base)
    with apply_concepts(backbone, [(concept, 1.0)] if concept else []) as model:
        while chunk := list(islice(left, config.batch_size)):
            images_B3HW = yield from _drawn(model, chunk, concept, entry, config)
            yield judge.rows(chunk, images_B3HW)


def _drawn(
    model: Backbone, chunk: Sequence[Task], concept: Concept | None, entry: Entry, config: HeldOutConfig
) -> Generator[Phase, None, Any]:
    word = concept.trigger if concept else entry.subject.class_noun
    prompts = [name_subject(task.caption, word, entry.subject) for task in chunk]
    # The n-th picture of every caption starts from the same noise, for every method alike.
    seeds = [picture_seed(config.seed, "held-out", task.draw) for task in chunk]
    images = yield from draw(
        model,
        prompts,
        seeds,
        steps=config.steps,
        guidance=config.guidance,
        batch_size=len(chunk),
        phase=f"drawing {entry.name}",
    )
    return images

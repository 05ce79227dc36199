"""A method on a benchmark: learn each subject, draw everything that is asked, score, go on.

Content-addressed like a run: stopped, it goes on behind the last picture that was scored, and finished it is
found again. Subjects are learned one after the other, so that one of them is on the model at a time.
"""
# Shapes: B pictures, H W pixels.

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones import open_backbone
from ..backbones.base import Backbone, BaseModel
from ..backbones.loading import content_hash
from ..concepts.applying import apply_concepts
from ..concepts.concept import Concept
from ..core.errors import LikenessError
from ..core.hashing import hash_json
from ..core.lock import run_lock
from ..core.paths import slug
from ..scoring.evaluation import Evaluation, Exam, Judge, Row, RowFile, Task, tabulate
from ..subjects.subject import Subject
from .data import name_subject
from .drawing import draw, picture_seed
from .events import Done, Event, Phase

# What learns a subject: a trainer's events. Every Done among them is a concept, and all of them are applied,
# in their order. None: the untouched model and the class noun.
Learner = Callable[[Subject], Generator[Event, None, None]]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn, for every method alike."""

    steps: int = 25  # as backbones.Backbone.sample
    guidance: float = 5.0  # likewise
    batch_size: int = 16  # pictures at once
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            self._at_least(name, 1)

    def _at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise LikenessError(
                f"The benchmark's {name} is {getattr(self, name)}", expected=f"{least} or more"
            )


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Drawing):
    """Of the held-out protocol. Its paper is silent on steps and guidance."""

    seeds_per_caption: int = 5  # the main text's count (10,000 pictures); its appendix says 10
    captions_per_photo: int = 0  # 0: all, ten in PDST

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("seeds_per_caption", 1)
        self._at_least("captions_per_photo", 0)


@dataclass(frozen=True, kw_only=True)
class PromptedConfig(Drawing):
    """Of DreamBench's protocol. Steps and guidance are those of InstructBooth's rollouts, appendix B: of its
    evaluation it tells none."""

    steps: int = 50
    guidance: float = 7.5
    images_per_prompt: int = (
        0  # 0: the paper's: 4 of DreamBench, 10 of InstructBooth's set, 1 of DreamBench++
    )
    prompts_per_subject: int = 0  # 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("images_per_prompt", 0)
        self._at_least("prompts_per_subject", 0)


def evaluate(
    base: BaseModel,
    exam: Exam,
    learner: Learner | None,
    config: Drawing,
    *,
    label: str,
    settings: Any,
    root: Path,
) -> Generator[Event, None, Evaluation]:
    """Evaluate one method on every subject. ``settings`` (anything ``hash_json`` takes) is what ``learner``
    learns with: it is part of the evaluation's key, as are base model, benchmark, judges and ``config``.

    Yields the trainer's events and phases; close the iterator to stop, and call again to go on.
    """
    yield Phase("loading", 0, 1)
    protocol = {
        "base": content_hash(base),
        "dtype": base.dtype,
        "settings": hash_json(settings),
        "config": {k: v for k, v in asdict(config).items() if k != "batch_size"},
        **exam.record(),
    }
    folder = root / f"{slug(label, default='method')}-{hash_json(protocol)[:16]}"
    with run_lock(folder):
        rows = RowFile(folder / "rows.jsonl")
        yield from _all(base, exam, learner, config, rows)
        yield Phase("scoring", rows.count, rows.count)
        found = tabulate(
            rows, label=label, dataset=exam.name, columns=exam.columns, folder=folder, protocol=protocol
        )
        found.save()
    return found


def _all(
    base: BaseModel, exam: Exam, learner: Learner | None, config: Drawing, rows: RowFile
) -> Generator[Event, None, None]:
    counts = [sum(1 for _ in exam.tasks(number)) for number in range(len(exam.subjects))]
    total, before = sum(counts), 0
    for number, (subject, count) in enumerate(zip(exam.subjects, counts, strict=True)):
        done = min(max(rows.count - before, 0), count)
        if done < count:
            done -= done % config.batch_size  # whole batches, so that a resumed one is the same to the bit
            rows.keep(before + done)
            concepts = yield from _learned(learner, subject)
            left = islice(exam.tasks(number), done, None)
            for scored in _scored(base, concepts, subject, exam.judge(number), config, left):
                if isinstance(scored, list):
                    rows.append(scored)
                    yield Phase("drawing and scoring", rows.count, total)
                else:
                    yield scored
        before += count


def _learned(learner: Learner | None, subject: Subject) -> Generator[Event, None, list[Concept]]:
    """Only the training photos go to the learner: test photos never enter training."""
    if learner is None:
        return []
    concepts = []
    with closing(learner(replace(subject, held_out=(), split=""))) as events:
        for event in events:
            if isinstance(event, Done):
                concepts.append(event.concept)
            yield event
    if not concepts:
        raise LikenessError(f"Learning {subject.name} ended without a result")
    return concepts


def _scored(
    base: BaseModel,
    concepts: Sequence[Concept],
    subject: Subject,
    judge: Judge,
    config: Drawing,
    left: Iterator[Task],
) -> Iterator[Phase | list[Row]]:
    """Batches of rows, with the phases of their drawing in between."""
    word = concepts[-1].trigger if concepts else subject.class_noun
    with apply_concepts(open_backbone(base), [(concept, 1.0) for concept in concepts]) as model:
        while chunk := list(islice(left, config.batch_size)):
            images_B3HW = yield from _drawn(model, chunk, word, subject, config)
            yield _rows(chunk, judge, images_B3HW)


def _rows(chunk: Sequence[Task], judge: Judge, images_B3HW: Tensor) -> list[Row]:
    columns = judge.scores(chunk, images_B3HW)
    return [
        Row(*task[:4], scores={name: float(values[n]) for name, values in columns.items()})
        for n, task in enumerate(chunk)
    ]


def _drawn(
    model: Backbone, chunk: Sequence[Task], word: str, subject: Subject, config: Drawing
) -> Generator[Phase, None, Tensor]:
    prompts = [name_subject(task.caption, word, subject) for task in chunk]
    # The n-th picture of every caption starts from the same noise, for every method alike.
    seeds = [picture_seed(config.seed, "held-out", task.draw) for task in chunk]
    images = yield from draw(
        model,
        prompts,
        seeds,
        steps=config.steps,
        guidance=config.guidance,
        batch_size=len(chunk),
        phase=f"drawing {subject.name}",
    )
    return images

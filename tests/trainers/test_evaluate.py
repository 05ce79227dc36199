"""A method on a dataset: what is drawn, what is learned from, and what a stop costs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from likeness.backbones.base import BaseModel
from likeness.backbones.toybox.pdst import write_dataset
from likeness.concepts.applying import apply_concepts
from likeness.core.errors import LikenessError
from likeness.scoring.heldout import HeldOut
from likeness.scoring.rewards import RewardSpec
from likeness.subjects import Subject
from likeness.subjects.dataset import Dataset, load_dataset
from likeness.subjects.prompt_pool import PromptPool
from likeness.trainers import METHODS
from likeness.trainers import evaluate as evaluation
from likeness.trainers.align import AlignConfig
from likeness.trainers.dreambooth import DreamBoothConfig
from likeness.trainers.evaluate import HeldOutConfig, PromptedConfig, evaluate
from likeness.trainers.events import Event, Phase
from likeness.trainers.instructbooth import InstructBooth, train_instructbooth

SMALL = HeldOutConfig(seeds_per_caption=2, captions_per_photo=2, steps=1, guidance=1.0, batch_size=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_dataset(tmp_path_factory.mktemp("pdst"), subjects=2, test=2))


@pytest.fixture(scope="module")
def judges(encoders: Any) -> Any:
    def named(encoder: Any, label: str) -> Any:
        def encode(images: Any) -> Any:
            import torch

            return encoder.encode(images if isinstance(images, torch.Tensor) else torch.stack(list(images)))

        return SimpleNamespace(
            encode=encode,
            encode_text=encoder.encode_text,
            id=label,
            label=label,
            weights_hash="0",
            preprocessing="none",
        )

    return SimpleNamespace(clip=named(encoders.clip, "CLIP"), dino=named(encoders.dino, "DINO"))


def started(tiny: Path, dataset: Dataset, judges: Any, root: Path, learner: Any = None, **more: Any) -> Any:
    options = {"label": "base", "settings": ["base"], "root": root} | more
    exam = HeldOut(dataset=dataset, encoders=judges, seeds_per_caption=2, captions_per_photo=2)
    return evaluate(BaseModel(source=str(tiny), device="cpu"), exam, learner, SMALL, **options)


def finish(work: Generator[Event, None, Any], stop_after: str = "", count: int = 0) -> Any:
    """The result; or None when closed after so many phases of a name."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value
        if isinstance(event, Phase) and event.name == stop_after:
            count -= 1
            if count == 0:
                work.close()
                return None


def test_a_stopped_evaluation_goes_on_to_the_same_bytes(
    tiny_pipeline: Path, dataset: Dataset, judges: Any, tmp_path: Path
) -> None:
    whole = finish(started(tiny_pipeline, dataset, judges, tmp_path / "a"))
    assert len(whole.subjects) == 2 and whole.subjects["00-rabbit"]["pictures"] == 8
    wanted = (whole.folder / "rows.jsonl").read_bytes()
    assert finish(started(tiny_pipeline, dataset, judges, tmp_path / "b"), "drawing and scoring", 2) is None
    rows = next((tmp_path / "b").iterdir()) / "rows.jsonl"
    assert rows.read_bytes().count(b"\n") == 6
    rows.write_bytes(rows.read_bytes()[:-40])  # killed within a batch, on top
    again = finish(started(tiny_pipeline, dataset, judges, tmp_path / "b"))
    assert rows.read_bytes() == wanted and again.total == whole.total


def test_a_finished_one_is_found_and_another_setting_is_another(
    tiny_pipeline: Path, dataset: Dataset, judges: Any, tmp_path: Path
) -> None:
    def never(subject: Subject) -> Generator[Event, None, None]:
        raise AssertionError("it was finished")
        yield

    first = finish(started(tiny_pipeline, dataset, judges, tmp_path))
    again = finish(started(tiny_pipeline, dataset, judges, tmp_path, never))
    assert again.total == first.total and again.folder == first.folder
    with pytest.raises(AssertionError, match="finished"):
        finish(started(tiny_pipeline, dataset, judges, tmp_path, never, settings=["other"]))


def test_test_photos_never_reach_the_learner_and_its_word_is_drawn(
    tiny_pipeline: Path, dataset: Dataset, judges: Any, tmp_path: Path
) -> None:
    seen: list[Subject] = []
    entry = METHODS["textual_inversion"]
    base = BaseModel(source=str(tiny_pipeline), device="cpu")

    def learner(subject: Subject) -> Generator[Event, None, None]:
        seen.append(subject)
        config = entry.config(steps=1, batch_size=1)
        yield from entry.train(base, subject, config, runs_root=tmp_path / "runs", seed=0)

    found = finish(started(tiny_pipeline, dataset, judges, tmp_path, learner, settings=["ti"], label="TI"))
    assert [s.name for s in seen] == ["00-rabbit", "01-cat"] and not any(s.held_out for s in seen)
    assert found.label == "TI" and all(s["pictures"] == 8 for s in found.subjects.values())


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(LikenessError, match="seeds_per_caption"):
        HeldOutConfig(seeds_per_caption=0)


def test_both_stages_of_instructbooth_are_on_the_model(
    tiny_pipeline: Path, dataset: Dataset, judges: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel(source=str(tiny_pipeline), device="cpu")
    config = InstructBooth(
        personalize=DreamBoothConfig(steps=1, batch_size=1, rank=2),
        align=AlignConfig(
            steps=1, denoising_steps=2, images_per_epoch=2, images_per_prompt=2, batch_size=2, rank=2,
            rows_per_forward=2, min_count=2,
        ),
        prior=None,
        reward=RewardSpec(name="toybox_preference"),
    )  # fmt: skip
    pool = PromptPool(activities=("playing",), identifier_share=1.0)
    applied: list[list[str]] = []

    def seen(backbone: Any, concepts: Any) -> Any:
        applied.append([str(concept.metadata["method"]) for concept, _ in concepts])
        return apply_concepts(backbone, concepts)

    def learner(subject: Subject) -> Generator[Event, None, None]:
        return train_instructbooth(base, subject, config, pool=pool, runs_root=tmp_path / "runs")

    monkeypatch.setattr(evaluation, "apply_concepts", seen)
    found = finish(started(tiny_pipeline, dataset, judges, tmp_path, learner, settings=["ib"], label="IB"))
    assert applied == [["dreambooth", "align"]] * 2 and found.pictures == 16


def test_counts_that_make_no_sense() -> None:
    assert (PromptedConfig().steps, PromptedConfig().guidance) == (50, 7.5)
    for name in ("images_per_prompt", "prompts_per_subject"):
        with pytest.raises(LikenessError, match=name):
            PromptedConfig(**{name: -1})

"""Segment Subject and the benchmark's nodes: what a widget does, and what comes out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.backbones.base import BaseModel
from likeness.core.errors import LikenessError
from likeness.core.hashing import hash_json
from likeness.nodes import benchmarking, datasets, dreambench, host, segmenting
from likeness.scoring.encoders import open_encoders
from likeness.scoring.published import PUBLISHED
from likeness.subjects import Subject, load_folder
from likeness.subjects.captioning import CAPTIONERS
from likeness.subjects.dreambench import LAYOUTS
from likeness.subjects.segmenting import METHODS, Refinement, SegmentConfig
from likeness.trainers import METHODS as TRAINERS
from likeness.trainers.evaluate import HeldOutConfig, PromptedConfig
from PIL import Image, ImageDraw


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[host.Plain]:
    before = host.current
    own = host.Plain()
    own.place(output=tmp_path / "output", input=tmp_path / "input")
    host.use(own)
    yield own
    host.use(before)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    for n in range(2):
        image = Image.new("RGB", (60, 48), (60, 120, 70))
        ImageDraw.Draw(image).ellipse((15 + n, 10, 45 + n, 40), fill=(220, 60, 40))
        (tmp_path / "ball").mkdir(exist_ok=True)
        image.save(tmp_path / "ball" / f"{n}.png")
    return load_folder(tmp_path / "ball", class_noun="ball")


def defaults(node: Any) -> dict[str, Any]:
    return {
        spec.id: spec.default
        for spec in node.GET_SCHEMA().inputs
        if spec.get_io_type() in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    }


def test_options_and_defaults_are_those_of_what_the_widgets_fill() -> None:
    assert list(METHODS) == segmenting.METHODS
    widgets = defaults(segmenting.SegmentSubject)
    for kind in (SegmentConfig, Refinement):
        for field in dataclasses.fields(kind):
            if field.name in widgets and field.name not in ("boxes", "points"):
                assert widgets[field.name] == field.default, field.name
    combos = {s.id: s.options for s in datasets.CaptionDataset.GET_SCHEMA().inputs if hasattr(s, "options")}
    assert combos["captioner"] == list(CAPTIONERS)
    drawing = defaults(benchmarking.BenchmarkMethod)
    assert all(drawing[f.name] == f.default for f in dataclasses.fields(HeldOutConfig))
    drawing = defaults(dreambench.BenchmarkPrompts)
    assert all(drawing[f.name] == f.default for f in dataclasses.fields(PromptedConfig))
    assert set(benchmarking.METHODS) - {benchmarking.UNTOUCHED} <= set(TRAINERS)
    assert set(dreambench.METHODS) - {benchmarking.UNTOUCHED, dreambench.INSTRUCTBOOTH} <= set(TRAINERS)
    assert list(LAYOUTS) == dreambench.LAYOUTS
    assert [benchmarking.NOTHING, *PUBLISHED] == benchmarking.PUBLISHED


def test_segment_subject_gives_masks_a_preview_and_a_report(plain: host.Plain, subject: Subject) -> None:
    out = segmenting.SegmentSubject.execute(subject=subject, **defaults(segmenting.SegmentSubject))
    masked, preview, report = out.args
    assert all(photo.mask_path is not None for photo in masked.photos)
    assert preview.shape == (2, 276, 768, 3) and 0 <= float(preview.min()) <= float(preview.max()) <= 1
    assert report.count("confidence") == 2
    assert out.ui is not None and (plain.output / "likeness" / "previews" / "masks-ball.png").is_file()


def test_linked_masks_need_no_model(plain: host.Plain, subject: Subject) -> None:
    mask_HW = torch.zeros(1, 48, 60)
    mask_HW[:, 10:40, 15:45] = 1
    widgets = defaults(segmenting.SegmentSubject) | {"method": "florence2+sam2"}
    out = segmenting.SegmentSubject.execute(subject=subject, masks=mask_HW, **widgets)
    assert out.args[0].photos[0].mask().sum() == 900
    with pytest.raises(LikenessError, match="never downloads"):
        segmenting.SegmentSubject.execute(subject=subject, **widgets)


def test_the_drawn_dataset_is_loaded_edited_and_captioned(plain: host.Plain) -> None:
    edit = "00-rabbit/00.png 0: a photo of a {} in bed"
    out = datasets.LoadDataset.execute(folder="toybox-pdst", most_subjects=2, edits=edit)
    dataset, captions, leaks = out.args
    assert len(dataset.entries) == 2 and edit in captions.splitlines() and "caption" not in leaks
    assert datasets.DatasetSubject.execute(dataset=dataset, name="").args[0].name == "00-rabbit"
    again = datasets.CaptionDataset.execute(dataset=dataset, **defaults(datasets.CaptionDataset)).args[0]
    assert again.content_hash == dataset.content_hash  # every photo had captions


def test_a_table_of_nothing_is_refused(plain: host.Plain) -> None:
    with pytest.raises(LikenessError, match="nothing to show"):
        benchmarking.BenchmarkTable.execute(name="empty", published="nothing")


def way(method: str, **changes: Any) -> Any:
    known: dict[str, Any] = {
        "base": BaseModel(source="toybox", device="cpu"), "method": method, "preset": "practical", "seed": 0,
        "train_steps": 0, "align_steps": 0, "prior": None, "reward": None, "guard": None,
    }  # fmt: skip
    return dreambench.Way(**known | changes)


def test_a_prompt_benchmark_is_loaded(plain: host.Plain) -> None:
    out = dreambench.LoadPromptBenchmark.execute(
        folder="toybox-dreambench", layout="dreambench++", most_subjects=2, held_out=1, identifier="sks"
    )
    benchmark, prompts = out.args
    assert [len(item.subject.held_out) for item in benchmark.items] == [1, 1]
    assert "cat: a {} wearing a hat" in prompts.splitlines()


def test_the_papers_preset_brings_its_prior_and_first_stage(plain: host.Plain) -> None:
    benchmark = dreambench.LoadPromptBenchmark.execute(
        folder="toybox-dreambench", layout="dreambench", most_subjects=1, held_out=0, identifier="sks"
    ).args[0]
    paper = way("instructbooth", preset="paper", align_steps=7).learner(benchmark, None)[1][1]
    assert paper.prior.num_images == 200 and paper.align.steps == 7 and paper.align.guidance == 7.5
    assert (paper.personalize.train, paper.personalize.learning_rate) == ("unet", 2e-5)
    quick = way("instructbooth", train_steps=9).learner(benchmark, None)[1][1]
    assert quick.prior is None and quick.personalize.steps == 9 and quick.personalize.train == "lora"
    assert way("base model").learner(benchmark, None) == (None, ["base model"])
    assert len({hash_json(way(m).learner(benchmark, None)[1]) for m in dreambench.METHODS}) == 6


def test_toybox_has_a_preference_of_its_own_and_no_pick_score(plain: host.Plain) -> None:
    base = BaseModel(source="toybox", device="cpu")
    found = dreambench._opened(dreambench.REWARDS["all"], base, open_encoders("toybox"))
    assert {name: reward.label for name, reward in found.items()} == {"image_reward": "Toybox preference"}


def test_missing_preference_models_are_named(plain: host.Plain) -> None:
    base = BaseModel(source="checkpoint.safetensors", device="cpu")
    for name in ("image_reward", "pick_score"):
        with pytest.raises(LikenessError, match=r"ImageReward|PickScore"):
            dreambench._opened([name], base, open_encoders("toybox"))


def test_a_row_of_the_table_on_toybox(plain: host.Plain) -> None:
    """One subject, one prompt, one picture: through the node, its file of rows, and the table beside it."""
    benchmark = dreambench.LoadPromptBenchmark.execute(
        folder="toybox-dreambench", layout="dreambench", most_subjects=1, held_out=0, identifier="sks"
    ).args[0]
    few = {"method": "base model", "prompts_per_subject": 1, "images_per_prompt": 1, "steps": 1}
    widgets = defaults(dreambench.BenchmarkPrompts) | few
    base = BaseModel(source="toybox", device="cpu")
    found, summary = dreambench.BenchmarkPrompts.execute(base=base, benchmark=benchmark, **widgets).args
    assert found.label == "base model" and summary.endswith("(1 pictures of 1 subjects)")
    assert list(found.names) == ["clip_t", "image_reward", "clip_i", "dino"]
    assert found.names["image_reward"] == "Toybox preference" and all(
        math.isfinite(value) for value in found.total.values()
    )
    table, path = benchmarking.BenchmarkTable.execute(
        name="row", published="instructbooth", evaluation=found
    ).args
    assert table.splitlines()[1].startswith("base model,")
    assert "As published, not measured here" in Path(path).read_text(encoding="utf-8")
    again = dreambench.BenchmarkPrompts.execute(base=base, benchmark=benchmark, **widgets).args[0]
    assert again.total == found.total and again.folder == found.folder

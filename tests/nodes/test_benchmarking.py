"""Segment Subject and the benchmark's nodes: what a widget does, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from likeness.core.errors import LikenessError
from likeness.nodes import benchmarking, host, segmenting
from likeness.subjects import Subject, load_folder
from likeness.subjects.captioning import CAPTIONERS
from likeness.subjects.segmenting import METHODS, Refinement, SegmentConfig
from likeness.trainers import METHODS as TRAINERS
from likeness.trainers.evaluate import HeldOutConfig
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
    combos = {
        s.id: s.options for s in benchmarking.CaptionDataset.GET_SCHEMA().inputs if hasattr(s, "options")
    }
    assert combos["captioner"] == list(CAPTIONERS)
    drawing = defaults(benchmarking.BenchmarkMethod)
    assert all(drawing[f.name] == f.default for f in dataclasses.fields(HeldOutConfig))
    assert set(benchmarking.METHODS) - {benchmarking.UNTOUCHED} <= set(TRAINERS)


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
    out = benchmarking.LoadDataset.execute(folder="toybox-pdst", most_subjects=2, edits=edit)
    dataset, captions, leaks = out.args
    assert len(dataset.entries) == 2 and edit in captions.splitlines() and "caption" not in leaks
    assert benchmarking.DatasetSubject.execute(dataset=dataset, name="").args[0].name == "00-rabbit"
    again = benchmarking.CaptionDataset.execute(
        dataset=dataset, **defaults(benchmarking.CaptionDataset)
    ).args[0]
    assert again.content_hash == dataset.content_hash  # every photo had captions


def test_a_table_of_nothing_is_refused(plain: host.Plain) -> None:
    with pytest.raises(LikenessError, match="nothing to show"):
        benchmarking.BenchmarkTable.execute(name="empty")

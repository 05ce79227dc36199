"""Likeness / benchmark: datasets with a split test set, their captions, and one of their subjects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host, sockets
from .host import io

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..subjects.dataset import Dataset
    from ..trainers.events import Phase

CATEGORY = "Likeness/benchmark"
TOYBOX_PDST = "toybox-pdst"


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLoadDataset",
            display_name="Load Dataset",
            category=CATEGORY,
            description="Subjects with training photos, test photos and captions of the test photos, in the "
            "layout of PDST. It is looked over for leaks.",
            inputs=[
                io.String.Input(
                    "folder",
                    default=TOYBOX_PDST,
                    tooltip="toybox-pdst: 20 drawn subjects, made here. Else a folder with "
                    "SUBJECT/train, SUBJECT/test, SUBJECT/captions.json and SUBJECT/meta.json in it.",
                ),
                io.Int.Input(
                    "most_subjects", default=0, min=0, max=10000, tooltip="Only the first so many. 0: all."
                ),
                io.String.Input(
                    "edits",
                    default="",
                    multiline=True,
                    tooltip="Captions in your words, over those of the files: lines of "
                    "'subject/photo.jpg 3: A {} on a rock.' The output captions lists them all in this form.",
                ),
            ],
            outputs=[
                sockets.Dataset.Output(
                    "dataset", display_name="dataset", tooltip="For Benchmark Method and Dataset Subject."
                ),
                *_texts(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **inputs: Any) -> str:
        from .subjects import find_photos, fingerprint

        return "" if folder.strip() == TOYBOX_PDST else fingerprint(find_photos(folder))

    @classmethod
    def execute(cls, folder: str, most_subjects: int, edits: str) -> io.NodeOutput:
        from dataclasses import replace

        from ..subjects.dataset import load_dataset

        dataset = load_dataset(_dataset_folder(folder, most_subjects), captioned=False)
        dataset = replace(dataset, entries=dataset.entries[: most_subjects or None])
        return _output(dataset, edits)


class CaptionDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessCaptionDataset",
            display_name="Caption Dataset",
            category=CATEGORY,
            description="Captions for the test photos that have none, by a vision-language model, without "
            "what tells of the subject. They are written beside the photos, for you to edit.",
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset."),
                io.Combo.Input(
                    "captioner",
                    options=["toybox", "qwen-vl", "server"],
                    default="toybox",
                    tooltip="toybox: by rule, for drawn pictures. qwen-vl: a Qwen-VL in models/qwen-vl. "
                    "server: any that speaks OpenAI's chat protocol; the photos are sent to it.",
                ),
                io.Int.Input(
                    "per_photo", default=10, min=1, max=100, tooltip="Captions of each photo: ten in PDST."
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Also photos that have captions."),
                io.String.Input(
                    "url",
                    default="http://localhost:8000/v1",
                    tooltip="For server: its address. A key is read from the variable LIKENESS_VLM_KEY.",
                ),
                io.String.Input("model", default="", tooltip="For server: what it calls its model."),
                io.Float.Input(
                    "timeout_s",
                    default=120.0,
                    min=1.0,
                    max=3600.0,
                    step=1.0,
                    tooltip="For server: how long an answer may take, in seconds.",
                ),
                io.String.Input(
                    "edits",
                    default="",
                    multiline=True,
                    tooltip="Captions in your words, over the written ones: lines of "
                    "'subject/photo.jpg 3: A {} on a rock.'",
                ),
            ],
            outputs=[
                sockets.Dataset.Output(
                    "captioned", display_name="dataset", tooltip="The same dataset, with captions."
                ),
                *_texts(),
            ],
        )

    @classmethod
    def validate_inputs(cls, captioner: str | None) -> bool | str:
        return host.listed(cls, captioner=captioner)

    @classmethod
    def execute(
        cls, dataset: Dataset, captioner: str, per_photo: int, overwrite: bool, edits: str, **opening: Any
    ) -> io.NodeOutput:
        captioned = host.follow(_caption(dataset, captioner, per_photo, overwrite, opening))
        return _output(captioned, edits)


class DatasetSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessDatasetSubject",
            display_name="Dataset Subject",
            category=CATEGORY,
            description="One subject of a dataset, with its test photos held out, for any trainer.",
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset."),
                io.String.Input("name", default="", tooltip="The subject's folder. Empty: the first."),
            ],
            outputs=[
                sockets.Subject.Output(
                    "subject", display_name="subject", tooltip="Its photos, for a trainer."
                )
            ],
        )

    @classmethod
    def execute(cls, dataset: Dataset, name: str) -> io.NodeOutput:
        entry = dataset.entry(name.strip()) if name.strip() else dataset.entries[0]
        return io.NodeOutput(entry.split)


NODES: list[type[io.ComfyNode]] = [LoadDataset, CaptionDataset, DatasetSubject]


def _texts() -> list[Any]:
    return [
        io.String.Output("captions", display_name="captions", tooltip="Every caption, as edits takes them."),
        io.String.Output(
            "leaks", display_name="leaks", tooltip="Test photos and captions that tell too much."
        ),
    ]


def _output(dataset: Dataset, edits: str) -> io.NodeOutput:
    """The dataset with the user's own captions, and what is to be read of it."""
    from ..subjects.dataset import listing, with_edits
    from ..subjects.leakage import find_leaks

    edited = with_edits(dataset, edits)
    leaks = "\n".join(str(leak) for leak in find_leaks(edited))
    return io.NodeOutput(edited, listing(edited), leaks)


def _dataset_folder(folder: str, most_subjects: int) -> Path:
    from .subjects import find_photos

    if folder.strip() != TOYBOX_PDST:
        return find_photos(folder)
    from ..backbones.toybox.pdst import SUBJECTS, write_dataset

    root = host.current.output / "likeness" / "datasets" / TOYBOX_PDST
    return write_dataset(root, subjects=min(most_subjects or SUBJECTS, SUBJECTS))


def _caption(
    dataset: Dataset, captioner: str, per_photo: int, overwrite: bool, opening: dict[str, Any]
) -> Generator[Phase, None, Dataset]:
    """Captioning as a work that ``host.follow`` shows."""
    from ..subjects.captioning import Progress, caption_dataset, open_captioner
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    roots = [host.current.models, host.current.models / "likeness"]
    writer = open_captioner(captioner, models=roots, device=host.current.device(), **opening)
    for item in caption_dataset(dataset, writer, per_photo=per_photo, overwrite=overwrite):
        if not isinstance(item, Progress):
            return item
        yield Phase("captioning", item.done, item.total)
    raise AssertionError("caption_dataset ends with a dataset")

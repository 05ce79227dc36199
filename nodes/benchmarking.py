"""Likeness / benchmark: datasets with a split test set, and methods scored on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import host, sockets
from .host import io
from .models import judges_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..backbones.base import BaseModel
    from ..scoring.evaluation import Evaluation
    from ..subjects.dataset import Dataset
    from ..trainers.events import Event, Phase

CATEGORY = "Likeness/benchmark"
TOYBOX_PDST = "toybox-pdst"
UNTOUCHED = "base model"
METHODS = [UNTOUCHED, "textual_inversion", "neti", "dreambooth", "custom_diffusion"]
NOTHING = "nothing"
PUBLISHED = [NOTHING, "instructbooth", "dreambench"]
PLACES = 6  # evaluations that one table takes: the paper's figure has six methods


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
                io.String.Output(
                    "captions", display_name="captions", tooltip="Every caption, as edits takes them."
                ),
                io.String.Output(
                    "leaks", display_name="leaks", tooltip="Test photos and captions that tell too much."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **inputs: Any) -> str:
        from .subjects import find_photos, fingerprint

        return "" if folder.strip() == TOYBOX_PDST else fingerprint(find_photos(folder))

    @classmethod
    def execute(cls, folder: str, most_subjects: int, edits: str) -> io.NodeOutput:
        from dataclasses import replace

        from ..subjects.dataset import listing, load_dataset, with_edits
        from ..subjects.leakage import find_leaks

        dataset = load_dataset(_dataset_folder(folder, most_subjects), captioned=False)
        dataset = replace(dataset, entries=dataset.entries[: most_subjects or None])
        dataset = with_edits(dataset, edits)
        leaks = "\n".join(str(leak) for leak in find_leaks(dataset))
        return io.NodeOutput(dataset, listing(dataset), leaks)


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
                io.String.Output(
                    "captions", display_name="captions", tooltip="Every caption, as edits takes them."
                ),
                io.String.Output(
                    "leaks", display_name="leaks", tooltip="Test photos and captions that tell too much."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, captioner: str | None) -> bool | str:
        return host.listed(cls, captioner=captioner)

    @classmethod
    def execute(
        cls, dataset: Dataset, captioner: str, per_photo: int, overwrite: bool, edits: str, **opening: Any
    ) -> io.NodeOutput:
        from ..subjects.dataset import listing, with_edits
        from ..subjects.leakage import find_leaks

        captioned = host.follow(_caption(dataset, captioner, per_photo, overwrite, opening))
        captioned = with_edits(captioned, edits)
        leaks = "\n".join(str(leak) for leak in find_leaks(captioned))
        return io.NodeOutput(captioned, listing(captioned), leaks)


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


class BenchmarkMethod(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessBenchmarkMethod",
            display_name="Benchmark Method",
            category=CATEGORY,
            description="Learns every subject of a dataset, draws every caption of its test photos, and "
            "scores each picture against the one photo that its caption is of. Stopped, it goes on.",
            inputs=[
                sockets.Base.Input("base", tooltip="From Load Base Model."),
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset."),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default="textual_inversion",
                    tooltip="How subjects are learned. base model: not at all; prompts say the class noun.",
                ),
                io.Combo.Input(
                    "preset", options=["practical", "paper"], default="practical", tooltip="Its settings."
                ),
                io.Int.Input(
                    "train_steps", default=0, min=0, max=1000000, tooltip="0: the preset's number of steps."
                ),
                io.Int.Input(
                    "seeds_per_caption",
                    default=5,
                    min=1,
                    max=100,
                    tooltip="Pictures of each caption: 5 in the paper's main text, 10 in its appendix.",
                ),
                io.Int.Input(
                    "captions_per_photo", default=0, min=0, max=100, tooltip="Only the first. 0: all."
                ),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Denoising steps (DDIM)."),
                io.Float.Input(
                    "guidance",
                    default=5.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strictly pictures follow prompts.",
                ),
                io.Int.Input("batch_size", default=16, min=1, max=256, tooltip="Pictures drawn at once."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=True,
                    tooltip="Of learning and drawing. Every method draws from the same noise.",
                ),
                io.String.Input(
                    "label", default="", tooltip="What tables call it. Empty: the method's name."
                ),
            ],
            outputs=[
                sockets.Evaluation.Output(
                    "evaluation", display_name="evaluation", tooltip="For Benchmark Table."
                ),
                io.String.Output("summary", display_name="summary", tooltip="The means in one line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, method: str | None, preset: str | None) -> bool | str:
        return host.listed(cls, method=method, preset=preset)

    @classmethod
    def execute(
        cls,
        base: BaseModel,
        dataset: Dataset,
        method: str,
        preset: str,
        train_steps: int,
        seed: int,
        label: str,
        **drawing: Any,
    ) -> io.NodeOutput:
        learning = {"method": method, "preset": preset, "steps": train_steps, "seed": seed}
        found = host.follow(_evaluate(base, dataset, learning, label or method, {**drawing, "seed": seed}))
        return io.NodeOutput(found, found.summary())


class BenchmarkTable(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = [str(n) if n > 1 else "" for n in range(1, PLACES + 1)]
        return io.Schema(
            node_id="LikenessBenchmarkTable",
            display_name="Benchmark Table",
            category=CATEGORY,
            description="Methods beside each other: totals with their intervals, every subject, and a plot "
            "of DINO, CLIP-I and CLIP-T as in the attractor paper's Figure 5.",
            inputs=[
                io.String.Input(
                    "name", default="benchmark", tooltip="The files' name in output/likeness/reports."
                ),
                io.Combo.Input(
                    "published",
                    options=PUBLISHED,
                    default=NOTHING,
                    tooltip="Show a paper's own numbers below, as its own: InstructBooth's table 1 "
                    "(instructbooth) or table 2 (dreambench).",
                ),
                *(
                    sockets.Evaluation.Input(
                        f"evaluation{n}",
                        optional=True,
                        tooltip="From Benchmark Method or Benchmark Prompts.",
                    )
                    for n in numbers
                ),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="The totals as CSV."),
                io.String.Output("path", display_name="path", tooltip="Where the page is."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, published: str | None) -> bool | str:
        return host.listed(cls, published=published)

    @classmethod
    def execute(cls, name: str, published: str, **plugged: Any) -> io.NodeOutput:
        from ..core.errors import LikenessError
        from ..core.paths import safe_name, write_atomic
        from ..scoring.figure5 import page, same_protocol, totals_csv

        evaluations = [plugged[key] for key in sorted(plugged) if plugged[key] is not None]
        if not evaluations:
            raise LikenessError(
                "Benchmark Table has nothing to show", fix="Link a Benchmark Method or Benchmark Prompts"
            )
        if not same_protocol(evaluations):
            raise LikenessError(
                "These evaluations do not compare: base model, dataset, judges or drawing differ",
                fix="Give every method the same base, dataset, rewards, seeds, steps and guidance",
            )
        folder = host.current.output / "likeness" / "reports"
        file, table = safe_name(name, what="report name"), totals_csv(evaluations)
        write_atomic(folder / f"{file}.csv", table)
        write_atomic(
            folder / f"{file}.html", page(evaluations, published="" if published == NOTHING else published)
        )
        path = folder / f"{file}.html"
        return io.NodeOutput(table, str(path), ui={"likeness": [host.made("report", path)]})


NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    CaptionDataset,
    DatasetSubject,
    BenchmarkMethod,
    BenchmarkTable,
]


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


def _evaluate(
    base: BaseModel, dataset: Dataset, learning: dict[str, Any], label: str, drawing: dict[str, Any]
) -> Generator[Event, None, Evaluation]:
    """The evaluation as a work that ``host.follow`` shows."""
    from ..scoring.encoders import open_encoders
    from ..scoring.heldout import HeldOut
    from ..trainers.evaluate import HeldOutConfig, evaluate
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    encoders = open_encoders(judges_of(base), device=base.device, roots=[host.current.models / "likeness"])
    learner, settings = _learner(base, **learning)
    config = HeldOutConfig(**drawing)
    exam = HeldOut(
        dataset=dataset,
        encoders=encoders,
        seeds_per_caption=config.seeds_per_caption,
        captions_per_photo=config.captions_per_photo,
    )
    root = host.current.output / "likeness" / "heldout"
    return (yield from evaluate(base, exam, learner, config, label=label, settings=settings, root=root))


def _learner(base: BaseModel, method: str, preset: str, steps: int, seed: int) -> tuple[Any, Any]:
    """What learns a subject, and the settings that it learns with."""
    if method == UNTOUCHED:
        return None, [UNTOUCHED]
    config = settings_of(method, preset, base, steps)
    return learner_of(base, method, config, seed), [method, config, seed]


def settings_of(method: str, preset: str, base: BaseModel, steps: int) -> Any:
    """A trainer's preset; ``steps`` 0 keeps its number of steps."""
    from ..backbones.loading import family_of
    from ..trainers import METHODS as TRAINERS

    changes = {"steps": steps} if steps else {}
    kind = TRAINERS[method].config
    return kind.practical(family_of(base), **changes) if preset == "practical" else kind.paper(**changes)


def learner_of(base: BaseModel, method: str, config: Any, seed: int, **more: Any) -> Any:
    """A trainer as ``evaluate`` asks for it."""
    from ..trainers import METHODS as TRAINERS

    train = TRAINERS[method].train
    return lambda subject: train(base, subject, config, runs_root=host.current.runs, seed=seed, **more)


def label_of(method: str) -> str:
    """What tables call a method."""
    from .scoring import LABELS

    return {"instructbooth": LABELS["align"]}.get(method) or LABELS.get(method, method)

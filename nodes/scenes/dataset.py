"""Datasets of scenes: built, loaded, exported, and learned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import host, sockets, widgets
from ..host import io
from ..pictures import images_of
from .compose import canvas_inputs
from .makers import (
    CATEGORY,
    answerer_input,
    background_inputs,
    backgrounds_of,
    captioner_of,
    model_input,
    phases,
    proposer_of,
)
from .recaption import strategies_of, strategy_inputs

if TYPE_CHECKING:
    from collections.abc import Generator

    from ...backbones.base import BaseModel
    from ...composing.building import Cast, Makers, SceneRecipe
    from ...composing.dataset import SceneDataset
    from ...composing.layout import Layout
    from ...subjects.subject import Subject
    from ...trainers.events import Phase


class BuildSceneDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessBuildSceneDataset",
            display_name="Build Scene Dataset",
            category=CATEGORY,
            description="Many scenes with masks, boxes and captions, in output/likeness/scenes. A build that "
            "was stopped goes on; a larger count adds scenes.",
            inputs=[
                sockets.Cast.Input("cast", tooltip="From Cut Out Subjects."),
                io.String.Input("name", default="my-scenes", tooltip="The dataset's folder."),
                io.Int.Input("count", default=50, min=1, max=1000000, tooltip="How many scenes."),
                io.Int.Input("least_subjects", default=2, min=1, max=8, tooltip="In one scene, at least."),
                io.Int.Input("most_subjects", default=3, min=1, max=8, tooltip="In one scene, at most."),
                *canvas_inputs(),
                answerer_input("proposer"),
                answerer_input("captioner"),
                model_input(),
                *background_inputs("What stands behind the subjects, before it is repainted."),
                *strategy_inputs(),
                widgets.share(
                    "flip", 0.0, "Share of subjects that are mirrored. Not for writing or asymmetric things."
                ),
                widgets.share("rotate", 0.0, "Share of subjects that are turned a little."),
                widgets.share("shadow", 0.35, "How dark the shadow is where a subject stands."),
                io.Int.Input(
                    "repaint_steps",
                    default=60,
                    min=1,
                    max=1000,
                    tooltip="Denoising steps, where base is linked.",
                ),
                io.String.Input(
                    "licence",
                    default="",
                    tooltip="Of the photos and backgrounds, to be kept with the dataset.",
                ),
                widgets.seed("Of all that is drawn by lot."),
                sockets.LayoutSocket.Input("layout", optional=True, tooltip="One layout for all scenes."),
                sockets.Base.Input(
                    "base", optional=True, tooltip="Repaints every background with this model."
                ),
            ],
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, proposer: str | None, captioner: str | None, backgrounds: str | None
    ) -> bool | str:
        return host.listed(cls, proposer=proposer, captioner=captioner, backgrounds=backgrounds)

    @classmethod
    def execute(
        cls,
        cast: Cast,
        name: str,
        proposer: str,
        captioner: str,
        model: str,
        backgrounds: str,
        background_folder: str,
        layout: Layout | None = None,
        base: BaseModel | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ...composing.building import Makers
        from ...core.paths import safe_name

        folder = host.current.output / "likeness" / "scenes" / safe_name(name, what="name of the dataset")
        makers = Makers(
            proposer=proposer_of(proposer, model),
            backgrounds=backgrounds_of(backgrounds, background_folder),
            captioner=captioner_of(captioner, model),
        )
        dataset = host.follow(_build(folder, cast, _recipe(settings, layout), makers, base))
        return _dataset_output(dataset)


class LoadSceneDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLoadSceneDataset",
            display_name="Load Scene Dataset",
            category=CATEGORY,
            description="A dataset that was built before, with whatever was changed in it by hand.",
            inputs=[
                io.String.Input(
                    "name",
                    default="my-scenes",
                    tooltip="Its folder in output/likeness/scenes, or a full path.",
                ),
                io.Boolean.Input(
                    "verify", default=False, tooltip="Compare every file with what was written, and warn."
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, verify: bool) -> str:
        from ..subjects import fingerprint

        folder = _dataset_folder(name)
        return fingerprint(folder) if folder.is_dir() else ""

    @classmethod
    def execute(cls, name: str, verify: bool) -> io.NodeOutput:
        from ...composing.dataset import load_dataset

        return _dataset_output(load_dataset(_dataset_folder(name), verify=verify))


class ExportSceneDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessExportSceneDataset",
            display_name="Export Scene Dataset",
            category=CATEGORY,
            description="Writes the scenes in the layout of another trainer: kohya's sd-scripts, Hugging "
            "Face's image folder, or Custom Diffusion's own code.",
            inputs=[
                sockets.Scenes.Input("dataset", tooltip="From Build or Load Scene Dataset."),
                io.Combo.Input(
                    "form",
                    options=["kohya", "huggingface", "custom_diffusion"],
                    default="kohya",
                    tooltip="kohya: .txt captions. huggingface: metadata.jsonl with boxes. custom_diffusion: "
                    "concepts_list.json.",
                ),
                io.String.Input(
                    "name", default="my-export", tooltip="The folder in output/likeness/exports."
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="Where it was written.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, form: str | None) -> bool | str:
        return host.listed(cls, form=form)

    @classmethod
    def execute(cls, dataset: SceneDataset, form: str, name: str) -> io.NodeOutput:
        from ...composing.exporting import export_dataset
        from ...core.paths import safe_name

        folder = host.current.output / "likeness" / "exports" / safe_name(name, what="name of the export")
        path = export_dataset(dataset, folder, form)
        return io.NodeOutput(str(path), ui={"likeness": [host.made("dataset", path)]})


class SubjectOfScenes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessSubjectOfScenes",
            display_name="Subject of Scenes",
            category=CATEGORY,
            description="One subject of a scene dataset, for Train DreamBooth or Train Textual "
            "Inversion: its scenes are its photos, with captions that name the others by what they are.",
            inputs=[
                sockets.Scenes.Input("dataset", tooltip="From Build or Load Scene Dataset."),
                io.String.Input("name", default="", tooltip="Which one. Empty: the first."),
                sockets.Subject.Input(
                    "held_out_of",
                    optional=True,
                    tooltip="Its held-out photos judge: the subject's own photos.",
                ),
            ],
            outputs=[sockets.Subject.Output("subject", display_name="subject", tooltip="For a trainer.")],
        )

    @classmethod
    def execute(cls, dataset: SceneDataset, name: str, held_out_of: Subject | None = None) -> io.NodeOutput:
        from ...composing.dataset import scene_subject

        held_out = held_out_of.held_out if held_out_of is not None else ()
        return io.NodeOutput(
            scene_subject(dataset, name.strip() or dataset.members[0].name, held_out=held_out)
        )


NODES: list[type[io.ComfyNode]] = [BuildSceneDataset, LoadSceneDataset, ExportSceneDataset, SubjectOfScenes]


def _outputs() -> list[Any]:
    """What ``_dataset_output`` fills."""
    return [
        sockets.Scenes.Output("dataset", display_name="dataset", tooltip="For a trainer or an export."),
        io.Image.Output("sheet", display_name="contact sheet", tooltip="The first hundred scenes."),
        io.String.Output("statistics", display_name="statistics", tooltip="What is in it, as JSON."),
        io.String.Output("path", display_name="path", tooltip="Its folder."),
    ]


def _recipe(settings: dict[str, Any], layout: Layout | None) -> SceneRecipe:
    from ...composing.building import SceneRecipe
    from ...composing.compose import ComposeConfig
    from ...composing.repaint import RepaintConfig

    canvas = ComposeConfig(width=settings["width"], height=settings["height"], shadow=settings["shadow"])
    return SceneRecipe(
        count=settings["count"],
        least_subjects=settings["least_subjects"],
        most_subjects=settings["most_subjects"],
        canvas=canvas,
        flip=settings["flip"],
        rotate=settings["rotate"],
        strategies=strategies_of(settings),
        repainting=RepaintConfig(steps=settings["repaint_steps"]),
        layout=layout.to_json() if layout is not None else "",
        licence=settings["licence"],
        seed=settings["seed"],
    )


def _build(
    folder: Path, cast: Cast, recipe: SceneRecipe, makers: Makers, base: BaseModel | None
) -> Generator[Phase, None, SceneDataset]:
    from dataclasses import replace

    from ...backbones import open_backbone
    from ...composing.building import build_dataset
    from ...composing.repaint import BackboneInpainter
    from ...trainers.events import Phase

    if base is not None:
        host.current.free_memory()
        yield Phase("loading", 0, 1)
        makers = replace(makers, inpainter=BackboneInpainter(open_backbone(base)))
    dataset: SceneDataset = yield from phases(build_dataset(folder, cast, recipe, makers))
    return dataset


def _dataset_output(dataset: SceneDataset) -> io.NodeOutput:
    import json

    from ...composing.sheet import contact_sheet, statistics_of, write_overview

    write_overview(dataset)
    text = json.dumps(statistics_of(dataset), indent=1)
    ui = {"likeness": [host.made("dataset", dataset.folder)]}
    sheet = dataset.folder / "contact-sheet.jpg"
    if sheet.resolve().is_relative_to(host.current.output.resolve()):
        ui["images"] = host.shown([sheet])
    return io.NodeOutput(dataset, images_of([contact_sheet(dataset)]), text, str(dataset.folder), ui=ui)


def _dataset_folder(name: str) -> Path:
    from ...core.paths import inside

    path = Path(name.strip()).expanduser()
    if path.is_absolute():
        return path
    return inside(host.current.output / "likeness" / "scenes", name, what="name of the dataset")

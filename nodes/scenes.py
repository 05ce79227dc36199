"""Likeness / scene: from the photos of several subjects to captioned scenes that show them together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..composing.defaults import NEGATIVE, PROMPT
from . import host, sockets
from .host import io

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from PIL.Image import Image

    from ..backbones.base import BaseModel
    from ..composing.building import Cast, SceneRecipe
    from ..composing.compose import Composition
    from ..composing.dataset import SceneDataset
    from ..composing.layout import Layout
    from ..composing.repaint import RepaintConfig
    from ..subjects.subject import Subject
    from ..trainers.events import Phase

CATEGORY = "Likeness/scene"
PLACES = 8  # subjects of one scene at most
RULES, CHAT, LOCAL = "rules", "chat server", "local model"
ANSWERERS = [RULES, CHAT, LOCAL]
BACKGROUNDS = ["drawn", "folder", "noise"]
_CHAT_TIP = (
    "rules: no model needed. chat server: the one that this machine's LIKENESS_CHAT_URL, LIKENESS_CHAT_MODEL "
    "and LIKENESS_CHAT_KEY name. local model: the folder in model."
)
_MODEL_TIP = "For local model: its folder below ComfyUI's models folder, such as llm/NAME."
_FOLDER_TIP = "For folder: pictures below ComfyUI's input folder, or a full path. Names like beach.jpg help."


def _seed(tooltip: str) -> Any:
    return io.Int.Input("seed", default=0, min=0, max=2**31 - 1, control_after_generate=True, tooltip=tooltip)


def _share(name: str, default: float, tooltip: str) -> Any:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, tooltip=tooltip)


def _edges() -> list[Any]:
    return [
        io.Int.Input(
            name, default=1024, min=16, max=8192, step=8, tooltip=f"Of the pictures, in pixels: {name}."
        )
        for name in ("width", "height")
    ]


class CutOutSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessCutOutSubjects",
            display_name="Cut Out Subjects",
            category=CATEGORY,
            description="Cuts every subject out of its photos along their masks: its own pixels, a "
            "soft edge, "
            "no fringe of the old background. The sharpest and most complete cut-outs are kept.",
            inputs=[
                sockets.Subject.Input("subject", tooltip="A subject whose photos have masks."),
                io.Int.Input(
                    "cutouts_per_subject", default=5, min=0, max=1000,
                    tooltip="How many of the best to keep for each subject. 0: all.",
                ),
                *(
                    sockets.Subject.Input(f"subject{n}", optional=True, tooltip="Another one, of "
                    "another name.")
                    for n in range(2, PLACES + 1)
                ),
            ],
            outputs=[
                sockets.Cast.Output("cast", display_name="cast", tooltip="The subjects and their cut-outs."),
                io.Image.Output("cutouts", display_name="cut-outs", tooltip="The best of each, on grey."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, subject: Subject, cutouts_per_subject: int, **plugged: Any) -> io.NodeOutput:
        from ..composing.building import cast_of

        subjects = [subject, *(plugged[key] for key in sorted(plugged) if plugged[key] is not None)]
        cast = cast_of(subjects, most=cutouts_per_subject)
        shown = [_on_grey(cast.cutouts[one.name][0].image) for one in subjects]
        return io.NodeOutput(cast, _images(shown))


class LayoutScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLayoutScene",
            display_name="Layout Scene",
            category=CATEGORY,
            description="Where each subject stands and how large it is. Proposals that leave the canvas, "
            "overlap, float or have wrong sizes are mended or drawn again by themselves.",
            inputs=[
                sockets.Cast.Input("cast", tooltip="From Cut Out Subjects."),
                io.Combo.Input("proposer", options=ANSWERERS, default=RULES, tooltip=_CHAT_TIP),
                io.String.Input("model", default="", tooltip=_MODEL_TIP),
                io.String.Input("scene", default="", tooltip="The place: in a garden. Empty: proposed."),
                io.String.Input(
                    "layout",
                    default="",
                    multiline=True,
                    tooltip="A layout as JSON, which is used as it is: the boxes on the node write it. "
                    "Boxes are x, y, width, height in shares of the canvas. Empty: drawn from the seed.",
                ),
                io.Boolean.Input(
                    "redraw",
                    default=False,
                    tooltip="Draw the layout above anew, except for items that are locked in it.",
                ),
                io.Int.Input("max_tries", default=8, min=1, max=100, tooltip="Proposals before giving up."),
                _seed("Of the proposals."),
            ],
            outputs=[
                sockets.LayoutSocket.Output("placed", display_name="layout", tooltip="For Compose Scene."),
                io.String.Output("text", display_name="layout JSON", tooltip="The same as text, to edit."),
                io.String.Output(
                    "report", display_name="report", tooltip="Tries, and why some were rejected."
                ),
            ],
            is_output_node=True,  # so that the page hears of it when everything is cached, too
        )

    @classmethod
    def validate_inputs(cls, proposer: str | None, layout: str | None) -> bool | str:
        from ..composing.editing import read_edited
        from ..core.errors import LikenessError

        try:
            if layout and layout.strip():  # None: linked, not known yet
                read_edited(layout)
        except LikenessError as error:
            return str(error)
        return host.listed(cls, proposer=proposer)

    @classmethod
    def execute(
        cls,
        cast: Cast,
        proposer: str,
        model: str,
        scene: str,
        layout: str,
        redraw: bool,
        max_tries: int,
        seed: int,
    ) -> io.NodeOutput:
        from ..composing.editing import read_edited
        from ..composing.layout import things_of
        from ..composing.proposing import RuleBased, draw_layout

        things = things_of([(s.name, s.class_noun, cast.cutouts[s.name][0].aspect) for s in cast.subjects])
        given = read_edited(layout, things) if layout.strip() else None
        if given is not None and not redraw:
            return io.NodeOutput(given, given.to_json(), "as given", ui=_layout_ui(cast, given, "as given"))
        maker = proposer_of(proposer, model)
        drawn = draw_layout(
            maker,
            things,
            seed=seed,
            max_tries=max_tries,
            fallback=None if proposer == RULES else RuleBased(),
            locked=given,
            scene=scene,
        )
        report = drawn.in_words()
        text = drawn.layout.to_json()
        return io.NodeOutput(drawn.layout, text, report, ui=_layout_ui(cast, drawn.layout, report))


class ComposeScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessComposeScene",
            display_name="Compose Scene",
            category=CATEGORY,
            description="Puts the cut-outs on a background where the layout says: the subjects' pixels are "
            "their own, their masks and boxes exact.",
            inputs=[
                sockets.Cast.Input("cast", tooltip="From Cut Out Subjects."),
                sockets.LayoutSocket.Input("layout", tooltip="From Layout Scene."),
                io.Combo.Input(
                    "backgrounds",
                    options=BACKGROUNDS,
                    default="drawn",
                    tooltip="drawn: sky and ground of the scene's colours. folder: your pictures. "
                    "noise: only "
                    "to be repainted. A picture that is linked counts instead.",
                ),
                io.String.Input("background_folder", default="", tooltip=_FOLDER_TIP),
                *_edges(),
                _share("shadow", 0.35, "How dark the shadow is where a subject stands. 0: none."),
                _share(
                    "harmonise",
                    0.0,
                    "How far the subjects take the background's light; changes their pixels.",
                ),
                _seed("Of the background, and of which cut-out is taken."),
                io.Image.Input("background", optional=True, tooltip="A background from the graph."),
            ],
            outputs=[
                sockets.Scene.Output("composed", display_name="scene", tooltip="For Repaint and Recaption."),
                io.Image.Output("picture", display_name="IMAGE", tooltip="The composed picture."),
                io.Mask.Output("mask", display_name="MASK", tooltip="White where a subject is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, backgrounds: str | None) -> bool | str:
        return host.listed(cls, backgrounds=backgrounds)

    @classmethod
    def execute(
        cls,
        cast: Cast,
        layout: Layout,
        backgrounds: str,
        background_folder: str,
        width: int,
        height: int,
        shadow: float,
        harmonise: float,
        seed: int,
        background: Any = None,
    ) -> io.NodeOutput:
        from ..composing.building import compose_once
        from ..composing.compose import ComposeConfig

        config = ComposeConfig(width=width, height=height, shadow=shadow, harmonise=harmonise)
        picture = _given_background(background, width, height)
        if picture is None:
            source = backgrounds_of(backgrounds, background_folder)
            picture, _ = source.picture(layout.scene, width, height, seed=seed)
        scene = compose_once(cast, layout, picture, config, seed=seed)
        return io.NodeOutput(scene, _images([scene.image]), _mask(scene.foreground))


def _repaint_inputs() -> list[Any]:
    return [
        io.String.Input(
            "prompt", default=PROMPT, tooltip="What to paint; {} is the place, such as in a garden."
        ),
        io.String.Input("negative", default=NEGATIVE, multiline=True, tooltip="What must not be there."),
    ]


class RepaintBackground(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessRepaintBackground",
            display_name="Repaint Background",
            category=CATEGORY,
            description="Paints everything around the subjects anew with a model of this pack, and puts the "
            "subjects back pixel for pixel. For any inpainting model of ComfyUI use Prepare Repaint.",
            inputs=[
                sockets.Scene.Input("scene", tooltip="From Compose Scene."),
                sockets.Base.Input("base", tooltip="The model that paints."),
                *_repaint_inputs(),
                io.Int.Input("steps", default=60, min=1, max=1000, tooltip="Denoising steps."),
                io.Float.Input(
                    "guidance", default=6.0, min=1.0, max=30.0, step=0.1, tooltip="How strictly it follows."
                ),
                io.Float.Input(
                    "strength",
                    default=0.9,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the old background goes: 1 is all of it.",
                ),
                io.Boolean.Input(
                    "put_back", default=True, tooltip="Put the subjects back as they were, pixel for pixel."
                ),
                io.Int.Input(
                    "retries",
                    default=2,
                    min=0,
                    max=20,
                    tooltip="More draws for a picture that fails the checks.",
                ),
                _seed("Of the noise."),
            ],
            outputs=[
                sockets.Scene.Output("repainted", display_name="scene", tooltip="For Recaption."),
                io.Image.Output("picture", display_name="IMAGE", tooltip="The repainted picture."),
                io.String.Output("report", display_name="report", tooltip="What the checks saw."),
            ],
        )

    @classmethod
    def execute(cls, scene: Composition, base: BaseModel, seed: int, **settings: Any) -> io.NodeOutput:
        from ..composing.repaint import RepaintConfig

        host.current.free_memory()
        done = host.follow(_repaint(scene, base, RepaintConfig(**settings), seed))
        verdict = done.verdict
        report = (
            f"{done.tries} tries; subject pixels kept {verdict.identity:.4f}, seam {verdict.seam:.2f}"
            + (f"; failed: {', '.join(verdict.reasons)}" if verdict.reasons else "")
        )
        return io.NodeOutput(done.composition, _images([done.composition.image]), report)


class PrepareRepaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessPrepareRepaint",
            display_name="Prepare Repaint",
            category=CATEGORY,
            description="What ComfyUI's own inpainting needs: link IMAGE and MASK to "
            "InpaintModelConditioning "
            "or VAE Encode (for Inpainting), the texts to CLIP Text Encode, and the picture that "
            "comes out to "
            "Finish Repaint.",
            inputs=[
                sockets.Scene.Input("scene", tooltip="From Compose Scene."),
                *_repaint_inputs(),
                io.Float.Input(
                    "mask_blur_px",
                    default=5.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Blur of the mask's edge on 1024 pixels; its inner half is kept.",
                ),
            ],
            outputs=[
                io.Image.Output("start", display_name="IMAGE", tooltip="The picture to start from."),
                io.Mask.Output("repaint_mask", display_name="MASK", tooltip="White where to paint."),
                io.String.Output("positive_text", display_name="prompt", tooltip="The background in words."),
                io.String.Output("negative_text", display_name="negative", tooltip="What must not be there."),
            ],
        )

    @classmethod
    def execute(cls, scene: Composition, prompt: str, negative: str, mask_blur_px: float) -> io.NodeOutput:
        from ..composing.repaint import RepaintConfig, keep_mask

        blur = mask_blur_px * max(scene.image.size) / 1024
        keep = _mask(keep_mask(scene.foreground, blur))
        text = RepaintConfig(prompt=prompt).prompt_for(scene.layout.scene)
        return io.NodeOutput(_images([scene.image]), 1 - keep, text, negative)


class FinishRepaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessFinishRepaint",
            display_name="Finish Repaint",
            category=CATEGORY,
            description="Takes a picture whose background another model painted, and puts the subjects back "
            "pixel for pixel.",
            inputs=[
                sockets.Scene.Input("scene", tooltip="The scene that went into Prepare Repaint."),
                io.Image.Input("painted", tooltip="What the inpainting model made of it."),
                io.Boolean.Input(
                    "put_back", default=True, tooltip="Put the subjects back as they were, pixel for pixel."
                ),
            ],
            outputs=[
                sockets.Scene.Output("repainted", display_name="scene", tooltip="For Recaption."),
                io.Image.Output("picture", display_name="IMAGE", tooltip="The finished picture."),
                io.String.Output("report", display_name="report", tooltip="What the checks saw."),
            ],
        )

    @classmethod
    def execute(cls, scene: Composition, painted: Any, put_back: bool) -> io.NodeOutput:
        from dataclasses import replace

        from ..composing.compose import on_background
        from ..composing.repaint import RepaintConfig, judge

        image = _given_background(painted, *scene.image.size)
        assert image is not None
        image = on_background(scene, image) if put_back else image
        verdict = judge(image, scene, RepaintConfig())
        report = f"subject pixels kept {verdict.identity:.4f}, seam {verdict.seam:.2f}" + (
            f"; failed: {', '.join(verdict.reasons)}" if verdict.reasons else ""
        )
        return io.NodeOutput(replace(scene, image=image), _images([image]), report)


def _strategy_inputs() -> list[Any]:
    return [
        io.Boolean.Input(
            "background_in_caption",
            default=True,
            tooltip="Say the place, so that no subject's word soaks it up (our reading of the paper).",
        ),
        io.Boolean.Input(
            "repeat_tokens",
            default=False,
            tooltip="Name every subject again at the end, so that none is dropped (our reading of "
            "the paper).",
        ),
        io.String.Input(
            "composition_token",
            default="",
            tooltip="A word for the arrangement as a whole, such as <scene> (our reading of the paper).",
        ),
    ]


class RecaptionScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessRecaptionScene",
            display_name="Recaption Scene",
            category=CATEGORY,
            description="Describes a scene with every subject named exactly once by its word, where each is, "
            "and the background.",
            inputs=[
                sockets.Scene.Input("scene", tooltip="From Compose Scene or Repaint Background."),
                io.Combo.Input("captioner", options=ANSWERERS, default=RULES, tooltip=_CHAT_TIP),
                io.String.Input("model", default="", tooltip=_MODEL_TIP),
                *_strategy_inputs(),
                _seed("Of the wording."),
            ],
            outputs=[
                io.String.Output("caption", display_name="caption", tooltip="With the subjects' words."),
                io.String.Output(
                    "notes", display_name="notes", tooltip="What had to be added; empty: nothing."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, captioner: str | None) -> bool | str:
        return host.listed(cls, captioner=captioner)

    @classmethod
    def execute(
        cls, scene: Composition, captioner: str, model: str, seed: int, **strategies: Any
    ) -> io.NodeOutput:
        from ..composing.recaption import caption_scene

        writer = captioner_of(captioner, model)
        caption, notes = caption_scene(writer, scene.image, scene.layout, _strategies(strategies), seed=seed)
        return io.NodeOutput(caption, "\n".join(notes))


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
                *_edges(),
                io.Combo.Input("proposer", options=ANSWERERS, default=RULES, tooltip=_CHAT_TIP),
                io.Combo.Input("captioner", options=ANSWERERS, default=RULES, tooltip=_CHAT_TIP),
                io.String.Input("model", default="", tooltip=_MODEL_TIP),
                io.Combo.Input(
                    "backgrounds",
                    options=BACKGROUNDS,
                    default="drawn",
                    tooltip="What stands behind the subjects, before it is repainted.",
                ),
                io.String.Input("background_folder", default="", tooltip=_FOLDER_TIP),
                *_strategy_inputs(),
                _share(
                    "flip", 0.0, "Share of subjects that are mirrored. Not for writing or asymmetric things."
                ),
                _share("rotate", 0.0, "Share of subjects that are turned a little."),
                _share("shadow", 0.35, "How dark the shadow is where a subject stands."),
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
                _seed("Of all that is drawn by lot."),
                sockets.LayoutSocket.Input("layout", optional=True, tooltip="One layout for all scenes."),
                sockets.Base.Input(
                    "base", optional=True, tooltip="Repaints every background with this model."
                ),
            ],
            outputs=[
                sockets.Scenes.Output(
                    "dataset", display_name="dataset", tooltip="For a trainer or an export."
                ),
                io.Image.Output("sheet", display_name="contact sheet", tooltip="The first hundred scenes."),
                io.String.Output("statistics", display_name="statistics", tooltip="What is in it, as JSON."),
                io.String.Output("path", display_name="path", tooltip="Its folder."),
            ],
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
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..composing.building import Makers
        from ..core.paths import safe_name

        folder = host.current.output / "likeness" / "scenes" / safe_name(name, what="name of the dataset")
        makers = Makers(
            proposer=proposer_of(proposer, model),
            backgrounds=backgrounds_of(backgrounds, background_folder),
            captioner=captioner_of(captioner, model),
        )
        dataset = host.follow(_build(folder, cast, _recipe(widgets, layout), makers, base))
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
            outputs=[
                sockets.Scenes.Output(
                    "dataset", display_name="dataset", tooltip="For a trainer or an export."
                ),
                io.Image.Output("sheet", display_name="contact sheet", tooltip="The first hundred scenes."),
                io.String.Output("statistics", display_name="statistics", tooltip="What is in it, as JSON."),
                io.String.Output("path", display_name="path", tooltip="Its folder."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, verify: bool) -> str:
        from .subjects import fingerprint

        folder = _dataset_folder(name)
        return fingerprint(folder) if folder.is_dir() else ""

    @classmethod
    def execute(cls, name: str, verify: bool) -> io.NodeOutput:
        from ..composing.dataset import load_dataset

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
        from ..composing.exporting import export_dataset
        from ..core.paths import safe_name

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
            "Inversion: its "
            "scenes are its photos, with captions that name the others by what they are.",
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
        from ..composing.dataset import scene_subject

        held_out = held_out_of.held_out if held_out_of is not None else ()
        return io.NodeOutput(
            scene_subject(dataset, name.strip() or dataset.members[0].name, held_out=held_out)
        )


NODES: list[type[io.ComfyNode]] = [
    CutOutSubjects,
    LayoutScene,
    ComposeScene,
    RepaintBackground,
    PrepareRepaint,
    FinishRepaint,
    RecaptionScene,
    BuildSceneDataset,
    LoadSceneDataset,
    ExportSceneDataset,
    SubjectOfScenes,
]


# --- who answers, paints and captions -----------------------------------------------------------------


def proposer_of(kind: str, model: str) -> Any:
    from ..composing.language import LanguageProposer, LocalLanguageModel
    from ..composing.proposing import RuleBased

    if kind == RULES:
        return RuleBased()
    if kind == CHAT:
        from ..composing.chat import server_from_settings

        return LanguageProposer(server_from_settings())
    with host.training_mode():
        return LanguageProposer(LocalLanguageModel(_model_folder(model), device=_device()))


def captioner_of(kind: str, model: str) -> Any:
    from ..composing.recaption import RuleCaptioner

    if kind == RULES:
        return RuleCaptioner()
    from ..composing.captioners import ChatCaptioner, open_captioner

    if kind == CHAT:
        from ..composing.chat import server_from_settings

        return ChatCaptioner(server_from_settings())
    with host.training_mode():
        return open_captioner(_model_folder(model), device=_device())


def backgrounds_of(kind: str, folder: str) -> Any:
    from ..composing.backgrounds import DrawnBackgrounds, FolderBackgrounds, NoiseBackgrounds

    if kind != "folder":
        return DrawnBackgrounds() if kind == "drawn" else NoiseBackgrounds()
    from ..core.paths import inside

    text = folder.strip()
    path = Path(text).expanduser()
    if not path.is_absolute():
        path = inside(host.current.input, text, what="folder of backgrounds")
    return FolderBackgrounds(path)


def _model_folder(model: str) -> Path:
    from ..core.paths import inside

    return inside(host.current.models, model, what="model")


def _device() -> str:
    from ..scoring.encoders import default_device

    device = host.current.device()
    return default_device() if device == "auto" else device


def _strategies(widgets: dict[str, Any]) -> Any:
    from ..composing.recaption import PromptingStrategies

    return PromptingStrategies(
        composition_token=widgets["composition_token"].strip(),
        repeat_tokens=widgets["repeat_tokens"],
        background=widgets["background_in_caption"],
    )


def _recipe(widgets: dict[str, Any], layout: Layout | None) -> SceneRecipe:
    from ..composing.building import SceneRecipe
    from ..composing.compose import ComposeConfig
    from ..composing.repaint import RepaintConfig

    canvas = ComposeConfig(width=widgets["width"], height=widgets["height"], shadow=widgets["shadow"])
    return SceneRecipe(
        count=widgets["count"],
        least_subjects=widgets["least_subjects"],
        most_subjects=widgets["most_subjects"],
        canvas=canvas,
        flip=widgets["flip"],
        rotate=widgets["rotate"],
        strategies=_strategies(widgets),
        repainting=RepaintConfig(steps=widgets["repaint_steps"]),
        layout=layout.to_json() if layout is not None else "",
        licence=widgets["licence"],
        seed=widgets["seed"],
    )


# --- long work, as events -----------------------------------------------------------------------------


def _repaint(
    scene: Composition, base: BaseModel, config: RepaintConfig, seed: int
) -> Generator[Phase, None, Any]:
    from ..backbones import open_backbone
    from ..composing.repaint import BackboneInpainter, repaint
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    inpainter = BackboneInpainter(open_backbone(base))
    return (yield from _phases(repaint(scene, inpainter, config, seed=seed)))


def _build(
    folder: Path, cast: Cast, recipe: SceneRecipe, makers: Any, base: BaseModel | None
) -> Generator[Phase, None, SceneDataset]:
    from dataclasses import replace

    from ..backbones import open_backbone
    from ..composing.building import build_dataset
    from ..composing.repaint import BackboneInpainter
    from ..trainers.events import Phase

    if base is not None:
        host.current.free_memory()
        yield Phase("loading", 0, 1)
        makers = replace(makers, inpainter=BackboneInpainter(open_backbone(base)))
    dataset: SceneDataset = yield from _phases(build_dataset(folder, cast, recipe, makers))
    return dataset


def _phases(work: Any) -> Generator[Phase, None, Any]:
    """Composing's progress as the host shows it."""
    from contextlib import closing

    from ..trainers.events import Phase

    with closing(work):
        while True:
            try:
                progress = next(work)
            except StopIteration as end:
                return end.value
            yield Phase(progress.name, progress.done, progress.total)


def _dataset_output(dataset: SceneDataset) -> io.NodeOutput:
    import json

    from ..composing.sheet import contact_sheet, statistics_of, write_overview

    write_overview(dataset)
    text = json.dumps(statistics_of(dataset), indent=1)
    ui = {"likeness": [host.made("dataset", dataset.folder)]}
    sheet = dataset.folder / "contact-sheet.jpg"
    if sheet.resolve().is_relative_to(host.current.output.resolve()):
        ui["images"] = host.shown([sheet])
    return io.NodeOutput(dataset, _images([contact_sheet(dataset)]), text, str(dataset.folder), ui=ui)


def _dataset_folder(name: str) -> Path:
    from ..core.paths import inside

    path = Path(name.strip()).expanduser()
    if path.is_absolute():
        return path
    return inside(host.current.output / "likeness" / "scenes", name, what="name of the dataset")


# --- pictures -----------------------------------------------------------------------------------------


def _images(pictures: Sequence[Image]) -> Any:
    """One IMAGE batch; pictures of other sizes are fitted into the first one's."""
    import numpy as np
    import torch
    from PIL import ImageOps

    size = pictures[0].size
    fitted = [p if p.size == size else ImageOps.pad(p, size, color=(128, 128, 128)) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(p.convert("RGB"), np.float32) / 255 for p in fitted]))


def _mask(mask: Image) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(mask, np.float32) / 255)[None]


def _on_grey(image: Image) -> Image:
    from PIL import Image as Pictures

    canvas = Pictures.new("RGB", image.size, (128, 128, 128))
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _given_background(images_BHW3: Any, width: int, height: int) -> Image | None:
    """The first picture of a batch at the canvas's size, cut where its shape is another."""
    if images_BHW3 is None:
        return None
    from PIL import Image as Pictures
    from PIL import ImageOps

    from ..scoring.encoders import to_pil

    picture = to_pil(images_BHW3[0].permute(2, 0, 1))
    return ImageOps.fit(picture, (width, height), Pictures.Resampling.LANCZOS)


def _layout_ui(cast: Cast, layout: Layout, report: str) -> dict[str, list[Any]]:
    """What the page's editor draws: the boxes, and what stands in them."""
    best = [(subject, cast.cutouts[subject.name][0]) for subject in cast.subjects]
    pictures = host.current.show_pictures({cutout.sha256: cutout.image for _, cutout in best})
    shown = [
        {
            "subject": subject.name,
            "noun": subject.class_noun,
            "aspect": cutout.aspect,
            "picture": pictures.get(cutout.sha256),
        }
        for subject, cutout in best
    ]
    return {"likeness_layout": [layout.to_json()], "likeness_cast": shown, "text": [report]}

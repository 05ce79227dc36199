"""The background painted anew: by a model of this pack, or around ComfyUI's own inpainting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...composing.defaults import NEGATIVE, PROMPT
from .. import host, sockets, widgets
from ..host import io
from ..pictures import fitted, images_of, mask_of
from .makers import CATEGORY, phases

if TYPE_CHECKING:
    from collections.abc import Generator

    from ...backbones.base import BaseModel
    from ...composing.compose import Composition
    from ...composing.repaint import RepaintConfig, Verdict
    from ...trainers.events import Phase


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
                widgets.steps(60, "Denoising steps."),
                widgets.guidance(6.0, "How strictly it follows."),
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
                widgets.seed("Of the noise."),
            ],
            outputs=[
                sockets.Scene.Output("repainted", display_name="scene", tooltip="For Recaption."),
                io.Image.Output("picture", display_name="IMAGE", tooltip="The repainted picture."),
                io.String.Output("report", display_name="report", tooltip="What the checks saw."),
            ],
        )

    @classmethod
    def execute(cls, scene: Composition, base: BaseModel, seed: int, **settings: Any) -> io.NodeOutput:
        from ...composing.repaint import RepaintConfig

        host.current.free_memory()
        done = host.follow(_repaint(scene, base, RepaintConfig(**settings), seed))
        report = f"{done.tries} tries; {_in_words(done.verdict)}"
        return io.NodeOutput(done.composition, images_of([done.composition.image]), report)


class PrepareRepaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessPrepareRepaint",
            display_name="Prepare Repaint",
            category=CATEGORY,
            description="What ComfyUI's own inpainting needs: link IMAGE and MASK to "
            "InpaintModelConditioning or VAE Encode (for Inpainting), the texts to CLIP Text Encode, and the "
            "picture that comes out to Finish Repaint.",
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
        from ...composing.repaint import RepaintConfig, keep_mask

        blur = mask_blur_px * max(scene.image.size) / 1024
        keep = mask_of(keep_mask(scene.foreground, blur))
        text = RepaintConfig(prompt=prompt).prompt_for(scene.layout.scene)
        return io.NodeOutput(images_of([scene.image]), 1 - keep, text, negative)


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

        from ...composing.compose import on_background
        from ...composing.repaint import RepaintConfig, judge

        image = fitted(painted, scene.image.size)
        image = on_background(scene, image) if put_back else image
        report = _in_words(judge(image, scene, RepaintConfig()))
        return io.NodeOutput(replace(scene, image=image), images_of([image]), report)


NODES: list[type[io.ComfyNode]] = [RepaintBackground, PrepareRepaint, FinishRepaint]


def _repaint(
    scene: Composition, base: BaseModel, config: RepaintConfig, seed: int
) -> Generator[Phase, None, Any]:
    from ...backbones import open_backbone
    from ...composing.repaint import BackboneInpainter, repaint
    from ...trainers.events import Phase

    yield Phase("loading", 0, 1)
    inpainter = BackboneInpainter(open_backbone(base))
    return (yield from phases(repaint(scene, inpainter, config, seed=seed)))


def _in_words(verdict: Verdict) -> str:
    words = f"subject pixels kept {verdict.identity:.4f}, seam {verdict.seam:.2f}"
    return words + (f"; failed: {', '.join(verdict.reasons)}" if verdict.reasons else "")

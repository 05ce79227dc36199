"""Cut-outs on a background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import host, sockets, widgets
from ..host import io
from ..pictures import fitted, images_of, mask_of
from .makers import CATEGORY, background_inputs, backgrounds_of

if TYPE_CHECKING:
    from ...composing.building import Cast
    from ...composing.layout import Layout


def canvas_inputs() -> list[Any]:
    return [
        io.Int.Input(
            name, default=1024, min=16, max=8192, step=8, tooltip=f"Of the pictures, in pixels: {name}."
        )
        for name in ("width", "height")
    ]


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
                *background_inputs(
                    "drawn: sky and ground of the scene's colours. folder: your pictures. noise: only to be "
                    "repainted. toybox: the built-in world's scenes. A picture that is linked counts instead."
                ),
                *canvas_inputs(),
                widgets.share("shadow", 0.35, "How dark the shadow is where a subject stands. 0: none."),
                widgets.share(
                    "harmonise",
                    0.0,
                    "How far the subjects take the background's light; changes their pixels.",
                ),
                widgets.seed("Of the background, and of which cut-out is taken."),
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
        from ...composing.building import compose_once
        from ...composing.compose import ComposeConfig

        config = ComposeConfig(width=width, height=height, shadow=shadow, harmonise=harmonise)
        if background is not None:
            picture = fitted(background, (width, height))
        else:
            source = backgrounds_of(backgrounds, background_folder)
            picture, _ = source.picture(layout.scene, width, height, seed=seed)
        scene = compose_once(cast, layout, picture, config, seed=seed)
        return io.NodeOutput(scene, images_of([scene.image]), mask_of(scene.foreground))


NODES: list[type[io.ComfyNode]] = [ComposeScene]

"""Captions of a scene: every subject by its word, where it is, and the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import host, sockets, widgets
from ..host import io
from .makers import CATEGORY, answerer_input, captioner_of, model_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...composing.compose import Composition
    from ...composing.recaption import PromptingStrategies


def strategy_inputs() -> list[Any]:
    """What ``strategies_of`` reads."""
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


def strategies_of(chosen: Mapping[str, Any]) -> PromptingStrategies:
    from ...composing.recaption import PromptingStrategies

    return PromptingStrategies(
        composition_token=chosen["composition_token"].strip(),
        repeat_tokens=chosen["repeat_tokens"],
        background=chosen["background_in_caption"],
    )


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
                answerer_input("captioner"),
                model_input(),
                *strategy_inputs(),
                widgets.seed("Of the wording."),
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
        from ...composing.recaption import caption_scene

        writer = captioner_of(captioner, model)
        caption, notes = caption_scene(
            writer, scene.image, scene.layout, strategies_of(strategies), seed=seed
        )
        return io.NodeOutput(caption, "\n".join(notes))


NODES: list[type[io.ComfyNode]] = [RecaptionScene]

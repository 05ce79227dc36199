"""Where each subject of a scene stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import host, sockets, widgets
from ..host import io
from .makers import CATEGORY, RULES, answerer_input, model_input, proposer_of

if TYPE_CHECKING:
    from ...composing.building import Cast
    from ...composing.layout import Layout


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
                answerer_input("proposer"),
                model_input(),
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
                widgets.seed("Of the proposals."),
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
        from ...composing.editing import read_edited
        from ...core.errors import LikenessError

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
        from ...composing.editing import read_edited
        from ...composing.layout import things_of
        from ...composing.proposing import RuleBased, draw_layout

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


NODES: list[type[io.ComfyNode]] = [LayoutScene]


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

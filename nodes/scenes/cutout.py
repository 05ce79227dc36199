"""The subjects, cut out of their photos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import sockets
from ..host import io
from ..pictures import images_of
from .makers import CATEGORY

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...subjects.subject import Subject

PLACES = 8  # subjects of one scene at most


class CutOutSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessCutOutSubjects",
            display_name="Cut Out Subjects",
            category=CATEGORY,
            description="Cuts every subject out of its photos along their masks: its own pixels, a "
            "soft edge, no fringe of the old background. The sharpest and most complete cut-outs are kept.",
            inputs=[
                sockets.Subject.Input("subject", tooltip="A subject whose photos have masks."),
                io.Int.Input(
                    "cutouts_per_subject",
                    default=5,
                    min=0,
                    max=1000,
                    tooltip="How many of the best to keep for each subject. 0: all.",
                ),
                *(
                    sockets.Subject.Input(
                        f"subject{n}", optional=True, tooltip="Another one, of another name."
                    )
                    for n in range(2, PLACES + 1)
                ),
            ],
            outputs=[
                sockets.Cast.Output("cast", display_name="cast", tooltip="The subjects and their cut-outs."),
                io.Image.Output("cutouts", display_name="cut-outs", tooltip="The best of each, on grey."),
            ],
        )

    @classmethod
    def execute(cls, subject: Subject, cutouts_per_subject: int, **plugged: Any) -> io.NodeOutput:
        from ...composing.building import cast_of

        subjects = [subject, *(plugged[key] for key in sorted(plugged) if plugged[key] is not None)]
        cast = cast_of(subjects, most=cutouts_per_subject)
        shown = [_on_grey(cast.cutouts[one.name][0].image) for one in subjects]
        return io.NodeOutput(cast, images_of(shown))


NODES: list[type[io.ComfyNode]] = [CutOutSubjects]


def _on_grey(image: Image) -> Image:
    from PIL import Image as Pictures

    canvas = Pictures.new("RGB", image.size, (128, 128, 128))
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas

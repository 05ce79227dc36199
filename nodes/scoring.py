"""Likeness / score: how good it is, in numbers and as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import sockets
from .host import io

if TYPE_CHECKING:
    pass

CATEGORY = "Likeness/score"
PLACES = 4  # scorecards and runs that one report takes


class ScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessScoreImages",
            display_name="Score Images",
            category=CATEGORY,
            description="Do the pictures show the subject (DINO, CLIP-I, against its held-out photos), and "
            "what the prompts say (CLIP-T)?",
            inputs=[
                sockets.BaseOrModel.Input(
                    "model", tooltip="What drew the pictures: its concept's word is left out of CLIP-T."
                ),
                io.Image.Input("images", tooltip="The pictures, as many for each prompt."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Their prompts, one per line: link them from Generate.",
                ),
                sockets.Subject.Input(
                    "subject", tooltip="Its held-out photos judge; its training photos if it has none."
                ),
                io.String.Input(
                    "label", default="", tooltip="What the report calls this row: 'DreamBooth, rank 4'."
                ),
                io.Combo.Input(
                    "judges",
                    options=["auto", "toybox", "standard"],
                    default="auto",
                    tooltip="Who looks. auto: Toybox's own encoders for a Toybox model, else CLIP "
                    "ViT-B/32 and DINO ViT-S/16, which must be on this machine. Scores of different "
                    "judges are not comparable.",
                ),
            ],
            outputs=[
                sockets.Scorecard.Output("scorecard", tooltip="All scores, for Report."),
                io.String.Output("summary", tooltip="The means in one line."),
            ],
        )


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = [str(n) if n > 1 else "" for n in range(1, PLACES + 1)]
        return io.Schema(
            node_id="LikenessReport",
            display_name="Report",
            category=CATEGORY,
            description="One page with pictures, curves, scores, settings and where everything came from. "
            "It opens from disk in any browser.",
            inputs=[
                io.String.Input("title", default="What was learned", tooltip="The page's heading."),
                io.String.Input(
                    "name", default="report", tooltip="The page's file name in output/likeness/reports."
                ),
                sockets.Subject.Input(
                    "subject", optional=True, tooltip="Shows its training and held-out photos."
                ),
                *(
                    sockets.Scorecard.Input(f"scorecard{n}", optional=True, tooltip="From Score Images.")
                    for n in numbers
                ),
                *(
                    sockets.Run.Input(
                        f"run{n}", optional=True, tooltip="From a trainer: its curves and settings."
                    )
                    for n in numbers
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the page is.")],
            is_output_node=True,
        )


NODES: list[type[io.ComfyNode]] = [ScoreImages, Report]

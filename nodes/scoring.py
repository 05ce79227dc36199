"""Likeness / score: how good it is, in numbers and as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, sockets
from .host import io
from .judges import JUDGES, open_judges
from .pictures import prompts_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from ..backbones.base import BaseModel
    from ..scoring.runs import ReportRun
    from ..scoring.score import Picture
    from ..scoring.scorecard import Scorecard
    from ..subjects.subject import Subject
    from ..trainers.events import Done, Phase
    from .sockets import AppliedModel

CATEGORY = "Likeness/score"
LABELS = {
    "dreambooth": "DreamBooth",
    "textual_inversion": "Textual Inversion",
    "neti": "NeTI",
    "align": "InstructBooth",
    "reward_gradient": "Reward gradient",
    "custom_diffusion": "Custom Diffusion",
}
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
                    options=JUDGES,
                    default="auto",
                    tooltip="Who looks. auto: Toybox's own encoders for a Toybox model, else CLIP "
                    "ViT-B/32 and DINO ViT-S/16, which must be on this machine. Scores of different "
                    "judges are not comparable.",
                ),
            ],
            outputs=[
                sockets.Scorecard.Output(
                    "scorecard", display_name="scorecard", tooltip="All scores, for Report."
                ),
                io.String.Output("summary", display_name="summary", tooltip="The means in one line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, judges: str | None) -> bool | str:
        return host.listed(cls, judges=judges)

    @classmethod
    def execute(
        cls,
        model: BaseModel | AppliedModel,
        images: Any,
        prompts: str,
        subject: Subject,
        label: str,
        judges: str,
    ) -> io.NodeOutput:
        known = sockets.applied(model)
        trigger = known.concepts[-1][0].trigger if known.concepts else ""
        scoring = _score(known.base, _pictures(images, prompts, subject), subject, trigger, label, judges)
        host.current.free_memory()
        scorecard = host.follow(scoring)
        return io.NodeOutput(scorecard, scorecard.summary(), ui={"likeness_scores": [scorecard.brief()]})


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = [str(n) if n > 1 else "" for n in range(1, PLACES + 1)]
        return io.Schema(
            node_id="LikenessReport",
            display_name="Report",
            category=CATEGORY,
            description="One page with pictures, curves, scores, settings and where everything came from. "
            "It opens from disk in any browser. Scorecards lie beside it as JSON, CSV and a picture.",
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
            outputs=[io.String.Output("path", display_name="path", tooltip="Where the page is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, title: str, name: str, subject: Subject | None = None, **plugged: Any) -> io.NodeOutput:
        from ..core.paths import safe_name
        from ..scoring.report import write_report

        runs = [_read(plugged[key]) for key in sorted(plugged) if key.startswith("run")]
        scorecards = [plugged[key] for key in sorted(plugged) if key.startswith("scorecard")]
        safe = safe_name(name, what="report name")
        path = host.current.output / "likeness" / "reports" / f"{safe}.html"
        write_report(path, title=title, subject=subject, runs=runs, scorecards=scorecards)
        pictures = _save_scorecards(scorecards, path.with_name(f"{safe} scores"))
        made = [host.made("report", path), *(host.made("scorecard", picture) for picture in pictures)]
        return io.NodeOutput(str(path), ui={"likeness": made})


NODES: list[type[io.ComfyNode]] = [ScoreImages, Report]


def _pictures(images_BHW3: Any, prompts: str, subject: Subject) -> list[Picture]:
    """Each picture with its prompt."""
    from ..scoring.score import Picture

    lines = prompts_of(prompts, len(images_BHW3), node="Score Images")
    return [
        Picture(image=image, prompt=line, subject=subject.name)
        for image, line in zip(images_BHW3.permute(0, 3, 1, 2), lines, strict=True)
    ]


def _score(
    base: BaseModel, pictures: list[Picture], subject: Subject, trigger: str, label: str, judges: str
) -> Generator[Phase, None, Scorecard]:
    """Scoring as a work that ``host.follow`` shows: its progress as phases."""
    from ..scoring.score import Progress, references_of, score_images
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    encoders = open_judges(base, judges)
    references = {subject.name: references_of(subject, trigger=trigger)}
    for item in score_images(pictures, references, encoders, label=label):
        if not isinstance(item, Progress):
            return item
        yield Phase("scoring", item.done, item.total)
    raise AssertionError("score_images ends with a scorecard")


def _save_scorecards(cards: Sequence[Scorecard], folder: Path) -> list[Path]:
    """Each as JSON, CSV and a picture, numbered: two may have one label. The pictures' paths."""
    from ..core.paths import slug
    from ..scoring.cardpicture import save_card

    names = [f"{n} {slug(card.label, default='scorecard')}" for n, card in enumerate(cards, start=1)]
    return [save_card(card, folder, name)[-1] for card, name in zip(cards, names, strict=True)]


def _read(done: Done) -> ReportRun:
    from ..scoring.runs import read_run

    prompts = [prompt.replace("{}", done.concept.trigger) for prompt in _sample_prompts(done)]
    label = LABELS.get(str(done.concept.metadata.get("method")), "")
    config = done.concept.metadata.get("config")  # as ``core.hashing.canonical`` writes it
    label += "+" if isinstance(config, dict) and config.get("fields", {}).get("attractor") else ""
    return read_run(done.run_folder, label=label, sample_prompts=prompts)


def _sample_prompts(done: Done) -> Sequence[str]:
    """Of the run's sample pictures: an alignment draws what it practises."""
    from ..subjects.prompt_pool import PromptPool
    from ..trainers.loop import SAMPLE_PROMPTS
    from ..trainers.personalized import sample_prompts

    settings = done.concept.metadata.get("config")
    pool = settings.get("pool") if isinstance(settings, dict) else None
    return sample_prompts(PromptPool(**pool["fields"])) if pool else SAMPLE_PROMPTS

"""Likeness / benchmark: methods scored on a dataset, and tables of such scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, sockets, widgets
from .datasets import CATEGORY
from .host import io
from .judges import open_judges

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..backbones.base import BaseModel
    from ..scoring.evaluation import Evaluation
    from ..subjects.dataset import Dataset
    from ..trainers.events import Event

UNTOUCHED = "base model"
METHODS = [UNTOUCHED, "textual_inversion", "neti", "dreambooth", "custom_diffusion"]
NOTHING = "nothing"
PUBLISHED = [NOTHING, "instructbooth", "dreambench"]
PLACES = 6  # evaluations that one table takes: the paper's figure has six methods


def learning_inputs() -> list[Any]:
    """How a method learns its subjects."""
    return [
        io.Combo.Input(
            "preset", options=["practical", "paper"], default="practical", tooltip="Its settings."
        ),
        io.Int.Input(
            "train_steps", default=0, min=0, max=1000000, tooltip="0: the preset's number of steps."
        ),
    ]


def drawing_inputs(*, steps: int, guidance: float) -> list[Any]:
    """How the pictures that are scored are drawn, and what tables call them."""
    return [
        widgets.steps(steps, "Denoising steps (DDIM)."),
        widgets.guidance(guidance, "How strictly pictures follow prompts."),
        widgets.batch_size(16, "Pictures drawn at once."),
        widgets.seed("Of learning and drawing. Every method draws from the same noise."),
        io.String.Input("label", default="", tooltip="What tables call it. Empty: the method's name."),
    ]


def evaluation_outputs() -> list[Any]:
    return [
        sockets.Evaluation.Output("evaluation", display_name="evaluation", tooltip="For Benchmark Table."),
        io.String.Output("summary", display_name="summary", tooltip="The means in one line."),
    ]


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
                *learning_inputs(),
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
                *drawing_inputs(steps=25, guidance=5.0),
            ],
            outputs=evaluation_outputs(),
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


NODES: list[type[io.ComfyNode]] = [BenchmarkMethod, BenchmarkTable]


def _evaluate(
    base: BaseModel, dataset: Dataset, learning: dict[str, Any], label: str, drawing: dict[str, Any]
) -> Generator[Event, None, Evaluation]:
    """The evaluation as a work that ``host.follow`` shows."""
    from ..scoring.heldout import HeldOut
    from ..trainers.evaluate import HeldOutConfig, evaluate
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    encoders = open_judges(base)
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
